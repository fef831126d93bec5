"""The locks of a store: one thread of one process at a time has a memory open."""

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mplus.errors import MemoryLockedError, MemorySaveError
from mplus.forks import ProcessLock, renewed_after_fork
from mplus.given import check_number

POLL_SECONDS = 0.01


class StoreLocks:
    """Locks of memories by name, against other threads and against other processes.

    A lock belongs to the process that took it: a forked child holds none of its parent's and releases none.

    Args:
        root: The folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._guard = ProcessLock()
        self._begin()
        renewed_after_fork(self)

    def _begin(self) -> None:
        self._locks: dict[str, threading.Lock] = {}
        self._holders: dict[str, int] = {}

    def after_fork(self) -> None:
        """Begin without locks. ``filelock`` closes the files of the parent's here, which leaves them to the parent."""
        self._begin()

    @contextmanager
    def held(self, name: str, timeout: float, entered: Callable[[], object] = lambda: None) -> Generator[None]:
        """Hold the lock of a memory in a ``with`` block.

        Args:
            name: The memory.
            timeout: Seconds to wait while another thread or process holds it.
            entered: Called once the lock is held.

        Raises:
            ValueError: ``timeout`` is no number of seconds.
            MemoryLockedError: It is still held elsewhere after ``timeout`` seconds, or in this very thread.
            MemorySaveError: The lock cannot be written to disk.
        """
        check_number("timeout", timeout, "a number of seconds, 0 or more")
        message = f"Memory {name!r} is in use elsewhere and was not free within {timeout:g} s. Try again later."
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        self.refuse_again(name)
        started, owner = time.monotonic(), os.getpid()
        if not lock.acquire(timeout=timeout):
            raise MemoryLockedError(message)
        try:
            self._holders[name] = threading.get_ident()
            held = self._file_lock(name, max(timeout - (time.monotonic() - started), 0.0), message)
            try:
                self._enter(name, entered)
                yield
            finally:
                if os.getpid() == owner:
                    held.release()
        finally:
            if os.getpid() == owner:
                self._holders.pop(name, None)
                lock.release()

    def refuse_again(self, name: str) -> None:
        """Have this thread use the memory that it has open.

        Raises:
            MemoryLockedError: It holds the memory's lock.
        """
        if self._holders.get(name) == threading.get_ident():
            raise MemoryLockedError(f"Memory {name!r} is open in this very thread already. Use the one that is open.")

    def note_use(self, name: str) -> None:
        """Note that a memory is read now, if it was ever held here and the disk can be written to."""
        with suppress(OSError):
            os.utime(self._path(name))

    def _path(self, name: str) -> Path:
        return self._root / f".{name}.lock"

    def _enter(self, name: str, entered: Callable[[], object]) -> None:
        try:
            entered()
        except OSError as error:
            raise self._not_opened(name, error) from error

    def _not_opened(self, name: str, error: OSError) -> MemorySaveError:
        return MemorySaveError(
            error.errno,
            f"{self._root}: memory {name!r} cannot be opened for writing there ({error.strerror or error}). "
            "Free space or allow writing, or use MemoryStore.load to only read it",
        )

    def _file_lock(self, name: str, timeout: float, message: str) -> Any:
        """The lock against other processes, taken."""
        from filelock import FileLock, Timeout

        path = self._path(name)
        lock = FileLock(str(path), timeout=timeout, mode=0o600, poll_interval=POLL_SECONDS)
        try:
            lock.acquire()
            os.utime(path)
        except Timeout as error:
            raise MemoryLockedError(message) from error
        except OSError as error:
            lock.release()
            raise self._not_opened(name, error) from error
        return lock
