"""``UrlStore``: a store behind a url that many machines share; each has copies of what it used in a local folder."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from mplus.errors import (
    CorruptMemoryError,
    MemoryKeyError,
    MemoryLockedError,
    MemoryNotFoundError,
    MemoryReadError,
    MemorySaveError,
)
from mplus.given import check_kind, check_number, path_of
from mplus.memory.deletions import Deletions
from mplus.memory.memory import Memory, MemoryMaker
from mplus.memory.saved_memories import SavedMemories
from mplus.memory.store import MemoryStore
from mplus.memory.store_locks import StoreLocks
from mplus.memory.stored import COPIES_OF, StoredMemory, copies_of
from mplus.storage.address import folder_of
from mplus.storage.clear_errors import clear_errors
from mplus.storage.folder import Folder, remove_folder
from mplus.storage.manifest import is_sealed, parse_manifest
from mplus.storage.mirror import Base, fetched, published, removed
from mplus.storage.names import MANIFEST, check_name, id_of
from mplus.storage.place import Place, not_read, not_saved
from mplus.storage.url import Url, moment
from mplus.storage.vault import KeyVault

Read = TypeVar("Read")

READ_SECONDS = 60.0
"""How long a read waits while this machine writes the memory, or fetches it."""
LEASE_SECONDS = 20.0
"""How long a memory whose machine died while it saved is closed to others."""


class UrlStore(MemoryStore):
    """Named memories behind a url, for many machines at once.

    A change is behind the url when ``open`` ends. What is read is the last save of any machine: each use asks the url
    whether there is a newer one. Of two machines that change a memory at once, the second to save gets a
    ``MemoryConflictError``, and what the first saved is intact. A copy that was lost or damaged is fetched anew.

    Args:
        url: An ``fsspec`` url of a folder, such as "s3://bucket/memories".
        folder: A local folder for copies of this url and nothing else; processes of one machine may share it.
        max_memory_bytes: Most bytes of one saved memory; None for no limit.
        max_local_bytes: Most bytes of local copies; beyond that those used least recently are dropped. None: no limit.
        max_resident_bytes: Most bytes of host memory for memories that are not open.
        vault: Holds a key for each memory, with which it is encrypted; every machine needs the same vault.

    Raises:
        ValueError: ``url`` is a local folder, no file system for such urls is installed, or ``folder`` has memories
            that are not copies of this url, which would be lost.
        MemoryReadError: The url cannot be reached.
    """

    def __init__(
        self,
        url: str,
        folder: str | Path,
        *,
        max_memory_bytes: int | None = None,
        max_local_bytes: int | None = None,
        max_resident_bytes: int = 2**30,
        vault: KeyVault | None = None,
    ) -> None:
        check_kind("url", url, str, "a url such as 's3://bucket/memories'")
        check_number("max_local_bytes", max_local_bytes, "a number of bytes, 0 or more", optional=True)
        folder = path_of("folder", folder, instead="Name one for the copies of what is behind the url.")
        place = folder_of(url)
        if not isinstance(place, Url):
            raise ValueError(f"url={url!r} is a local folder. Expected a url such as 's3://bucket/memories'.")
        self.url, self.max_local_bytes = url.rstrip("/"), max_local_bytes
        self._bases: dict[str, Base] = {}
        super().__init__(folder, max_memory_bytes=max_memory_bytes, max_resident_bytes=max_resident_bytes, vault=vault)

    @clear_errors
    def _make(self) -> None:
        """Make the folder and mark it as one of copies of the url: what is not behind the url is removed from it.

        Raises:
            ValueError: It has memories already, or copies of another url.
        """
        Folder(self.root).make()
        with StoreLocks(self.root).held(COPIES_OF, READ_SECONDS):
            noted = copies_of(self.root)
            if noted is None and any(self.root.glob(f"*/{MANIFEST}")):
                held = "memories that are not copies"
            elif noted is not None and noted != self.url:
                held = f"copies of {noted!r}"
            else:
                held = None
            if held is not None:
                raise ValueError(
                    f"folder={str(self.root)!r} has {held}. For url={self.url!r} expected an empty folder, or one with "
                    "its copies, since what is not behind the url is removed there. Name another folder."
                )
            if noted is None:
                Folder(self.root).exchange(COPIES_OF, self.url.encode())
                Folder(self.root).sync()  # else a power cut may leave copies without it

    def __getstate__(self) -> dict[str, object]:
        """Url, folder and limits, for another process.

        Raises:
            ValueError: The store has a vault, whose keys must not get into a pickle.
        """
        state = super().__getstate__()
        state |= {"url": self.url, "folder": state.pop("root"), "max_local_bytes": self.max_local_bytes}
        state.pop("max_total_bytes")
        return state

    @clear_errors
    def load(self, name: str, model: MemoryMaker) -> Memory:
        """A memory as it was last saved by any machine; changes to it are not saved.

        Raises:
            MemoryNotFoundError: There is none of that name.
            MemoryKeyError: It is encrypted and its key is not in the vault.
            CorruptMemoryError: The saved state is damaged.
            MemoryReadError: The url cannot be reached.
        """
        read = super().load
        return self._current(name, lambda: read(name, model))

    @clear_errors
    def verify(self, name: str) -> str | None:
        """What is wrong with the last save, of which a damaged copy here is fetched anew first; None if nothing is.

        Raises:
            MemoryNotFoundError: There is none of that name.
            MemoryReadError: The url cannot be reached.
        """
        read = super().verify
        found = self._current(name, lambda: read(name))
        if found is None:
            return None
        with self._held(name, READ_SECONDS):  # the copy may have made room for another while it was read
            if read(name) is not None:
                self._fetch(name, anew=True)
            return read(name)

    def _backed_up(self, name: str, target: Place) -> str:
        read = super()._backed_up
        return self._current(name, lambda: read(name, target))

    @clear_errors
    def list(self) -> list[StoredMemory]:
        """Every memory behind the url, by name. Copies here of those that another machine has deleted are removed."""
        root = self._remote()
        try:
            folders = root.folders()
        except OSError as error:
            raise not_read(root, error) from error
        saved = {name: files for name, files in sorted(folders.items()) if MANIFEST in files}
        for copied in super().list():
            if copied.name not in saved:
                self._drop_deleted(copied.name)
        found = [self._stored(name, files) for name, files in saved.items()]
        return [one for one in found if one is not None]

    def _drop_deleted(self, name: str) -> None:
        """Remove the copy of a memory that is not behind the url any more."""
        # A copy that is locked is being saved for the first time.
        with suppress(MemoryLockedError, OSError), self._locks.held(name, 0.0):
            if self._remote(name).content(MANIFEST) is None:
                remove_folder(self.root / name)
                self._recent.drop(name)
                self._saves.note_forgotten()

    def _stored(self, name: str, files: dict[str, dict[str, Any]]) -> StoredMemory | None:
        try:
            check_name(name)
        except ValueError:  # a folder of somebody else
            return None
        local = StoredMemory.of(self.path(name))
        saved = moment(files[MANIFEST]) or 0.0
        return StoredMemory(
            name,
            sum(int(about["size"]) for about in files.values()),
            saved,
            saved if local is None else max(saved, local.used),
            any(file.endswith(".sealed") for file in files),
            id_of(name) if local is None else local.id,
        )

    # --- between the folder and the url -----------------------------------------------------------

    def _remote(self, name: str | None = None) -> Url:
        place = folder_of(self.url if name is None else f"{self.url}/{check_name(name)}")
        assert isinstance(place, Url)
        place.lease_seconds = LEASE_SECONDS
        return place

    def _present(self, name: str) -> bytes | None:
        """The manifest behind the url; None if there is none."""
        place = self._remote(name)
        try:
            return place.content(MANIFEST)
        except OSError as error:
            raise not_read(place, error) from error

    def _current(self, name: str, read: Callable[[], Read]) -> Read:
        """Read a memory's copy in the folder, once that is the last save of any machine."""
        present = self._present(name)
        if present == Folder(self.path(name)).content(MANIFEST):
            try:
                return read()
            except (MemoryNotFoundError, CorruptMemoryError, MemoryReadError, FileNotFoundError):
                if present is None:
                    raise
                # The copy may have made room for another, or a newer save may have come, while it was read.
        with self._held(name, READ_SECONDS):  # which fetches it
            return self._whole(name, read)

    def _whole(self, name: str, read: Callable[[], Read]) -> Read:
        try:
            return read()
        except CorruptMemoryError:
            self._fetch(name, anew=True)
            return read()

    @contextmanager
    def _held(self, name: str, timeout: float) -> Generator[None]:
        """Hold a memory's lock on this machine, with the last save of any machine in the local folder."""
        with super()._held(name, timeout):
            is_new = Folder(self.path(name)).content(MANIFEST) is None
            try:
                self._fetch(name)
                if is_new and self._bases[name].manifest is not None:
                    self._make_room(name)
                yield
            finally:
                self._bases.pop(name, None)

    def _fetch(self, name: str, *, anew: bool = False) -> None:
        """Bring the last save of any machine into the local folder of a memory whose lock is held."""
        place, local = self._remote(name), Folder(self.path(name))
        try:
            before = local.content(MANIFEST)
            self._bases[name] = fetched(place, local, lambda text: self._files_of(name, text), anew=anew)
            if before not in (None, local.content(MANIFEST)):
                self._saves.note_forgotten()  # another machine saved it, and may have forgotten something
        except OSError as error:
            raise not_read(place, error) from error

    def _files_of(self, name: str, text: bytes) -> Mapping[str, int] | None:
        """Bytes of the files by name that a manifest of a memory lists; None if it cannot be read."""
        try:
            key = self.vault.key(name) if self.vault is not None and is_sealed(text) else None
            return {file: about.nbytes for file, about in parse_manifest(text, name, key).files.items()}
        except (CorruptMemoryError, MemoryKeyError, MemoryReadError):  # whoever reads it says so
            return None

    def _publish(self, name: str) -> None:
        """Bring what was saved in the folder behind the url; if that fails, the folder has what was there before."""
        place = self._remote(name)
        try:
            files_of = lambda text: self._files_of(name, text)
            self._bases[name] = published(Folder(self.path(name)), place, self._bases[name], files_of)
        except BaseException as error:
            self._recent.drop(name)
            remove_folder(self.path(name))
            if isinstance(error, OSError) and not isinstance(error, MemorySaveError):
                raise not_saved(place, error) from error
            raise

    def _new_saves(self) -> SavedMemories:
        return SavedMemories(self.root, self.vault, quotas=self._quotas, recent=self._recent, publish=self._publish)

    def _new_deletions(self) -> Deletions:
        return UrlDeletions(self.root, self.vault, self._remote)

    def _erase(self, name: str) -> None:
        """Delete a memory: its key, what is behind the url, what is here.

        Raises:
            MemoryConflictError: Another machine has saved it meanwhile; what it saved is intact.
        """
        try:
            is_gone = self._deletions.delete(name)
        except MemoryLockedError:
            self._deletions.give_up(name)  # another machine is saving it
            raise
        if not is_gone:
            raise self._remote(name).conflict()

    def _make_room(self, kept: str) -> None:
        """Drop the copies that were used least recently and are not in use, until the rest fits."""
        if self.max_local_bytes is None:
            return
        copies = sorted(super().list(), key=lambda memory: memory.used)
        total = sum(memory.nbytes for memory in copies)
        for memory in copies:
            if total <= self.max_local_bytes or memory.name == kept:
                continue
            try:
                with self._locks.held(memory.name, 0.0):
                    remove_folder(self.root / memory.name)
            except (MemoryLockedError, MemorySaveError):
                continue
            self._recent.drop(memory.name)
            total -= memory.nbytes


class UrlDeletions(Deletions):
    """Deletions of memories behind a url, which another machine may have saved or made anew since they were begun.

    Args:
        root: The folder of copies.
        vault: Where the keys are, which all machines share.
        remote: Gives the place of a memory behind the url.
    """

    def __init__(self, root: Path, vault: KeyVault | None, remote: Callable[[str], Place]) -> None:
        super().__init__(root, vault)
        self._remote = remote

    def _erase(self, name: str, doomed: bytes) -> bool:
        """Destroy the key and remove what is behind the url, unless another save is there by now."""
        is_gone = removed(self._remote(name), doomed, lambda: self.destroy_key(name, doomed))
        if is_gone and is_sealed(doomed):  # a store without the vault may have removed it
            self.destroy_key(name, doomed)
        return is_gone
