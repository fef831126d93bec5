"""Tells the processes of a store that something was forgotten, so that each drops what it keeps of it to save work."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from mplus.memory.state import MemoryState

NOTE = ".forgotten"
"""A file that grows by a byte whenever something is forgotten or deleted; no name or text is in it."""
_ONLY_FILES = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""A link in its place is not followed, and a pipe not waited for."""


class Forgettings:
    """What was forgotten in the memories of a store, by any process.

    Args:
        root: The folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self._file = root / NOTE
        self._seen = self._count()

    def note(self) -> None:
        """Say that something was forgotten, once nothing of it is on disk."""
        with suppress(OSError):  # a full disk: other processes notice when they next use the memory
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _ONLY_FILES, 0o600)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.write(descriptor, b".")
            finally:
                os.close(descriptor)

    def is_new(self) -> bool:
        """Whether something was forgotten since this was asked last."""
        before, self._seen = self._seen, self._count()
        return self._seen != before

    def _count(self) -> int:
        try:
            return self._file.stat().st_size
        except OSError:
            return 0


def lost_sources(before: MemoryState, now: MemoryState) -> bool:
    """Whether a source of an earlier state is no longer the same one's: it was forgotten, or the state rolled back."""
    if before.sources is now.sources:
        return False
    if len(now.sources) < len(before.sources):
        return True
    return any(
        not old.forgotten and (new.forgotten or (new.name, new.first_written) != (old.name, old.first_written))
        for old, new in zip(before.sources, now.sources, strict=False)
    )
