"""The memories of a store that were used last, kept in host memory until others need the room."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus.memory.mapped import ShardPlane
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState
from mplus.storage.names import MANIFEST


@dataclass(frozen=True)
class _Held:
    memory: Memory
    saved_as: bytes
    """What its manifest began with: the same memory may have been saved by another process since."""
    model: "weakref.ref[Any]"
    nbytes: int


class RecentMemories:
    """Memories by name, the least recently used of which are dropped.

    Args:
        max_bytes: Most bytes of host memory that they may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, name: str, model: Any, saved_as: bytes, load: Callable[[], Memory]) -> Memory:
        """A memory of one's own, equal to what is on disk."""
        with self._guard:
            held = self._held.get(name)
            if held is not None and held.saved_as == saved_as and held.model() is model:
                self._held.move_to_end(name)
                return held.memory.fork()
        memory = load()
        self.put(name, model, saved_as, memory)
        return memory

    def put(self, name: str, model: Any, saved_as: bytes, memory: Memory) -> None:
        """Remember what has just been saved or loaded."""
        held = _Held(memory.fork(), saved_as, weakref.ref(model), resident_bytes(memory.state))
        with self._guard:
            self._held[name] = held
            self._held.move_to_end(name)
            total = sum(other.nbytes for other in self._held.values())
            while total > self._max_bytes and self._held:
                total -= self._held.popitem(last=False)[1].nbytes

    def drop(self, name: str) -> None:
        """Forget a memory that is no longer what it was."""
        with self._guard:
            self._held.pop(name, None)


def identity(folder: Path) -> bytes:
    """What tells one save from another: the beginning of its manifest, which holds its checksum; empty without one."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return file.read(256)
    except FileNotFoundError:
        return b""


def resident_bytes(state: MemoryState) -> int:
    """Bytes of host and device memory that a state takes; what waits in a file takes none."""
    total = 0
    for track in state.tracks:
        total += track.short_term.nbytes
        for segment in (*track.pending.segments, *track.long_term.segments):
            total += sum(plane.nbytes for plane in segment.planes if not isinstance(plane, ShardPlane))
    return total
