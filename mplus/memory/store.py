"""``MemoryStore``: many named memories in one folder, safe across threads and processes."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus.errors import MemoryLimitError, MemoryLockedError, MemoryNotFoundError, MemorySaveError, MPlusError
from mplus.memory.memory import Memory, MemoryMaker
from mplus.memory.recent import RecentMemories, identity
from mplus.memory.saving import load, save
from mplus.storage.encryption import MemoryKey
from mplus.storage.files import copy
from mplus.storage.folder import Folder
from mplus.storage.manifest import is_sealed
from mplus.storage.names import MANIFEST, check_name, check_spelling
from mplus.storage.place import not_saved
from mplus.storage.vault import KeyVault

POLL_SECONDS = 0.01
QUOTA_LOCK = ".quota.lock"


@dataclass(frozen=True)
class StoredMemory:
    """One memory on disk."""

    name: str
    nbytes: int
    saved: float
    """Unix time of the last save."""
    used: float
    """Unix time when it was last opened."""
    encrypted: bool


class MemoryStore:
    """Named memories under one folder.

    ``with store.open("alice", model) as memory:`` loads or makes a memory, holds its lock, and saves it at
    the end if it changed.

    Args:
        root: The folder; made private to the user.
        max_memory_bytes: Most bytes of one saved memory; None for no limit.
        max_total_bytes: Most bytes of all of them.
        max_resident_bytes: Most bytes of host memory for memories that are not open; beyond that, the least recently
            used are dropped, and read from disk when they are opened again.
        vault: Holds a key for each memory, with which it is encrypted; None does not encrypt.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        max_memory_bytes: int | None = None,
        max_total_bytes: int | None = None,
        max_resident_bytes: int = 2**30,
        vault: KeyVault | None = None,
    ) -> None:
        limits = {
            "max_memory_bytes": max_memory_bytes,
            "max_total_bytes": max_total_bytes,
            "max_resident_bytes": max_resident_bytes,
        }
        for limit, value in limits.items():
            if value is not None and value < 0:
                raise ValueError(f"{limit}={value}: expected a number of bytes, 0 or more.")
        self.root = Path(root).expanduser()
        self.max_memory_bytes, self.max_total_bytes = max_memory_bytes, max_total_bytes
        self.max_resident_bytes = max_resident_bytes
        self.vault = vault
        Folder(self.root).make()
        self._recent = RecentMemories(max_resident_bytes)
        self._locks: dict[str, threading.Lock] = {}
        self._holders: dict[str, int] = {}
        self._guard = threading.Lock()
        self._sweep()

    def __getstate__(self) -> dict[str, object]:
        """Folder and limits, for another process.

        Raises:
            ValueError: The store has a vault, whose keys must not get into a pickle.
        """
        if self.vault is not None:
            raise ValueError(
                "A MemoryStore with vault= cannot be pickled: keys stay where they are. Open it anew there."
            )
        limits = ("max_memory_bytes", "max_total_bytes", "max_resident_bytes")
        return {"root": self.root, **{name: getattr(self, name) for name in limits}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    check_name = staticmethod(check_name)
    """The name, if it is allowed."""

    def path(self, name: str) -> Path:
        """Where a memory is kept.

        Raises:
            ValueError: The name leads out of the folder, is too long, or has characters that are not allowed.
        """
        path = self.root / check_name(name)
        if path.is_symlink():
            raise ValueError(f"Memory name {name!r}: {path} is a link, which could lead anywhere. Remove it.")
        check_spelling(path)
        return path

    @contextmanager
    def open(
        self, name: str, model: MemoryMaker, *, timeout: float = 60.0, autosave_seconds: float | None = None
    ) -> Generator[Memory]:
        """Open a memory for exclusive use in a ``with`` block; changes are saved at the end.

        If the block ends with an error, only the changes that were autosaved are kept.

        Args:
            name: Name of the memory; it is made if there is none.
            model: The model that reads and writes it.
            timeout: Seconds to wait while another thread or process has it open.
            autosave_seconds: Also save at this interval if it has changed; None saves only at the end.

        Raises:
            ValueError: The name is not allowed.
            MemoryLockedError: It is still open elsewhere after ``timeout`` seconds.
            MemoryLimitError: It would exceed a quota; the saved state is unchanged.
            MemorySaveError: The disk is full or read-only; the saved state is unchanged.
            MemoryKeyError: It is encrypted and its key is not in the vault.
            CorruptMemoryError: The saved state is damaged.
        """
        with self._held(name, timeout):
            memory = self._loaded(name, model)
            saved = memory.fork() if self._is_as_wanted(name) else None

            def save() -> None:
                nonlocal saved
                current = memory.fork()
                if saved is None or not current.is_unchanged_since(saved):
                    self._save(name, current, model, dispensable=saved)
                    saved = current

            with nullcontext() if autosave_seconds is None else _autosaving(save, autosave_seconds):
                yield memory
            save()

    def load(self, name: str, model: MemoryMaker) -> Memory:
        """A memory as it was last saved, for reading while another process writes; changes to it are not saved.

        Raises:
            MemoryNotFoundError: There is none of that name.
            MemoryKeyError: It is encrypted and its key is not in the vault.
            CorruptMemoryError: The saved state is damaged.
        """
        return self._read(self._existing(name), model).fork()

    def put(self, name: str, memory: Memory) -> None:
        """Keep a copy of a memory, such as an imported one, under a new name.

        Raises:
            ValueError: ``name`` is taken or not allowed.
            MemoryLimitError: It would exceed a quota.
            MemorySaveError: The disk is full, or does not allow it.
        """
        with self._held(name, 60.0):
            self._refuse_taken(name)
            self._save(name, memory.fork(), None, dispensable=None)

    def list(self) -> list[StoredMemory]:
        """Every saved memory, by name."""
        found: list[StoredMemory] = []
        for path in sorted(self.root.iterdir()):
            try:
                if not path.name.startswith(".") and not path.is_symlink():
                    found.append(self._stored(path))
            except FileNotFoundError:
                continue  # not a memory, or deleted meanwhile
        return found

    def delete(self, name: str, *, timeout: float = 60.0) -> None:
        """Remove a memory for good, its encryption key too.

        Raises:
            MemoryNotFoundError: There is none of that name.
            MemoryLockedError: It is open elsewhere.
        """
        with self._held(name, timeout):
            folder = self._existing(name)
            doomed = self.root / f".deleted-{name}-{time.time_ns()}"
            folder.rename(doomed)
            Folder(self.root).sync()
            self._recent.drop(name)
            if self.vault is not None:
                self.vault.destroy(name)
            shutil.rmtree(doomed, ignore_errors=True)

    def copy(self, name: str, new_name: str) -> None:
        """Make a second memory with the same content; on the same disk both share files until they differ.

        Raises:
            MemoryNotFoundError: There is none called ``name``.
            ValueError: ``new_name`` is taken or not allowed.
            MemoryLimitError: It would exceed the quota of all memories.
        """
        with ExitStack() as locks:
            # Both locks are always taken in the same order, so that two copies cannot deadlock.
            for held in sorted({check_name(name), check_name(new_name)}):
                locks.enter_context(self._held(held, 60.0))
            self._refuse_taken(new_name)
            folder = self._existing(name)
            with self._quota_held():
                self._check_total(new_name, self._stored(folder).nbytes)
                key = None if self.vault is None else self.vault.key_for_saving(new_name)
                work = self.root / f".copying-{new_name}-{time.time_ns()}"
                try:
                    copy(Folder(folder), Folder(work), key=self._key(folder), new_key=key)
                    work.rename(self.path(new_name))
                    Folder(self.root).sync()
                except OSError as error:
                    raise not_saved(self.root / new_name, error) from error
                finally:
                    shutil.rmtree(work, ignore_errors=True)

    # --- loading and saving -----------------------------------------------------------------------

    def _loaded(self, name: str, model: MemoryMaker) -> Memory:
        folder = self.path(name)
        return self._read(folder, model) if _is_saved(folder) else model.new_memory()

    def _read(self, folder: Path, model: MemoryMaker) -> Memory:
        read = lambda: load(Folder(folder), model.new_memory, key=self._key(folder))
        return self._recent.get(folder.name, model, identity(folder), read)

    def _save(self, name: str, memory: Memory, model: MemoryMaker | None, *, dispensable: Memory | None) -> None:
        """Save within the quotas.

        If the memory differs from ``dispensable``, the last save, only in recall frequencies, errors of a full or
        read-only disk are ignored: no written text would be lost.
        """
        folder = self.path(name)
        key = None if self.vault is None else self.vault.key_for_saving(name)
        try:
            with self._quota_held():
                save(memory, Folder(folder), key=key, check_size=lambda nbytes: self._check_quota(name, nbytes))
        except (MemorySaveError, MemoryLimitError):
            self._recent.drop(name)
            if dispensable is None or not _reads_alike(memory, dispensable):
                raise
            return
        if model is not None:
            self._recent.put(name, model, identity(folder), memory)

    def _key(self, folder: Path) -> MemoryKey | None:
        """The key of a saved memory; None if it is not encrypted."""
        return self.vault.key(folder.name) if self.vault is not None and is_sealed(identity(folder)) else None

    def _is_as_wanted(self, name: str) -> bool:
        """Whether a memory is saved, and encrypted exactly if the store has a vault."""
        folder = self.path(name)
        return _is_saved(folder) and is_sealed(identity(folder)) == (self.vault is not None)

    def _existing(self, name: str) -> Path:
        folder = self.path(name)
        if not _is_saved(folder):
            known = ", ".join(memory.name for memory in self.list()[:8]) or "none yet"
            raise MemoryNotFoundError(f"No memory called {name!r} in {self.root}; there are: {known}.")
        return folder

    def _refuse_taken(self, name: str) -> None:
        if _is_saved(self.path(name)):
            raise ValueError(f"A memory called {name!r} exists already. Delete it first, or choose another name.")
        # A folder without manifest is left over from a killed save.
        shutil.rmtree(self.path(name), ignore_errors=True)

    def _stored(self, folder: Path) -> StoredMemory:
        lock = self.root / f".{folder.name}.lock"
        saved = (folder / MANIFEST).stat().st_mtime
        return StoredMemory(
            folder.name,
            sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
            saved,
            max(saved, lock.stat().st_mtime if lock.exists() else 0.0),
            is_sealed(identity(folder)),
        )

    # --- locks ------------------------------------------------------------------------------------

    @contextmanager
    def _held(self, name: str, timeout: float) -> Generator[None]:
        from filelock import FileLock, Timeout

        self.path(name)
        message = f"Memory {name!r} is in use elsewhere and was not free within {timeout:g} s. Try again later."
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        if self._holders.get(name) == threading.get_ident():
            raise MemoryLockedError(f"Memory {name!r} is open in this very thread already. Use the one that is open.")
        started = time.monotonic()
        if not lock.acquire(timeout=timeout):
            raise MemoryLockedError(message)
        try:
            self._holders[name] = threading.get_ident()
            path = self.root / f".{name}.lock"
            left = max(timeout - (time.monotonic() - started), 0.0)
            held = FileLock(str(path), timeout=left, mode=0o600, poll_interval=POLL_SECONDS)
            try:
                held.acquire()
                os.utime(path)
            except Timeout as error:
                raise MemoryLockedError(message) from error
            except OSError as error:
                held.release()
                raise MemorySaveError(
                    error.errno,
                    f"{self.root}: memory {name!r} cannot be opened for writing there ({error.strerror or error}). "
                    "Free space or allow writing, or use MemoryStore.load to only read it",
                ) from error
            try:
                yield
            finally:
                held.release()
        finally:
            self._holders.pop(name, None)
            lock.release()

    def _quota_held(self) -> AbstractContextManager[object]:
        """Hold the lock under which memories with a common quota are saved one by one; two at once could exceed it."""
        from filelock import FileLock

        if self.max_total_bytes is None:
            return nullcontext()
        return FileLock(str(self.root / QUOTA_LOCK), mode=0o600, poll_interval=POLL_SECONDS)

    def _sweep(self) -> None:
        """Remove the leftovers of deletes and copies that were killed."""
        from filelock import FileLock, Timeout

        for path in self.root.glob(".deleted-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob(".copying-*-*"):
            name = path.name.removeprefix(".copying-").rpartition("-")[0]
            try:
                with FileLock(str(self.root / f".{name}.lock"), timeout=0, mode=0o600):
                    shutil.rmtree(path, ignore_errors=True)
            except Timeout:
                continue  # Another process is still copying.

    # --- quotas -----------------------------------------------------------------------------------

    def _check_quota(self, name: str, nbytes: int) -> None:
        if self.max_memory_bytes is not None and nbytes > self.max_memory_bytes:
            raise MemoryLimitError(
                f"Memory {name!r} has {nbytes:,} bytes, more than max_memory_bytes={self.max_memory_bytes:,}. Forget "
                "sources, or raise the limit; the saved state is unchanged."
            )
        self._check_total(name, nbytes)

    def _check_total(self, name: str, nbytes: int) -> None:
        if self.max_total_bytes is None:
            return
        total = nbytes + sum(stored.nbytes for stored in self.list() if stored.name != name)
        if total > self.max_total_bytes:
            raise MemoryLimitError(
                f"All memories would have {total:,} bytes, more than max_total_bytes={self.max_total_bytes:,}. Delete "
                "some, or raise the limit; the saved state is unchanged."
            )


@contextmanager
def _autosaving(save: Callable[[], None], seconds: float) -> Generator[None]:
    """Call ``save`` every ``seconds`` until the block ends.

    A save that fails is tried again after the next interval. The save at the end of the block raises its error.
    """
    if not seconds > 0:
        raise ValueError(f"autosave_seconds={seconds!r}: expected a number above 0, or None for no autosave.")
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            with suppress(MPlusError, OSError):
                save()

    thread = threading.Thread(target=work, name="mplus autosave", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_saved(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _reads_alike(one: Memory, other: Memory) -> bool:
    ours, theirs = one.snapshots, other.snapshots
    same = len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))
    return same and one.fingerprint == other.fingerprint
