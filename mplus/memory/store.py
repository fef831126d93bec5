"""``MemoryStore``: many named memories in one folder, safe across threads and processes."""

import os
import shutil
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mplus.errors import (
    CorruptMemoryError,
    MemoryKeyError,
    MemoryLimitError,
    MemoryLockedError,
    MemoryNotFoundError,
    MemorySaveError,
)
from mplus.given import check_kind, check_number, path_of
from mplus.ids import Id
from mplus.memory.autosave import autosaving
from mplus.memory.backup import LIST, Backup, copy_in_use, damage, first_memory, is_encrypted
from mplus.memory.deletions import Deletions
from mplus.memory.forgettings import Forgettings, lost_sources
from mplus.memory.memory import Memory, MemoryMaker, check_maker, check_memory
from mplus.memory.quotas import Quotas
from mplus.memory.recent import RecentMemories, identity
from mplus.memory.saving import load, save
from mplus.memory.store_locks import StoreLocks
from mplus.memory.stored import StoredMemory, copies_of
from mplus.storage.address import folder_of
from mplus.storage.clear_errors import clear_errors
from mplus.storage.encryption import MemoryKey
from mplus.storage.files import copy
from mplus.storage.folder import UNFINISHED, Folder
from mplus.storage.manifest import is_sealed
from mplus.storage.names import MANIFEST, check_name, check_spelling, id_of, name_for, note_id
from mplus.storage.place import Place, not_saved
from mplus.storage.vault import KeyVault
from mplus.traces import drop_traces

