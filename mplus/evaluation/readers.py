"""Tasks read from files in their public formats."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mplus.evaluation.tasks import Question, Task
from mplus.evaluation.texts import field_of, read_json

T = TypeVar("T")
Reader = Callable[[Path, int, int, random.Random], Task]
"""File, answerable questions, unanswerable questions, and what decides which."""


def squad(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """SQuAD JSON: a question is about its paragraph; a few paragraphs more can be asked for in vain.

    An unanswerable question is one whose own paragraph is written nowhere; another one of its article is.
    """
    paragraphs: list[tuple[int, str, list[tuple[str, tuple[str, ...]]]]] = []
    for number, article in enumerate(field_of(read_json(path), "data", path)):
        for paragraph in field_of(article, "paragraphs", path):
            asked = [
                (item["question"].strip(), tuple(dict.fromkeys(a["text"] for a in item["answers"])))
                for item in paragraph["qas"]
                if item["answers"]
            ]
            paragraphs.append((number, paragraph["context"], asked))
    rng.shuffle(paragraphs)
    withheld = [p for p in paragraphs if p[2]][:unanswerable]
    paragraphs = [p for p in paragraphs if p not in withheld]
    pairs = _spread([[(place, qa) for qa in p[2]] for place, p in enumerate(paragraphs)], questions, rng)
    _enough(path, "questions", questions, len(pairs))
    _enough(path, "paragraphs to withhold for unanswerable questions", unanswerable, len(withheld))
    contexts: dict[str, str] = {}
    found: list[Question] = []
    for place, (text, answers) in pairs:
        name = f"paragraph-{place}"
        contexts[name] = paragraphs[place][1]
        found.append(Question(f"q{len(found)}", text, answers, (name,), (name,), "answerable"))
    used = {place for place, _ in pairs}
    for number, (article, _, asked) in enumerate(withheld):
        siblings = [place for place, p in enumerate(paragraphs) if p[0] == article] or list(range(len(paragraphs)))
        place = rng.choice(siblings)
        used.add(place)
        contexts.setdefault(f"paragraph-{place}", paragraphs[place][1])
        found.append(Question(f"unknown{number}", rng.choice(asked)[0], (), (f"paragraph-{place}",), (), "unknown"))
    spare = tuple(p[1] for place, p in enumerate(paragraphs) if place not in used)
    return Task("squad", contexts, tuple(found), spare)


def _spread(groups: Sequence[Sequence[T]], count: int, rng: random.Random) -> list[T]:
    """Up to ``count`` items, as evenly from all groups as they allow, in random order within each."""
    shuffled = [rng.sample(list(group), len(group)) for group in groups]
    longest = max(map(len, shuffled), default=0)
    return [group[turn] for turn in range(longest) for group in shuffled if turn < len(group)][:count]


def _enough(path: Path, what: str, wanted: int, found: int) -> None:
    if found < wanted:
        raise ValueError(f"{path}: {wanted} {what} wanted, but it has {found}. Ask for at most {found}.")


READERS: dict[str, Reader] = {"squad": squad}
