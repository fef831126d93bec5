"""``MadeOfStates``: what reads made of memories' states, for the next read of the same ones."""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar
from weakref import ref

from mplus.forks import ProcessLock
from mplus.memory.state import MemoryState

MOST_KEPT = 16
"""Most results that are kept."""

Made = TypeVar("Made")


class MadeOfStates(Generic[Made]):
    """What was made of states for reads, kept while all of these are alive: nothing forgotten is held."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, ...], tuple[list[ref[MemoryState]], Made]] = {}
        self._guard = ProcessLock()  # reentrant: garbage collection can drop a state while it is held

    def get(self, states: Sequence[MemoryState], how: Hashable = None) -> Made | None:
        """What was made of these states in some way; None if nothing was."""
        with self._guard:
            found = self._known.get((how, *map(id, states)))
            alive = found is not None and all(r() is s for r, s in zip(found[0], states, strict=True))
            return found[1] if found is not None and alive else None

    def put(self, states: Sequence[MemoryState], made: Made, how: Hashable = None) -> None:
        """Keep what was made of these states; the oldest is dropped beyond ``MOST_KEPT``."""
        key = (how, *map(id, states))

        def drop(_: object) -> None:
            with self._guard:
                self._known.pop(key, None)

        with self._guard:
            self._known.pop(key, None)
            self._known[key] = ([ref(state, drop) for state in states], made)
            while len(self._known) > MOST_KEPT:
                self._known.pop(next(iter(self._known)))
