"""What a store knows of a memory without reading it."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mplus.errors import CorruptMemoryError
from mplus.memory.recent import identity
from mplus.storage.folder import Folder, is_foreign
from mplus.storage.manifest import is_sealed
from mplus.storage.names import MANIFEST, id_of, noted_id

COPIES_OF = ".copies-of"
"""The file in a folder of copies of memories behind a url that says of which url."""


def copies_of(root: Path) -> str | None:
    """The url of which a folder has copies; None if it is no such folder."""
    noted = Folder(root).content(COPIES_OF)
    return None if noted is None else noted.decode(errors="replace")


@dataclass(frozen=True)
class StoredMemory:
    """One memory on disk."""

    name: str
    nbytes: int
    saved: float
    """Unix time of the last save."""
    used: float
    """Unix time when it was last opened or loaded."""
    encrypted: bool
    id: str
    """The id for which ``MemoryStore.name_for`` gave the name.

    The name itself if it is none, or if ``open`` was not told an id that is too long.
    """

    @classmethod
    def of(cls, folder: Path) -> "StoredMemory | None":
        """What is known of the memory in a folder of a store; None if there is none in it."""
        try:
            saved = (folder / MANIFEST).lstat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            # One of ours that was closed is listed; not "lost+found", which is at the top of a disk and root's.
            return None if is_foreign(folder) else cls(folder.name, 0, 0.0, 0.0, False, id_of(folder.name))
        used, encrypted = saved, False
        with suppress(FileNotFoundError):
            used = max(saved, (folder.parent / f".{folder.name}.lock").stat().st_mtime)
        with suppress(CorruptMemoryError):
            encrypted = is_sealed(identity(folder))
        return cls(
            folder.name,
            sum(Folder(folder).sizes().values()),
            saved,
            used,
            encrypted,
            noted_id(folder.parent, folder.name),
        )
