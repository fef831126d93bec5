"""What was done with memories since the server started: how long it took, and how large they became. No contents."""

import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from mplus.forks import ProcessLock

KEPT = 500
"""Acts that are kept of each memory, the latest."""
MEMORIES = 1000
"""Memories whose acts are kept; the one that was used least recently is dropped first."""
NOTED = frozenset(
    {"chat", "text_completion", "recall", "search", "create", "write", "replace", "forget", "pin", "snapshot"}
    | {"discard", "rollback", "export", "import"}
)
"""Operations that are kept; looking at a memory is not."""


@dataclass(frozen=True, slots=True)  # a sixth of the bytes of a pydantic model, of which there may be half a million
class Act:
    """Something that was done with a memory."""

    time: float
    """Unix time when it was done."""
    operation: str
    """chat, text_completion, recall, search, write, forget, …"""
    seconds: float
    """From the request to the whole answer."""
    first_text_seconds: float | None = None
    """From the request to the first text of an answer."""
    nbytes: int | None = None
    """Bytes of the memory on disk afterwards."""


class Activity:
    """The latest acts of each memory; safe across threads."""

    def __init__(self) -> None:
        self.since = time.time()
        """Unix time since when they are kept."""
        self._acts: OrderedDict[str, deque[Act]] = OrderedDict()
        self._guard = ProcessLock()

    def note(self, memory: str, act: Act) -> None:
        """Keep an act."""
        with self._guard:
            self._acts.setdefault(memory, deque(maxlen=KEPT)).append(act)
            self._acts.move_to_end(memory)
            while len(self._acts) > MEMORIES:
                self._acts.popitem(last=False)

    def of(self, memory: str) -> list[Act]:
        """The acts of a memory, the oldest first."""
        with self._guard:
            return list(self._acts.get(memory, ()))

    def drop(self, memory: str) -> None:
        """Forget the acts of a memory."""
        with self._guard:
            self._acts.pop(memory, None)
