"""From raw answers of one run to a calibration, and from those of another to how good it is.

An answer that declines by itself is left out of the fit: what is fitted is how likely an answer is to be right once
one is given. A question that nothing answers can only be answered wrongly.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mplus.checkpoint.parts import PARTS_FILE
from mplus.confidence import Calibration, Evidence, fit_calibration
from mplus.evaluation.data_files import read_records
from mplus.evaluation.metrics import Abstention, abstention
from mplus.evaluation.raw_answers import ANSWERS, RUN

MOST_WRONGLY_DECLINED = 0.1
"""Share of answerable questions that a recommended threshold may cost at most."""


class Given(NamedTuple):
    """One raw answer, as far as calibration is concerned."""

    evidence: Evidence
    is_right: bool
    is_answerable: bool
    is_declined: bool


class Threshold(NamedTuple):
    """What ``abstain_below`` does at one value.

    Attributes:
        below: The value.
        abstention: Precision, recall and wrongly declined, what was declined without it included.
        right: Share of answerable questions that are still answered right.
    """

    below: float
    abstention: Abstention
    right: float | None


class Check(NamedTuple):
    """How good a calibration is on answers it was not fitted on.

    Attributes:
        error: Expected calibration error: mean distance between confidence and share of right answers, over ten
            equally filled bins.
        thresholds: What each value of ``abstain_below`` does.
        recommended: The value that declines most of what nothing answers, at most one in ten answerable questions.
    """

    error: float
    thresholds: tuple[Threshold, ...]
    recommended: Threshold


def given_answers(folder: Path, mode: str) -> list[Given]:
    """Raw answers of a run by one way of answering, with their evidence.

    Raises:
        ValueError: No run there, or none of that mode with evidence.
    """
    path = folder / ANSWERS
    if not path.exists():
        raise ValueError(f"{folder} holds no run: expected {ANSWERS}. Make one with mplus evaluate --out {folder}.")
    found: list[Given] = []
    for row in read_records(path):
        if row["mode"] == mode and (evidence := _evidence(row.get("features", {}))) is not None:
            right = bool(row["answerable"] and row["contains"])
            found.append(Given(evidence, right, bool(row["answerable"]), bool(row["declined"])))
    if not found:
        raise ValueError(f"{path} has no answers of mode {mode!r} with evidence: expected some. Pass --mode.")
    return found


def _evidence(features: dict[str, float]) -> Evidence | None:
    values = {name: features.get(f"evidence_{name}") for name in Evidence._fields}
    if any(value is None for value in values.values()):
        return None
    return Evidence(**{**values, "recalled": bool(values["recalled"])})  # pyright: ignore[reportArgumentType]


def recall_of(folder: Path) -> str:
    """The scorer a run recalled with."""
    return json.loads((folder / RUN).read_text(encoding="utf-8"))["layout"]["recall"]


def read_of(folder: Path, mode: str) -> str:
    """How a run read memory in one way of answering: with memory tokens before its prompts, or as text in them."""
    prefixes = [record.get("prefix_tokens", 1) for record in read_records(folder / ANSWERS) if record["mode"] == mode]
    return "latent" if any(prefixes) or not prefixes else "text"


def fitted(answers: Sequence[Given], *, recall: str, read: str = "latent") -> Calibration:
    """The calibration that fits answers.

    Raises:
        ValueError: There are only right or only wrong ones.
    """
    kept = [one for one in answers if not one.is_declined]
    return fit_calibration(
        [one.evidence for one in kept],
        [one.is_right for one in kept],
        recall=recall,  # pyright: ignore[reportArgumentType]
        read=read,  # pyright: ignore[reportArgumentType]
    )


def checked(answers: Sequence[Given], calibration: Calibration) -> Check:
    """How good a calibration is on these answers."""
    confidences = [calibration.confidence(one.evidence) for one in answers]
    thresholds = tuple(_at(answers, confidences, step / 100) for step in range(0, 100, 5))
    within = [t for t in thresholds if (t.abstention.wrongly_declined or 0.0) <= MOST_WRONGLY_DECLINED]
    recommended = max(within or thresholds[:1], key=lambda t: (t.abstention.recall or 0.0, -t.below))
    spoken = [(c, one.is_right) for c, one in zip(confidences, answers, strict=True) if not one.is_declined]
    return Check(_calibration_error(spoken), thresholds, recommended)


def _at(answers: Sequence[Given], confidences: Sequence[float], below: float) -> Threshold:
    declined = [one.is_declined or c < below for one, c in zip(answers, confidences, strict=True)]
    right = [one.is_right and not no for one, no in zip(answers, declined, strict=True) if one.is_answerable]
    return Threshold(
        below,
        abstention(declined, [one.is_answerable for one in answers]),
        sum(right) / len(right) if right else None,
    )


def _calibration_error(pairs: Sequence[tuple[float, bool]]) -> float:
    if not pairs:
        return 0.0
    ordered = np.array(sorted(pairs), dtype=np.float64)
    bins = [part for part in np.array_split(ordered, 10) if len(part)]
    return float(sum(len(part) * abs(part[:, 0].mean() - part[:, 1].mean()) for part in bins) / len(ordered))


def keep(calibration: Calibration, folder: Path) -> None:
    """Write a calibration into a model's ``mplus.json``; its weights are not touched.

    Raises:
        ValueError: The folder holds no trained parts.
    """
    path = folder / PARTS_FILE
    if not path.exists():
        raise ValueError(f"{folder} holds no {PARTS_FILE}: expected a saved model or trained parts to calibrate.")
    description = json.loads(path.read_text(encoding="utf-8"))
    description["calibration"] = calibration.model_dump()
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)
