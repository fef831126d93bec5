"""``SavedMemories``: the memories in a store's folder, as they were last saved."""

import time
from collections.abc import Callable
from pathlib import Path

from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryLimitError, MemorySaveError
from mplus.memory.backup import damage
from mplus.memory.forgettings import Forgettings
from mplus.memory.leftovers import COPYING
from mplus.memory.memory import Memory, MemoryMaker
from mplus.memory.quotas import Quotas
from mplus.memory.recent import RecentMemories, identity
from mplus.memory.saving import load, save
from mplus.storage.clear_errors import clear_errors
from mplus.storage.encryption import MemoryKey
from mplus.storage.files import copy
from mplus.storage.folder import Folder, remove_folder
from mplus.storage.manifest import is_sealed
from mplus.storage.names import MANIFEST, check_name, check_spelling, note_id
from mplus.storage.place import Place, not_saved
from mplus.storage.vault import KeyVault
from mplus.traces import drop_traces


class SavedMemories:
    """Where memories are saved and under which keys; reads them, and saves within the quotas.

    Whoever saves holds the memory's lock. Raw errors of the file system become ``MemoryReadError``.

    Args:
        root: The folder of the store.
        vault: Has the key of each memory; None encrypts nothing.
        quotas: Limits of what is saved.
        recent: Memories that are held, so that they need not be read.
        publish: Called with the name of each memory that was saved; None for nothing to do.
    """

    kind = "store"

    def __init__(
        self,
        root: Path,
        vault: KeyVault | None,
        *,
        quotas: Quotas,
        recent: RecentMemories,
        publish: Callable[[str], None] | None = None,
    ) -> None:
        self.root, self._vault = root, vault
        self._quotas, self._recent, self._publish = quotas, recent, publish
        self._forgettings = Forgettings(root)

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

    @clear_errors
    def has(self, name: str) -> bool:
        """Whether a memory is saved under that name."""
        return (self.path(name) / MANIFEST).exists()

    def refuse_taken(self, name: str) -> None:
        """Have a name free for a new memory.

        Raises:
            ValueError: There is a memory of that name.
        """
        if self.has(name):
            raise ValueError(f"A memory called {name!r} exists already. Delete it first, or choose another name.")
        # A folder without manifest is left over from a killed save.
        remove_folder(self.path(name))

    # --- keys -------------------------------------------------------------------------------------

    @clear_errors
    def key(self, name: str) -> MemoryKey | None:
        """The key of a saved memory; None if it is not encrypted.

        Raises:
            MemoryKeyError: It is encrypted, and its key is not in the vault.
        """
        return self._vault.key(name) if self._vault is not None and is_sealed(identity(self.root / name)) else None

    @clear_errors
    def key_to_save_with(self, name: str, known: MemoryKey | None) -> MemoryKey | None:
        """The key to encrypt a memory with; ``known`` is the one it was read or saved with, if it was.

        Raises:
            MemoryKeyError: That key was destroyed: what it had erased is not written again under another.
        """
        if self._vault is None:
            return None
        if known is None:
            return self._vault.key_for_saving(name)
        if self._vault.key(name) != known:
            raise MemoryKeyError(
                f"{self._vault.folder}: the key of memory {name!r} was destroyed while it was open, which erased it. "
                "Delete the memory, then open the name anew."
            )
        return known

    @clear_errors
    def is_as_wanted(self, name: str) -> bool:
        """Whether a memory is saved, and encrypted exactly if the store has a vault."""
        return self.has(name) and is_sealed(identity(self.path(name))) == (self._vault is not None)

    # --- reading and saving -----------------------------------------------------------------------

    @clear_errors
    def read(self, name: str, model: MemoryMaker) -> Memory:
        """A memory as it was last saved; one that is held already only if its key still exists."""
        folder = self.root / name
        saved_as = identity(folder)
        try:
            key = self.key(name)
        except MemoryKeyError:
            self._recent.drop(name)
            raise
        read = lambda: load(Folder(folder), model.new_memory, key=key)
        return self._recent.get(name, model, _under(key, saved_as), read)

    @clear_errors
    def damage(self, name: str) -> str | None:
        """What is wrong with a saved memory, every byte of it read; None if nothing is."""
        try:
            return damage(Folder(self.root / name), self.key(name))
        except (MemoryKeyError, CorruptMemoryError) as error:
            return str(error)

    @clear_errors
    def save(
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

        Raises:
            MemoryLimitError: It would exceed a quota.
            MemorySaveError: The disk is full, or does not allow it.
        """
        folder = self.path(name)
        try:
            with self._quotas.held():
                save(memory, Folder(folder), key=key, check_size=lambda nbytes: self._quotas.check(name, nbytes))
                self._published(name)
        except (MemorySaveError, MemoryLimitError):
            self._recent.drop(name)
            if dispensable is None or not _reads_alike(memory, dispensable):
                raise
            return
        if model is not None:
            self._recent.put(name, model, _under(key, identity(folder)), memory)

    @clear_errors
    def copy(self, name: str, new_name: str) -> None:
        """Save a memory under a new name too; on the same disk both share files until they differ.

        Raises:
            MemoryLimitError: It would exceed a quota.
            MemorySaveError: The disk is full, or does not allow it.
        """
        folder = self.root / name
        with self._quotas.held():
            self._quotas.check(new_name, sum(Folder(folder).sizes().values()))
            new_key = self.key_to_save_with(new_name, None)
            work = self.root / f"{COPYING}{new_name}-{time.time_ns()}"
            try:
                # A copy here may be damaged where what is behind the url is not.
                is_checked = self._publish is not None
                copy(Folder(folder), Folder(work), key=self.key(name), new_key=new_key, check=is_checked)
                work.rename(self.path(new_name))
                Folder(self.root).sync()
                self._published(new_name)
            except OSError as error:
                raise not_saved(self.root / new_name, error) from error
            finally:
                remove_folder(work)

    @clear_errors
    def bring(self, source: Place, name: str, *, key: MemoryKey | None, id: str | None) -> None:
        """Save what is in another place under a name, in one step.

        Args:
            source: A saved memory.
            name: Its name here; a memory of that name is replaced.
            key: The key with which it is encrypted there.
            id: The id for which ``name`` was made, if the name does not tell it.

        Raises:
            MemoryLimitError: It would exceed a quota.
            MemorySaveError: The disk is full, or does not allow it.
        """
        folder = self.path(name)
        try:
            with self._quotas.held():
                self._quotas.check(name, sum(source.sizes().values()))
                copy(source, Folder(folder), key=key, new_key=self.key_to_save_with(name, key))
                if id is not None:
                    note_id(self.root, name, id)
                Folder(self.root).sync()
                self._published(name)
                self.note_forgotten()
        except OSError as error:
            raise not_saved(folder, error) from error
        finally:
            self._recent.drop(name)

    # --- what is held -----------------------------------------------------------------------------

    def note_forgotten(self) -> None:
        """Say to all processes of the store that something was forgotten."""
        self._forgettings.note()

    def drop_forgotten(self) -> None:
        """Drop what is held of memories in which any process has forgotten something since the last look."""
        if self._forgettings.is_new():
            self._recent.drop_changed(self._is_saved_as)
            drop_traces()

    def _is_saved_as(self, name: str, saved_as: bytes) -> bool:
        try:
            return _under(self.key(name), identity(self.path(name))) == saved_as
        except (ValueError, OSError, CorruptMemoryError, MemoryKeyError):
            return False

    def _published(self, name: str) -> None:
        if self._publish is not None:
            self._publish(name)


def _under(key: MemoryKey | None, saved_as: bytes) -> bytes:
    """Identifies a save together with the key that it was read with."""
    return saved_as if key is None else saved_as + key.id.encode()


def _reads_alike(one: Memory, other: Memory) -> bool:
    ours, theirs = one.snapshots, other.snapshots
    same = len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))
    return same and one.fingerprint == other.fingerprint
