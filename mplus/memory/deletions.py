"""Deletions of a store's memories: the key first, and finished by whoever comes next if the process is killed.

A deletion begins with a mark, the file ``.deleting-<name>``, which says what the memory's manifest began with. Then the
key is destroyed, the folder is removed, and the mark goes last.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from mplus.errors import CorruptMemoryError, MemoryLockedError
from mplus.memory.forgettings import Forgettings
from mplus.memory.recent import identity
from mplus.storage.folder import Folder, is_present, is_regular, remove_folder
from mplus.storage.manifest import is_sealed, key_id
from mplus.storage.names import forget_id
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

    def delete(self, name: str) -> bool:
        """Delete a memory whose lock the caller holds.

        Returns:
            Whether it is gone; not if something else was saved under that name meanwhile, which is intact.

        Raises:
            OSError: The folder cannot be written to; what was begun is finished later.
        """
        place, mark = Folder(self._root), self._root / f"{MARK}{name}"
        if mark.is_dir() and not mark.is_symlink():
            raise OSError(errno.EISDIR, f"{mark} is no file, as the store would write there. Remove it")
        place.exchange(mark.name, identity(self._root / name))
        place.sync()
        return self.finish(name)

    def is_begun(self, name: str) -> bool:
        """Whether what is saved under that name is to be deleted."""
        doomed = self._marked(name)
        return doomed is not None and doomed == identity(self._root / name)

    def finish(self, name: str) -> bool:
        """Finish the deletion of a memory, if one was begun. The caller holds the memory's lock.

        Returns:
            Whether nothing is left of it; not if something else was saved under that name since.
        """
        doomed = self._marked(name)
        if doomed is None:
            return True
        folder, place = self._root / name, Folder(self._root)
        is_gone = self._erase(name, doomed)
        if is_gone:
            forget_id(self._root, name)
        if identity(folder) in (b"", doomed) and is_present(folder):
            gone = self._root / f"{DELETED}{name}-{time.time_ns()}"
            folder.rename(gone)
            place.sync()
            remove_folder(gone)
        if is_gone:
            Forgettings(self._root).note()
        if self._vault is None and is_sealed(doomed):
            return is_gone  # A store that has the vault destroys the key.
        self.give_up(name)
        return is_gone

    def give_up(self, name: str) -> None:
        """Do not finish the deletion of a memory any more."""
        Folder(self._root).remove(f"{MARK}{name}")
        Folder(self._root).sync()

    def _erase(self, name: str, doomed: bytes) -> bool:
        """Destroy the key of what is to be deleted, unless another memory has the name by now."""
        present = identity(self._root / name)
        # A store without the vault may have saved another memory under that name since.
        is_doomed = present in (b"", doomed)
        if is_doomed or not is_sealed(present):
            self.destroy_key(name, doomed)
        return is_doomed

    def destroy_key(self, name: str, doomed: bytes) -> None:
        """Destroy the key of a memory whose manifest begins like that; not one that was made for the name since."""
        if self._vault is not None:
            self._vault.destroy(name, key_id=key_id(doomed))

    def sweep(self, held: Callable[[str], AbstractContextManager[None]]) -> None:
        """Finish all deletions that were begun, except of memories that are open elsewhere."""
        for path in self._root.glob(f"{DELETED}*"):
            remove_folder(path)
        for name in self._begun():
            try:
                with held(name):
                    self.finish(name)
            except (MemoryLockedError, OSError):
                continue  # Whoever holds it finishes, or the next to hold it.

    def _begun(self) -> Iterator[str]:
        for path in sorted(self._root.glob(f"{MARK}*")):
            if is_regular(path):
                yield path.name.removeprefix(MARK)

    def _marked(self, name: str) -> bytes | None:
        """What the memory began with that is to be deleted; None if none is, also if no store wrote what is there."""
        mark = self._root / f"{MARK}{name}"
        try:
            with Folder(self._root).open(mark.name) as file:
                return file.read(MARK_BYTES)
        except FileNotFoundError:
            return None
        except CorruptMemoryError:
            if is_regular(mark):
                raise
            return None
