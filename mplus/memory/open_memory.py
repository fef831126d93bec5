"""``OpenMemory``: a memory that is open in a ``with`` block of a store."""

import os
from typing import NamedTuple

from mplus.errors import MemoryLockedError
from mplus.memory.forgettings import lost_sources
from mplus.memory.memory import Memory, MemoryMaker
from mplus.memory.saved_memories import SavedMemories
from mplus.memory.snapshots import Snapshot
from mplus.memory.state import MemoryState


class OpenMemory:
    """A memory while it is open, and which of its changes are saved.

    Args:
        name: Its name.
        model: The model that reads and writes it; it makes the memory if none is saved.
        saves: Where it is saved.
        keep_empty: Whether a new memory is saved even if nothing was written into it.
    """

    def __init__(self, name: str, model: MemoryMaker, saves: SavedMemories, *, keep_empty: bool = True) -> None:
        self._name, self._model, self._saves = name, model, saves
        self.memory = saves.read(name, model) if saves.has(name) else model.new_memory()
        is_saved = saves.is_as_wanted(name) and not self.memory.has_unsaved_jump
        is_dispensable = is_saved or not (keep_empty or saves.has(name))
        self._saved = self.memory.fork() if is_dispensable else None  # what equals it is not saved
        self._known = _Known.of(self.memory) if saves.has(name) else None
        self._key, self._owner = saves.key(name), os.getpid()

    def save(self) -> None:
        """Save what has changed since the last save, if anything has.

        Raises:
            MemoryLockedError: This is a forked child of the process that opened it.
            MemoryLimitError: It would exceed a quota; the saved state is unchanged.
            MemorySaveError: The disk is full or read-only; the saved state is unchanged.
            MemoryKeyError: Its key was destroyed while it was open.
        """
        current = self.memory.fork()
        if self._saved is not None and current.is_unchanged_since(self._saved):
            return
        self._refuse_child()
        self._key = self._saves.key_to_save_with(self._name, self._key)
        self._saves.save(self._name, current, self._model, self._key, dispensable=self._saved)
        known = _Known.of(current)
        if self._known is not None and self._known.has_lost(known):
            self._saves.note_forgotten()
        self._saved, self._known = current, known

    def _refuse_child(self) -> None:
        """Refuse to save in a process that did not open the memory: its parent has it open and saves it."""
        if os.getpid() != self._owner:
            raise MemoryLockedError(
                f"Memory {self._name!r} was opened by process {self._owner}, of which this is a forked child. Open it "
                "here, after the fork; what was changed here is not saved."
            )


class _Known(NamedTuple):
    """What was in a memory when it was looked at; a memory itself goes on aging."""

    state: MemoryState
    snapshots: tuple[Snapshot, ...]

    @classmethod
    def of(cls, memory: Memory) -> "_Known":
        return cls(memory.state, tuple(memory.snapshots))

    def has_lost(self, now: "_Known") -> bool:
        """Whether something that was in the memory or its snapshots may no longer be there."""
        kept = {snapshot.id: snapshot.state for snapshot in now.snapshots}
        lost = (one.id not in kept or lost_sources(one.state, kept[one.id]) for one in self.snapshots)
        return lost_sources(self.state, now.state) or any(lost)
