"""Folders as runs leave them."""

import json
import random
from pathlib import Path

from mplus.confidence import Evidence
from mplus.evaluation.raw_answers import ANSWERS, RUN


def run_folder(folder: Path, seed: int, answers: int = 600) -> Path:
    """Answers that are right the likelier the better recall found something; a third cannot be answered."""
    rng = random.Random(seed)
    folder.mkdir()
    (folder / RUN).write_text(json.dumps({"layout": {"recall": "late"}}), encoding="utf-8")
    rows = []
    for number in range(answers):
        answerable = number % 3 > 0
        relevance = rng.gauss(0.6 if answerable else 0.2, 0.15)
        evidence = Evidence(relevance, relevance / 3, -0.5, -1.0, 0.4, True)._asdict()
        features = {f"evidence_{name}": float(value) for name, value in evidence.items()}
        row = {"mode": "mplus", "answerable": answerable, "declined": number % 30 == 0, "features": features}
        row["contains"] = answerable and not row["declined"] and rng.random() < relevance * 1.4
        rows += [row, {**row, "mode": "mplus-attention", "contains": False}]
    (folder / ANSWERS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
