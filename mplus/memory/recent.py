"""The most recently used memories of a store, kept in host memory up to a limit."""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus.forks import ProcessLock
from mplus.memory.mapped import ShardPlane
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState
from mplus.storage.folder import Folder
from mplus.storage.names import MANIFEST
from mplus.traces import drop_traces


@dataclass(frozen=True)
class _Held:
    memory: Memory
    saved_as: bytes
    """The beginning of its manifest, which tells whether another process has saved the memory since."""
    model: "weakref.ref[Any]"
    nbytes: int


class RecentMemories:
    """Memories by name; the least recently used are dropped when the limit is reached.

    Args:
        max_bytes: Most bytes of host memory that they may take together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._guard = ProcessLock()

    def get(self, name: str, model: Any, saved_as: bytes, load: Callable[[], Memory]) -> Memory:
        """A fork of the held memory if that still equals the one on disk, else the result of ``load``."""
        with self._guard:
            held = self._held.get(name)
            if held is not None and held.saved_as == saved_as and held.model() is model:
                self._held.move_to_end(name)
                return held.memory.fork()
        if held is not None and held.saved_as != saved_as:
            drop_traces()  # another process saved it, and may have forgotten something
        memory = load()
        self.put(name, model, saved_as, memory)
        return memory

    def put(self, name: str, model: Any, saved_as: bytes, memory: Memory) -> None:
        """Keep a fork of a memory that has just been saved or loaded."""
        held = _Held(memory.fork(), saved_as, weakref.ref(model), resident_bytes(memory.state))
        with self._guard:
            self._held[name] = held
            self._held.move_to_end(name)
            total = sum(other.nbytes for other in self._held.values())
            while total > self._max_bytes and self._held:
                total -= self._held.popitem(last=False)[1].nbytes

    def drop(self, name: str) -> None:
        """Drop a memory that has changed or is deleted."""
        with self._guard:
            held = self._held.pop(name, None)
        if held is not None:
            drop_traces()

    def drop_changed(self, is_saved_as: Callable[[str, bytes], bool]) -> None:
        """Drop memories that are no longer what is on disk.

        Args:
            is_saved_as: Whether the memory of a name is still the one whose manifest begins like that.
        """
        with self._guard:
            held = [(name, one.saved_as) for name, one in self._held.items()]
        for name, saved_as in held:
            if not is_saved_as(name, saved_as):
                self.drop(name)


def identity(folder: Path) -> bytes:
    """Identifies a save: the beginning of its manifest, which holds its checksum; empty if there is none.

    Raises:
        CorruptMemoryError: Something else than a file is in its place, or it may not be read.
    """
    try:
        with Folder(folder).open(MANIFEST) as file:
            return file.read(256)
    except FileNotFoundError:
        return b""


def resident_bytes(state: MemoryState) -> int:
    """Bytes of host and device memory that a state takes; tensors in a file count as none."""
    total = 0
    for track in state.tracks:
        total += track.short_term.nbytes + track.vectors.nbytes + (0 if track.warm is None else track.warm.nbytes)
        for segment in (*track.pending.segments, *track.long_term.segments):
            total += sum(plane.nbytes for plane in segment.planes if not isinstance(plane, ShardPlane))
    return total
