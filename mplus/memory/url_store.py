"""``UrlStore``: a store behind a url that many machines share; each has copies of what it used in a local folder."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mplus.errors import MemoryLockedError, MemorySaveError
from mplus.memory.clear_errors import clear_errors
from mplus.memory.memory import Memory, MemoryMaker
from mplus.memory.store import MemoryStore
from mplus.memory.stored import StoredMemory
from mplus.storage.address import folder_of
from mplus.storage.folder import Folder
from mplus.storage.mirror import Base, fetched, published, removed
from mplus.storage.names import MANIFEST, check_name, id_of
from mplus.storage.place import not_read, not_saved
from mplus.storage.url import Url, moment
from mplus.storage.vault import KeyVault

READ_SECONDS = 60.0
"""How long a read waits while this machine writes the memory, or fetches it."""
LEASE_SECONDS = 20.0
"""How long a memory whose machine died while it saved is closed to others."""


class UrlStore(MemoryStore):
    """Named memories behind a url, for many machines at once.

    A change is behind the url when ``open`` ends. What is read is the last save of any machine: each use asks the url
    whether there is a newer one. Of two machines that change a memory at once, the second to save gets a
    ``MemoryConflictError``, and what the first saved is intact.

    Args:
        url: An ``fsspec`` url of a folder, such as "s3://bucket/memories".
        folder: A local folder for copies; processes of one machine may share it.
        max_memory_bytes: Most bytes of one saved memory; None for no limit.
        max_local_bytes: Most bytes of local copies; beyond that those used least recently are dropped. None: no limit.
        max_resident_bytes: Most bytes of host memory for memories that are not open.
        vault: Holds a key for each memory, with which it is encrypted; every machine needs the same vault.

    Raises:
        ValueError: ``url`` is a local folder, or no file system for such urls is installed.
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
        place = folder_of(url)
        if not isinstance(place, Url):
            raise ValueError(f"url={url!r} is a local folder. Expected a url such as 's3://bucket/memories'.")
        self.url, self.max_local_bytes = url.rstrip("/"), max_local_bytes
        self._bases: dict[str, Base] = {}
        super().__init__(folder, max_memory_bytes=max_memory_bytes, max_resident_bytes=max_resident_bytes, vault=vault)

    def __getstate__(self) -> dict[str, object]:
        """Url, folder and limits, for another process.

        Raises:
            ValueError: The store has a vault, whose keys must not get into a pickle.
        """
        state = super().__getstate__()
        state |= {"url": self.url, "folder": state.pop("root"), "max_local_bytes": self.max_local_bytes}
        state.pop("max_total_bytes")
        return state

    def load(self, name: str, model: MemoryMaker) -> Memory:
        """A memory as it was last saved by any machine; changes to it are not saved.

        Raises:
            MemoryNotFoundError: There is none of that name.
            MemoryKeyError: It is encrypted and its key is not in the vault.
            CorruptMemoryError: The saved state is damaged.
            MemoryReadError: The url cannot be reached.
        """
        if self._present(name) != Folder(self.path(name)).content(MANIFEST):
            with self._held(name, READ_SECONDS):  # which fetches it
                return super().load(name, model)
        return super().load(name, model)

    @clear_errors
    def list(self) -> list[StoredMemory]:
        """Every memory behind the url, by name."""
        root = self._remote()
        try:
            folders = root.folders()
        except OSError as error:
            raise not_read(root, error) from error
        found = [self._stored(name, files) for name, files in sorted(folders.items()) if MANIFEST in files]
        return [one for one in found if one is not None]

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

    @contextmanager
    def _held(self, name: str, timeout: float) -> Generator[None]:
        """Hold a memory's lock on this machine, with the last save of any machine in the local folder."""
        with super()._held(name, timeout):
            place = self._remote(name)
            try:
                is_new = not (self.path(name) / MANIFEST).exists()
                self._bases[name] = fetched(place, Folder(self.path(name)))
            except OSError as error:
                raise not_read(place, error) from error
            try:
                if is_new and self._bases[name].manifest is not None:
                    self._make_room(name)
                yield
            finally:
                self._bases.pop(name, None)

    def _publish(self, name: str) -> None:
        """Bring what was saved in the folder behind the url; if that fails, the folder has what was there before."""
        place = self._remote(name)
        try:
            self._bases[name] = published(Folder(self.path(name)), place, self._bases[name])
        except BaseException as error:
            self._recent.drop(name)
            shutil.rmtree(self.path(name), ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, MemorySaveError):
                raise not_saved(place, error) from error
            raise

    def _erase(self, name: str) -> None:
        """Delete a memory behind the url, then here."""
        removed(self._remote(name), self._bases[name])
        super()._erase(name)

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
                    shutil.rmtree(self.root / memory.name, ignore_errors=True)
            except (MemoryLockedError, MemorySaveError):
                continue
            self._recent.drop(memory.name)
            total -= memory.nbytes
