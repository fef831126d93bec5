"""``MemoryStore``: many named memories in one folder, safe across threads and processes."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from mplus.errors import MemoryNotFoundError, MemorySaveError
from mplus.given import check_kind, check_number, path_of
from mplus.ids import Id
from mplus.memory.autosave import autosaving
from mplus.memory.backup import LIST, Backup, copy_in_use, first_memory, is_encrypted
from mplus.memory.deletions import Deletions
from mplus.memory.leftovers import sweep
from mplus.memory.memory import Memory, MemoryMaker, check_maker, check_memory
from mplus.memory.open_memory import OpenMemory
from mplus.memory.quotas import Quotas
from mplus.memory.recent import RecentMemories
from mplus.memory.saved_memories import SavedMemories
from mplus.memory.store_locks import StoreLocks
from mplus.memory.stored import StoredMemory, copies_of
from mplus.storage.address import folder_of
from mplus.storage.clear_errors import clear_errors
from mplus.storage.folder import Folder
from mplus.storage.names import check_name, id_of, name_for, note_id
from mplus.storage.place import Place, not_saved
from mplus.storage.vault import KeyVault
from mplus.traces import drop_traces

Read = TypeVar("Read")


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
        self.root = path_of("root", root, instead="UrlStore(url, folder) keeps memories behind a url.")
        self.max_memory_bytes, self.max_total_bytes = max_memory_bytes, max_total_bytes
        self.max_resident_bytes = max_resident_bytes
        self.vault = vault
        self._make()
        self._recent = RecentMemories(max_resident_bytes)
        self._locks = StoreLocks(self.root)
        self._quotas = Quotas(self.root, max_memory_bytes, max_total_bytes)
        self._saves = self._new_saves()
        self._deletions = self._new_deletions()
        self._sweep()

    def _new_saves(self) -> SavedMemories:
        return SavedMemories(self.root, self.vault, quotas=self._quotas, recent=self._recent)

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

    def path(self, name: str) -> Path:
        """Where a memory is kept.

        Raises:
            ValueError: The name leads out of the folder, is too long, or has characters that are not allowed.
        """
        return self._saves.path(name)

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
            opened = self._whole(name, lambda: OpenMemory(name, model, self._saves, keep_empty=keep_empty))
            opened.memory.stored_as = self.root / name
            with nullcontext() if autosave_seconds is None else autosaving(opened.save, autosave_seconds):
                yield opened.memory
            opened.save()
            if id is not None and self._saves.has(name):
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
        self._saves.drop_forgotten()
        self._refuse_missing(name)
        memory = self._saves.read(name, model).fork()
        memory.stored_as = self.root / name
        self._locks.note_use(name)
        return memory

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
            self._saves.refuse_taken(name)
            key = self._saves.key_to_save_with(name, None)
            self._saves.save(name, memory.fork(), None, key, dispensable=None)

    @clear_errors
    def list(self) -> list[StoredMemory]:
        """Every saved memory, by name; also while others save, and also one that cannot be read."""
        self._saves.drop_forgotten()
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
            self._refuse_missing(name)
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
            self._saves.refuse_taken(new_name)
            self._refuse_missing(name)
            self._whole(name, lambda: self._saves.copy(name, new_name))

    # --- backups ----------------------------------------------------------------------------------

    @clear_errors
    def verify(self, name: str) -> str | None:
        """What is wrong with a saved memory; None if nothing is. Every byte of it is read and checked.

        Raises:
            MemoryNotFoundError: There is none of that name.
        """
        self._refuse_missing(name)
        return self._saves.damage(name)

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
        return copy_in_use(Folder(source), target, lambda: self._saves.key(name))

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
                self._saves.refuse_taken(name)
            key = self.vault.key(name) if self.vault is not None and is_encrypted(place) else None
            backup.check(name, place, key)
            self._saves.bring(place, name, key=key, id=backup.ids.get(name))

    # --- inside -----------------------------------------------------------------------------------

    def refuse_again(self, name: str) -> None:
        """Refuse what would read a memory as it was saved in a thread that has it open, and may have changed it.

        Raises:
            MemoryLockedError: This thread has it open.
        """
        self._locks.refuse_again(check_name(name))

    @clear_errors
    def _refuse_missing(self, name: str) -> None:
        """Check that a memory is saved, and that its deletion was not begun.

        Raises:
            MemoryNotFoundError: It is not.
        """
        if not self._saves.has(name) or self._deletions.is_begun(name):
            self._recent.drop(name)  # another process may have deleted it
            known = ", ".join(memory.name for memory in self.list()[:8]) or "none yet"
            raise MemoryNotFoundError(f"No memory called {name!r} in {self.root}; there are: {known}.")

    def _whole(self, name: str, read: Callable[[], Read]) -> Read:
        """Read a memory whose lock is held, from elsewhere if what is here is damaged and there is an elsewhere."""
        return read()

    def _erase(self, name: str) -> None:
        """Delete a memory whose lock is held."""
        self._deletions.delete(name)

    def _held(self, name: str, timeout: float) -> AbstractContextManager[None]:
        """Hold a memory's lock; a deletion of it that was begun is finished first."""
        self.path(name)
        self._saves.drop_forgotten()
        return self._locks.held(name, timeout, lambda: self._deletions.finish(name))

    @clear_errors
    def _sweep(self) -> None:
        """Remove the leftovers of deletes, copies and notes that were killed."""
        self._deletions.sweep(lambda name: self._locks.held(name, 0.0))
        sweep(self.root, self._locks)
