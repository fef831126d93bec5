"""Passages with questions of many origins: JSON lines with ``text``, ``question``, ``answers`` and ``kind``."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from mplus.evaluation.common_questions import is_held_out
from mplus.training.chunk.answer_sentence import answering_sentence
from mplus.training.chunk.questions import Question

LONGEST_TEXT = 1500
"""Characters; longer texts are left out."""
LONGEST_ANSWER = 120


PERSONAL = re.compile(r"\b(i|my|me|mine|our|we|us|i'm|i've)\b", re.IGNORECASE)


class BroadRows(NamedTuple):
    """What files hold.

    Attributes:
        texts: Different passages.
        questions: About them; ``passages`` are places in ``texts``.
    """

    texts: list[str]
    questions: list[Question]


def broad_files(paths: Sequence[Path]) -> list[Path]:
    """The files of some files and folders, in order."""
    found = [sorted(path.glob("*.jsonl*")) if path.is_dir() else [path] for path in paths]
    return [file for files in found for file in files]


def general_questions(paths: Sequence[Path]) -> list[str]:
    """Requests and questions about what everybody knows: those without a text that say nothing of who asks."""
    asked = [row["question"] for path in paths for row in read_rows(path) if row["kind"] == "request"]
    return [text for text in asked if not PERSONAL.search(text) and not is_held_out(text)]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file.

    Raises:
        ValueError: A line is not JSON, or a field is missing.
    """
    with fsspec.open(str(path), "rt", encoding="utf-8", compression="infer") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield {name: row[name] for name in ("text", "question", "answers", "kind")}
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number}: {type(error).__name__} {error}; expected JSON with text, question, "
                    "answers and kind."
                ) from error


def read_answered(paths: list[Path], most_texts: int, rng: random.Random) -> BroadRows:
    """Rows whose answer stands in the text; of each file at most ``most_texts`` texts, drawn at random."""
    texts: list[str] = []
    questions: list[Question] = []
    for path in paths:
        of_text: dict[str, list[Question]] = {}
        for row in read_rows(path):
            if question := _answered(row["text"], row["question"], row["answers"]):
                of_text.setdefault(row["text"], []).append(question)
        for text in rng.sample(list(of_text), min(most_texts, len(of_text))):
            questions += [Question(q.text, q.answers, (len(texts),), q.reply) for q in of_text[text]]
            texts.append(text)
    return BroadRows(texts, questions)


def _answered(text: str, asked: str, answers: list[str]) -> Question | None:
    """The row as a question; None where its answer is not a part of the text."""
    if not asked or not answers or len(text) > LONGEST_TEXT:
        return None
    answer = answers[0].strip()
    if not 1 < len(answer) <= LONGEST_ANSWER:
        return None
    answer = answer.rstrip(".")
    stands_there = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)
    if answer.lower() in ("yes", "no") or stands_there is None:
        return None
    reply = answering_sentence(text, asked, answer)
    return Question(asked, (answer,), (-1,), reply) if reply else None
