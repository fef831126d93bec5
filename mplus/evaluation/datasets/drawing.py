"""Which questions of a file are asked, and what they accept."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mplus.evaluation.tasks import Task

T = TypeVar("T")
Reader = Callable[[Path, int, int, random.Random], Task]
"""File, answerable questions, unanswerable questions, and what decides which."""


class TooFewError(ValueError):
    """A file has fewer questions than are asked for.

    Attributes:
        wanted: How many are asked for.
        found: How many there are.
    """

    def __init__(self, path: Path, what: str, wanted: int, found: int) -> None:
        self.wanted, self.found = wanted, found
        super().__init__(f"{path}: {wanted} {what} wanted, but it has {found}. Ask for at most {found}.")


def spread(groups: Sequence[Sequence[T]], count: int, rng: random.Random) -> list[T]:
    """Up to ``count`` items, as evenly from all groups as they allow, in random order within each."""
    shuffled = [rng.sample(list(group), len(group)) for group in groups]
    longest = max(map(len, shuffled), default=0)
    return [group[turn] for turn in range(longest) for group in shuffled if turn < len(group)][:count]


def enough(path: Path, what: str, wanted: int, found: int) -> None:
    """Refuse to ask for more than there is.

    Raises:
        TooFewError: Fewer were found than wanted.
    """
    if found < wanted:
        raise TooFewError(path, what, wanted, found)