COPYING = ".copying-"
LEFT_SECONDS = 86_400.0
"""A file that is not whole after so long was left by a killed process; writing one takes far less."""


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
            is_optional = limit != "max_resident_bytes"
            check_number(limit, value, "a number of bytes, 0 or more", optional=is_optional)
        check_kind("vault", vault, KeyVault, "a KeyVault, or None to encrypt nothing", optional=True)
        self.root = path_of("root", root)
        self.max_memory_bytes, self.max_total_bytes = max_memory_bytes, max_total_bytes
        self.max_resident_bytes = max_resident_bytes
        self.vault = vault
        self._make()
        self._recent = RecentMemories(max_resident_bytes)
        self._locks = StoreLocks(self.root)
        self._quotas = Quotas(self.root, max_memory_bytes, max_total_bytes)
        self._deletions = self._new_deletions()
        self._forgettings = Forgettings(self.root)
        self._sweep()

    def _new_deletions(self) -> Deletions:
        return Deletions(self.root, self.vault)

    @clear_errors
    def _make(self) -> None:
        """Make the folder.

        Raises:
            ValueError: It is one of copies of a url.
        """
        if (url := copies_of(self.root)) is not None:
            raise ValueError(
                f"root={str(self.root)!r} has copies of {url!r}: what is changed there is lost. Open them with "
                f"UrlStore({url!r}, {str(self.root)!r}), or name another folder."
            )
        Folder(self.root).make()

    def __deepcopy__(self, memo: dict[int, object]) -> "MemoryStore":
        return self  # a folder, of which there is one

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

    kind = "store"
    """What errors of the file system call it."""
    check_name = staticmethod(check_name)
    """The name, if it is allowed."""
    name_for = staticmethod(name_for)
    """The name for an id that somebody else chose, such as "telegram:12345"; ``StoredMemory.id`` gives the id."""

    @clear_errors
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
        self,
        name: str,
        model: MemoryMaker,
        *,
        timeout: float = 60.0,
        autosave_seconds: float | None = None,
        id: Id | None = None,
        keep_empty: bool = True,
    ) -> Generator[Memory]:
        """Open a memory for exclusive use in a ``with`` block; changes are saved at the end.

        If the block ends with an error, only the changes that were autosaved are kept.

        Args:
            name: Name of the memory; it is made if there is none.
            model: The model that reads and writes it.
            timeout: Seconds to wait while another thread or process has it open.
            autosave_seconds: Also save at this interval if it has changed; None saves only at the end.
            id: The id for which ``name_for`` gave the name; ``list`` tells it then, however long it is.
            keep_empty: Whether a new memory is saved even if nothing was written into it.

        Raises:
            ValueError: The name is not allowed.
            MemoryLockedError: It is still open elsewhere after ``timeout`` seconds.
            MemoryLimitError: It would exceed a quota; the saved state is unchanged.
            MemorySaveError: The disk is full or read-only; the saved state is unchanged.
            MemoryKeyError: It is encrypted and its key is not in the vault, or was destroyed while it was open.
            CorruptMemoryError: The saved state is damaged.
        """
        check_maker(model)
        with self._held(name, timeout):
            memory = self._loaded(name, model)
            is_as_wanted = self._is_as_wanted(name) and not memory.has_unsaved_jump
            # What equals this is not saved.
            saved = memory.fork() if is_as_wanted or not (keep_empty or _is_saved(self.path(name))) else None
            key, owner = self._key(self.path(name)), os.getpid()

            def save() -> None:
                nonlocal saved, key
                current = memory.fork()
                if saved is None or not current.is_unchanged_since(saved):
                    _refuse_child(name, owner)
                    key = self._key_to_save_with(name, key)
                    self._save(name, current, model, key, dispensable=saved)
                    if saved is not None and _has_lost(saved, current):
                        self._forgettings.note()
                    saved = current

            with nullcontext() if autosave_seconds is None else autosaving(save, autosave_seconds):
                yield memory
            save()
            if id is not None and _is_saved(self.path(name)):
                with suppress(OSError):  # a full disk; noted when it is opened again
                    note_id(self.root, name, id)

    def load(self, name: str, model: MemoryMaker) -> Memory:
        """A memory as it was last saved, for reading while another process writes; changes to it are not saved.

        Raises:
            MemoryNotFoundError: There is none of that name.
            MemoryKeyError: It is encrypted and its key is not in the vault.
            CorruptMemoryError: The saved state is damaged.
        """
        check_maker(model)
        self._drop_forgotten()
        return self._read(self._existing(name), model).fork()

    @clear_errors
    def put(self, name: str, memory: Memory) -> None:
        """Keep a copy of a memory, such as an imported one, under a new name.

        Raises:
            ValueError: ``name`` is taken or not allowed.
            MemoryLimitError: It would exceed a quota.
            MemorySaveError: The disk is full, or does not allow it.
        """
        check_memory(memory)
        with self._held(name, 60.0):
            self._refuse_taken(name)
            self._save(name, memory.fork(), None, self._key_to_save_with(name, None), dispensable=None)

    @clear_errors
    def list(self) -> list[StoredMemory]:
        """Every saved memory, by name; also while others save, and also one that cannot be read."""
        self._drop_forgotten()
        found: list[StoredMemory] = []
        for path in sorted(self.root.iterdir()):
            if path.name.startswith(".") or path.is_symlink() or self._deletions.is_begun(path.name):
                continue
            stored = StoredMemory.of(path)
            if stored is not None:
                found.append(stored)
        return found

    @clear_errors
    def delete(self, name: str, *, timeout: float = 60.0) -> None:
        """Remove a memory for good, its encryption key first.

        If the process is killed meanwhile, the next use of the store finishes the deletion.

        Raises:
            MemoryNotFoundError: There is none of that name.
            MemoryLockedError: It is open elsewhere.
            MemorySaveError: The folder cannot be written to.
        """
        with self._held(name, timeout):
            self._existing(name)
            self._recent.drop(name)
            drop_traces()
            try:
                self._erase(name)
            except OSError as error:
                raise MemorySaveError(
                    error.errno,
                    f"{self.root}: memory {name!r} was not deleted whole ({error.strerror or error}). Allow writing "
                    "there; the next use of the store finishes it",
                ) from error

    @clear_errors
    def copy(self, name: str, new_name: str) -> None:
        """Make a second memory with the same content; on the same disk both share files until they differ.

        Raises:
            MemoryNotFoundError: There is none called ``name``.
            ValueError: ``new_name`` is taken or not allowed.
            MemoryLimitError: It would exceed a quota.
        """
        with ExitStack() as locks:
            # Both locks are always taken in the same order, so that two copies cannot deadlock.
            for held in sorted({check_name(name), check_name(new_name)}):
                locks.enter_context(self._held(held, 60.0))
            self._refuse_taken(new_name)
            folder = self._existing(name)
            with self._quotas.held():
                self._quotas.check(new_name, sum(Folder(folder).sizes().values()))
                key = self._key_to_save_with(new_name, None)
                work = self.root / f"{COPYING}{new_name}-{time.time_ns()}"
                try:
                    copy(Folder(folder), Folder(work), key=self._key(folder), new_key=key)
                    work.rename(self.path(new_name))
                    Folder(self.root).sync()
                    self._publish(new_name)
                except OSError as error:
                    raise not_saved(self.root / new_name, error) from error
                finally:
                    shutil.rmtree(work, ignore_errors=True)

    # --- backups ----------------------------------------------------------------------------------

    @clear_errors
    def verify(self, name: str) -> str | None:
        """What is wrong with a saved memory; None if nothing is. Every byte of it is read and checked.

        Raises:
            MemoryNotFoundError: There is none of that name.
        """
        folder = self._existing(name)
        try:
            return damage(Folder(folder), self._key(folder))
        except (MemoryKeyError, CorruptMemoryError) as error:
            return str(error)

    def backup(self, target: str | Path) -> tuple[str, ...]:
        """Copy all memories while they are in use; each copy is one save, whole and checked.

        Encrypted memories stay encrypted. Their keys are not copied: back the vault up apart from the memories.

        Args:
            target: A folder or url that holds no memories yet.

        Returns:
            The names of the memories that were copied.

        Raises:
            ValueError: There is a backup already, an unfinished one, or a store, whose memories it would replace.
            CorruptMemoryError: A memory is damaged; ``verify`` finds which.
            MemoryKeyError: A memory is encrypted, and its key is not in the vault.
            MemorySaveError: The copy cannot be written.
        """
        place = folder_of(target)
        made, ids = dict[str, str](), dict[str, str]()
        try:
            if LIST in place.sizes():
                raise ValueError(f"{str(target)!r}: there is a backup already. Name an empty folder.")
            if taken := first_memory(place):
                raise ValueError(
                    f"{str(target)!r}: there is a memory {taken!r}, of a store or of a backup that was not finished. "
                    "Name an empty folder."
                )
            for stored in self.list():
                copied = folder_of(f"{place}/{stored.name}")
                with suppress(MemoryNotFoundError):  # it was deleted meanwhile
                    made[stored.name] = self._backed_up(stored.name, copied)
                    ids |= {} if stored.id == id_of(stored.name) else {stored.name: stored.id}
            Backup(place, made, ids).write()
        except MemorySaveError:
            raise
        except OSError as error:
            raise not_saved(place, error) from error
        return tuple(made)

    def _backed_up(self, name: str, target: Place) -> str:
        """Copy a memory into a backup; returns its checksum there."""
        source = self.path(name)
        return copy_in_use(Folder(source), target, lambda: self._key(source))

    @clear_errors
    def restore(self, source: str | Path, name: str, *, overwrite: bool = False) -> None:
        """Bring a memory back from a backup, once every byte of it has been checked.

        Args:
            source: The folder or url of the backup.
            name: The memory.
            overwrite: Replace the memory of that name if there is one; it is replaced in one step.

        Raises:
            MemoryNotFoundError: There is no finished backup, or none of that name in it.
            CorruptMemoryError: It was altered.
            ValueError: There is a memory of that name, and ``overwrite`` is not set.
            MemoryKeyError: It is encrypted, and its key is not in the vault.
            MemoryLimitError: It would exceed a quota.
            MemorySaveError: The disk is full, or does not allow it.
        """
        backup = Backup.read(folder_of(source))
        place = backup.memory(check_name(name))
        with self._held(name, 60.0):
            if not overwrite:
                self._refuse_taken(name)
            key = self.vault.key(name) if self.vault is not None and is_encrypted(place) else None
            backup.check(name, place, key)
            try:
                with self._quotas.held():
                    self._quotas.check(name, sum(place.sizes().values()))
                    copy(place, Folder(self.path(name)), key=key, new_key=self._key_to_save_with(name, key))
                    if name in backup.ids:
                        note_id(self.root, name, backup.ids[name])
                    Folder(self.root).sync()
                    self._publish(name)
                    self._forgettings.note()
            except OSError as error:
                raise not_saved(self.path(name), error) from error
            finally:
                self._recent.drop(name)

    # --- loading and saving -----------------------------------------------------------------------

    @clear_errors
    def _loaded(self, name: str, model: MemoryMaker) -> Memory:
        folder = self.path(name)
        return self._read(folder, model) if _is_saved(folder) else model.new_memory()

    @clear_errors
    def _read(self, folder: Path, model: MemoryMaker) -> Memory:
        """A memory as it was last saved; one that is held already only if its key still exists."""
        saved_as = identity(folder)
        try:
            key = self._key(folder)
        except MemoryKeyError:
            self._recent.drop(folder.name)
            raise
        read = lambda: load(Folder(folder), model.new_memory, key=key)
        return self._recent.get(folder.name, model, _under(key, saved_as), read)

    @clear_errors
    def _save(
        self,
        name: str,
        memory: Memory,
        model: MemoryMaker | None,
        key: MemoryKey | None,
        *,
        dispensable: Memory | None,
    ) -> None:
        """Save within the quotas.

        If the memory differs from ``dispensable``, the last save, only in recall frequencies, errors of a full or
        read-only disk are ignored: no written text would be lost.
        """
        folder = self.path(name)
        try:
            with self._quotas.held():
                save(memory, Folder(folder), key=key, check_size=lambda nbytes: self._quotas.check(name, nbytes))
                self._publish(name)
        except (MemorySaveError, MemoryLimitError):
            self._recent.drop(name)
            if dispensable is None or not _reads_alike(memory, dispensable):
                raise
            return
        if model is not None:
            self._recent.put(name, model, _under(key, identity(folder)), memory)

    def _publish(self, name: str) -> None:
        """Called when a memory was saved in the folder, by its holder."""

    def _erase(self, name: str) -> None:
        """Delete a memory whose lock is held."""
        self._deletions.delete(name)

    @clear_errors
    def _key(self, folder: Path) -> MemoryKey | None:
        """The key of a saved memory; None if it is not encrypted."""
        return self.vault.key(folder.name) if self.vault is not None and is_sealed(identity(folder)) else None

    @clear_errors
    def _key_to_save_with(self, name: str, known: MemoryKey | None) -> MemoryKey | None:
        """The key to encrypt a memory with; ``known`` is the one it was read or saved with, if it was.

        Raises:
            MemoryKeyError: That key was destroyed: what it had erased is not written again under another.
        """
        if self.vault is None:
            return None
        if known is None:
            return self.vault.key_for_saving(name)
        if self.vault.key(name) != known:
            raise MemoryKeyError(
                f"{self.vault.folder}: the key of memory {name!r} was destroyed while it was open, which erased it. "
                "Delete the memory, then open the name anew."
            )
        return known

    @clear_errors
    def _is_as_wanted(self, name: str) -> bool:
        """Whether a memory is saved, and encrypted exactly if the store has a vault."""
        folder = self.path(name)
        return _is_saved(folder) and is_sealed(identity(folder)) == (self.vault is not None)

    @clear_errors
    def _existing(self, name: str) -> Path:
        folder = self.path(name)
        if not _is_saved(folder) or self._deletions.is_begun(name):
            self._recent.drop(name)  # another process may have deleted it
            known = ", ".join(memory.name for memory in self.list()[:8]) or "none yet"
            raise MemoryNotFoundError(f"No memory called {name!r} in {self.root}; there are: {known}.")
        return folder

    def _refuse_taken(self, name: str) -> None:
        if _is_saved(self.path(name)):
            raise ValueError(f"A memory called {name!r} exists already. Delete it first, or choose another name.")
        # A folder without manifest is left over from a killed save.
        shutil.rmtree(self.path(name), ignore_errors=True)

    # --- locks ------------------------------------------------------------------------------------

    def _held(self, name: str, timeout: float) -> AbstractContextManager[None]:
        """Hold a memory's lock; a deletion of it that was begun is finished first."""
        self.path(name)
        self._drop_forgotten()
        return self._locks.held(name, timeout, lambda: self._deletions.finish(name))

    def _drop_forgotten(self) -> None:
        """Drop what is held of memories in which any process has forgotten something since the last look."""
        if self._forgettings.is_new():
            self._recent.drop_changed(self._is_saved_as)
            drop_traces()

    def _is_saved_as(self, name: str, saved_as: bytes) -> bool:
        try:
            folder = self.path(name)
            return _under(self._key(folder), identity(folder)) == saved_as
        except (ValueError, OSError, CorruptMemoryError, MemoryKeyError):
            return False

    @clear_errors
    def _sweep(self) -> None:
        """Remove the leftovers of deletes, copies and notes that were killed."""
        self._deletions.sweep(lambda name: self._locks.held(name, 0.0))
        for path in self.root.glob(f"{COPYING}*-*"):
            name = path.name.removeprefix(COPYING).rpartition("-")[0]
            # If it is locked, another process is still copying.
            with suppress(MemoryLockedError, MemorySaveError), self._locks.held(name, 0.0):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob(f"{UNFINISHED}*"):
            with suppress(FileNotFoundError):  # another process sweeps too
                if path.stat().st_mtime < time.time() - LEFT_SECONDS:
                    path.unlink()


def _under(key: MemoryKey | None, saved_as: bytes) -> bytes:
    """Identifies a save together with the key that it was read with."""
    return saved_as if key is None else saved_as + key.id.encode()


def _refuse_child(name: str, owner: int) -> None:
    """Refuse to save in a process that did not open the memory: its parent has it open and saves it.

    Raises:
        MemoryLockedError: This is a forked child of the process that opened it.
    """
    if os.getpid() != owner:
        raise MemoryLockedError(
            f"Memory {name!r} was opened by process {owner}, of which this is a forked child. Open it here, after the "
            "fork; what was changed here is not saved."
        )


def _has_lost(before: Memory, now: Memory) -> bool:
    """Whether something that was in a memory or its snapshots may no longer be there."""
    kept = {snapshot.id for snapshot in now.snapshots}
    return lost_sources(before.state, now.state) or any(one.id not in kept for one in before.snapshots)


def _is_saved(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def _reads_alike(one: Memory, other: Memory) -> bool:
    ours, theirs = one.snapshots, other.snapshots
    same = len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))
    return same and one.fingerprint == other.fingerprint
