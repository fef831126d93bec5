"""Questions that memory has nothing to say to: common knowledge and ordinary requests, asked beside what was told."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from mplus.evaluation.data_files import answer_texts, field_of, numbered_records
from mplus.evaluation.metrics import normalised
from mplus.evaluation.tasks import COMMON, Question

HELD_OUT = 10
"""One question in so many is for judging, by its words; training leaves these out."""
NO_ANSWERS = ("all of ", "none of ", "both of ", "all the above")
"""How answers begin that only make sense beside choices."""


def is_held_out(question: str) -> bool:
    """Whether a common question is for judging, never for training."""
    digest = hashlib.sha256(normalised(question).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT == 0


def common_questions(path: Path, count: int, beside: Sequence[Question], rng: random.Random) -> list[Question]:
    """Held-out questions of a file, each asked beside what another question is about.

    Args:
        path: JSON lines of ``question`` and ``answers``; a question without answers is compared with the reply that an
            empty memory gives. Lines with a ``text`` are left out: memory is to know these.
        count: Most questions.
        beside: Whose contexts and conversations they are asked beside, in turn.
        rng: Decides which.

    Raises:
        ValueError: The file has no such question.
    """
    found: dict[str, tuple[str, ...]] = {}
    for _, record in numbered_records(path):
        asked = str(field_of(record, "question", path)).strip()
        answers = answer_texts(record.get("answers") or [])
        is_choice = any(answer.lower().startswith(NO_ANSWERS) for answer in answers)
        if asked and not record.get("text") and not is_choice and is_held_out(asked):
            found.setdefault(asked, answers)
    if not found:
        raise ValueError(
            f"{path}: no question for judging; expected JSON lines of question and answers without text. One question "
            f"in {HELD_OUT} is taken, by its words."
        )
    drawn = rng.sample(list(found), min(count, len(found)))
    where = rng.sample(list(beside), len(beside)) or [Question("", "", (), ())]
    name = path.name.split(".")[0]
    return [
        Question(
            f"{name}/{place}",
            text,
            found[text],
            (near := where[place % len(where)]).contexts,
            kind=name,
            group=COMMON,
            turns=near.turns,
        )
        for place, text in enumerate(drawn)
    ]
