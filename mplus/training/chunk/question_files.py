"""Files of questions and of conversations, read with errors that say what is wrong with them."""

import json
import random
from pathlib import Path
from typing import NamedTuple

from mplus.training.chunk.questions import Question, dialogues, read_text, squad


class Passages(NamedTuple):
    """What a SQuAD file holds."""

    texts: list[str]
    questions: list[Question]
    articles: list[int]
    """Per passage, the article it is from."""


def read_squad(path: Path) -> Passages:
    """Passages and questions of a SQuAD JSON file.

    Raises:
        ValueError: No such file, or another format.
    """
    try:
        found = Passages(*squad(path))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"squad={str(path)!r}: not SQuAD JSON ({type(error).__name__}: {error}). Expected data, paragraphs, "
            "context, qas with question and answers."
        ) from error
    if not found.questions:
        raise ValueError(f"squad={str(path)!r}: no questions in it.")
    return found


def read_dialogues(path: Path, limit: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Some conversations of a file: their ids, and each as text.

    Raises:
        ValueError: No such file, or another format.
    """
    try:
        return dialogues(path, limit, rng)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"dialogues={str(path)!r}: not conversations ({type(error).__name__}: {error}). Expected a JSON object a "
            'line, with an "id" and "turns" as [["u" or "s", text], …].'
        ) from error


def has_facts(path: Path, fewest: int) -> bool:
    """Whether a file has enough conversations, with facts, for the default model's mixture."""
    lines = read_text(path).splitlines()
    return len(lines) >= fewest and "facts" in json.loads(lines[0])
