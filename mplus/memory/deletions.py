"""Deletions of a store's memories: the key first, and finished by whoever comes next if the process is killed.

A deletion begins with a mark, the file ``.deleting-<name>``, which says what the memory's manifest began with. Then the
key is destroyed, the folder is removed, and the mark goes last.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from mplus.errors import MemoryLockedError
from mplus.memory.recent import identity
from mplus.storage.folder import Folder
from mplus.storage.manifest import is_sealed
from mplus.storage.vault import KeyVault

MARK = ".deleting-"
DELETED = ".deleted-"
MARK_BYTES = 256


class Deletions:
    """The deletions of one store.

    Args:
        root: The folder of the store.
        vault: Where the keys of its memories are.
    """

    def __init__(self, root: Path, vault: KeyVault | None) -> None:
        self._root, self._vault = root, vault

    def delete(self, name: str) -> None:
        """Delete a memory whose lock the caller holds.

        Raises:
            OSError: The folder cannot be written to; what was begun is finished later.
        """
        place = Folder(self._root)
        place.exchange(f"{MARK}{name}", identity(self._root / name))
        place.sync()
        self.finish(name)

    def is_begun(self, name: str) -> bool:
        """Whether what is saved under that name is to be deleted."""
        doomed = self._marked(name)
        return doomed is not None and doomed == identity(self._root / name)

    def finish(self, name: str) -> None:
        """Finish the deletion of a memory, if one was begun. The caller holds the memory's lock."""
        doomed = self._marked(name)
        if doomed is None:
            return
        folder, place = self._root / name, Folder(self._root)
        present = identity(folder)
        # A store without the vault may have saved another memory under that name since.
        is_doomed = present in (b"", doomed)
        if self._vault is not None and (is_doomed or not is_sealed(present)):
            self._vault.destroy(name)
        if is_doomed and os.path.lexists(folder):
            gone = self._root / f"{DELETED}{name}-{time.time_ns()}"
            folder.rename(gone)
            place.sync()
            shutil.rmtree(gone, ignore_errors=True)
        if self._vault is None and is_sealed(doomed):
            return  # A store that has the vault destroys the key.
        place.remove(f"{MARK}{name}")
        place.sync()

    def sweep(self, held: Callable[[str], AbstractContextManager[None]]) -> None:
        """Finish all deletions that were begun, except of memories that are open elsewhere."""
        for path in self._root.glob(f"{DELETED}*"):
            shutil.rmtree(path, ignore_errors=True)
        for name in self._begun():
            try:
                with held(name):
                    self.finish(name)
            except (MemoryLockedError, OSError):
                continue  # Whoever holds it finishes, or the next to hold it.

    def _begun(self) -> Iterator[str]:
        for path in sorted(self._root.glob(f"{MARK}*")):
            yield path.name.removeprefix(MARK)

    def _marked(self, name: str) -> bytes | None:
        """What the memory began with that is to be deleted; None if none is."""
        try:
            with Folder(self._root).open(f"{MARK}{name}") as file:
                return file.read(MARK_BYTES)
        except FileNotFoundError:
            return None
