"""``MemoryStore``: many named memories in one folder, safe across threads and processes."""

import re
import shutil
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mplus.errors import MemoryLimitError, MemoryLockedError, MemoryNotFoundError
from mplus.memory.manifest import MANIFEST
from mplus.memory.memory import Memory
from mplus.memory.snapshot import MemoryMaker, load_memory, save_memory

NAME = re.compile(r"[^\W_][\w.@+-]{0,127}")


@dataclass(frozen=True)
class StoredMemory:
    """One memory on disk."""

    name: str
    nbytes: int
    saved: float
    """Unix time of the last save."""


class MemoryStore:
    """Named memories under one folder.

    ``with store.open("alice", model) as memory:`` loads or makes a memory, holds its lock, and saves it at
    the end if it changed.

    Args:
        root: The folder; made private to the user.
        max_memory_bytes: Most bytes of one saved memory; None for no limit.
        max_total_bytes: Most bytes of all of them.
    """

    def __init__(
        self, root: str | Path, *, max_memory_bytes: int | None = None, max_total_bytes: int | None = None
    ) -> None:
        self.root = Path(root).expanduser()
        self.max_memory_bytes, self.max_total_bytes = max_memory_bytes, max_total_bytes
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._locks: dict[str, threading.RLock] = {}
        self._guard = threading.Lock()

    def path(self, name: str) -> Path:
        """Where a memory is kept.

        Raises:
            ValueError: A name that could leave the folder, is too long, or holds odd characters.
        """
        if not NAME.fullmatch(name) or ".." in name:
            raise ValueError(
                f"Memory name {name[:60]!r} ({len(name)} characters): expected 1 to 128 letters, digits, or any of "
                "'. _ @ + -', beginning with a letter or digit."
            )
        return self.root / name

    @contextmanager
    def open(self, name: str, model: MemoryMaker, *, timeout: float = 60.0) -> Generator[Memory]:
        """A memory to use for a while: nobody else has it, and changes are saved at the end.

        Raises:
            ValueError: A bad name.
            MemoryLockedError: Someone else still has it after ``timeout`` seconds.
            MemoryLimitError: It would outgrow a quota; the saved state is as it was.
            CorruptMemoryError: The saved state is damaged.
        """
        with self._held(name, timeout):
            folder = self.path(name)
            memory = load_memory(folder, model) if (folder / MANIFEST).exists() else model.new_memory()
            before = memory.fingerprint
            yield memory
            if memory.fingerprint != before or not (folder / MANIFEST).exists():
                self._check_quota(name, memory)
                save_memory(memory, folder)

    def list(self) -> list[StoredMemory]:
        """Every saved memory, by name."""
        return [
            StoredMemory(path.name, _size(path), (path / MANIFEST).stat().st_mtime)
            for path in sorted(self.root.iterdir())
            if (path / MANIFEST).exists()
        ]

    def delete(self, name: str) -> None:
        """Remove a memory for good.

        Raises:
            MemoryNotFoundError: There is none of that name.
        """
        with self._held(name, 60.0):
            folder = self._existing(name)
            doomed = self.root / f".deleted-{name}-{time.time_ns()}"
            folder.rename(doomed)
            shutil.rmtree(doomed)

    def copy(self, name: str, new_name: str) -> None:
        """A second memory with the same content.

        Raises:
            MemoryNotFoundError: There is none called ``name``.
            ValueError: ``new_name`` is taken or not a good name.
        """
        target = self.path(new_name)
        if target.exists():
            raise ValueError(f"A memory called {new_name!r} exists already. Delete it first, or choose another name.")
        with self._held(name, 60.0):
            work = self.root / f".copying-{new_name}-{time.time_ns()}"
            shutil.copytree(self._existing(name), work)
            work.rename(target)

    def _existing(self, name: str) -> Path:
        folder = self.path(name)
        if not (folder / MANIFEST).exists():
            known = ", ".join(memory.name for memory in self.list()[:8]) or "none yet"
            raise MemoryNotFoundError(f"No memory called {name!r} in {self.root}; there are: {known}.")
        return folder

    @contextmanager
    def _held(self, name: str, timeout: float) -> Generator[None]:
        from filelock import FileLock, Timeout

        self.path(name)
        with self._guard:
            lock = self._locks.setdefault(name, threading.RLock())
        started = time.monotonic()
        message = f"Memory {name!r} is in use elsewhere and was not free within {timeout:g} s. Try again later."
        if not lock.acquire(timeout=timeout):
            raise MemoryLockedError(message)
        try:
            left = max(timeout - (time.monotonic() - started), 0.0)
            try:
                with FileLock(str(self.root / f".{name}.lock"), timeout=left):
                    yield
            except Timeout as error:
                raise MemoryLockedError(message) from error
        finally:
            lock.release()

    def _check_quota(self, name: str, memory: Memory) -> None:
        size = memory.nbytes
        if self.max_memory_bytes is not None and size > self.max_memory_bytes:
            raise MemoryLimitError(
                f"Memory {name!r} has {size:,} bytes, more than max_memory_bytes={self.max_memory_bytes:,}. Forget "
                "sources, or raise the limit; the saved state is as it was."
            )
        if self.max_total_bytes is not None:
            others = sum(stored.nbytes for stored in self.list() if stored.name != name)
            if others + size > self.max_total_bytes:
                raise MemoryLimitError(
                    f"All memories would have {others + size:,} bytes, more than max_total_bytes="
                    f"{self.max_total_bytes:,}. Delete some, or raise the limit; the saved state is as it was."
                )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
