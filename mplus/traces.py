"""What a process keeps of texts beside its memories, to save work, such as the latest questions.

Nobody knows which memory such a text was said to, so all of it is dropped whenever something is forgotten or deleted.
"""

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar, runtime_checkable

from mplus.forks import ProcessLock
from mplus.weak_identity_set import WeakIdentitySet

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


@runtime_checkable
class Traces(Protocol):
    """An object that keeps texts, or what was made of them, for a while."""

    def drop_traces(self) -> None:
        """Drop what is kept; it is made again when it is needed."""
        ...


_OWNERS = WeakIdentitySet[Traces]()


def dropped_when_forgotten(owner: Traces) -> None:
    """Have ``owner.drop_traces()`` called whenever something is forgotten, for as long as ``owner`` lives."""
    _OWNERS.add(owner)


def drop_traces() -> None:
    """Drop what is kept beside memories, because something was forgotten."""
    for owner in _OWNERS:
        owner.drop_traces()


class LatestTraces(Generic[Key, Made]):
    """What was made of the latest texts, until something is forgotten: one of them may have said it.

    Threads may share it, and a forked child begins with what its parent had.

    Args:
        most: How many texts it keeps; beyond that, what was put first is dropped.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: dict[Key, Made] = {}
        self._guard = ProcessLock()
        dropped_when_forgotten(self)

    def __len__(self) -> int:
        return len(self._made)

    def get(self, text: Key) -> Made | None:
        """What was made of a text; None if that is not kept."""
        with self._guard:
            return self._made.get(text)

    def put(self, text: Key, made: Made) -> None:
        """Keep what was made of a text; what was put first makes room."""
        with self._guard:
            self._made[text] = made
            if len(self._made) > self._most:
                self._made.pop(next(iter(self._made)))

    def drop_traces(self) -> None:
        """Drop everything."""
        with self._guard:
            self._made.clear()
