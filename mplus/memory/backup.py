"""Backups of a store: every memory whole, as of one save, while others write; and back again.

A backup is a folder of memories, each in a folder of its name, and ``backup.json``, which is written last: it lists
them with the checksum of their manifests, so that a backup that was not finished or was altered is noticed.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryNotFoundError, MemoryReadError
from mplus.storage.address import folder_of
from mplus.storage.encryption import MemoryKey
from mplus.storage.files import SAVE_TIMEOUT, copy, verify
from mplus.storage.folder import Folder
from mplus.storage.manifest import key_id, read_manifest
from mplus.storage.names import MANIFEST, check_name, name_for
from mplus.storage.place import Place, not_read
from mplus.storage.url import Url

LIST = "backup.json"
FORMAT = 1
MAX_LIST_BYTES = 2**26
TRIES = 8
"""So often a memory that is saved meanwhile is tried again without keeping its writers waiting."""


@dataclass(frozen=True)
class Backup:
    """A backup, as its list describes it.

    Attributes:
        place: Where it is.
        memories: SHA-256 of the manifest of every memory, by name.
        ids: The ids of those memories whose names do not tell them.
    """

    place: Place
    memories: dict[str, str]
    ids: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def read(cls, place: Place) -> "Backup":
        """The backup in a place.

        Raises:
            MemoryNotFoundError: There is none, or it was not finished.
            CorruptMemoryError: Its list was altered.
        """
        try:
            with place.open(LIST) as file:
                text = file.read(MAX_LIST_BYTES)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MemoryNotFoundError(f"{place}: no {LIST}, so no backup, or one that was not finished.") from error
        except OSError as error:
            raise not_read(place, error) from error
        try:
            found: Any = json.loads(text)
            known = cast("dict[str, Any]", found["memories"])
            if found["format"] != FORMAT or not all(isinstance(value, str) for value in known.values()):
                raise ValueError(f"format {found['format']!r:.20}")
            ids = cast("dict[str, Any]", found.get("ids", {}))
            return cls(
                place,
                {check_name(name): value for name, value in known.items()},
                {name: id for name, id in ids.items() if isinstance(id, str) and id.strip() and name_for(id) == name},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptMemoryError(f"not the list of a backup ({error!r:.100}). Make another.", place) from error

    def write(self) -> None:
        """Write the list."""
        described = {"format": FORMAT, "made": time.time(), "memories": self.memories, "ids": self.ids}
        with self.place.lock(SAVE_TIMEOUT):
            self.place.exchange(LIST, json.dumps(described, indent=1).encode())
            self.place.sync()

    def memory(self, name: str) -> Place:
        """The place of one of its memories.

        Raises:
            MemoryNotFoundError: There is none of that name, or not any more.
        """
        if name not in self.memories:
            known = ", ".join(sorted(self.memories)[:8]) or "none"
            raise MemoryNotFoundError(f"{self.place}: no memory called {name!r} in this backup; there are: {known}.")
        place = folder_of(f"{self.place}/{name}")
        read_manifest(place)
        return place

    def check(self, name: str, place: Place, key: MemoryKey | None) -> None:
        """Check every byte of one of its memories.

        Raises:
            CorruptMemoryError: It was altered since.
            MemoryKeyError: It is encrypted, and the key is missing or another.
        """
        if checksum(place) != self.memories[name]:
            raise CorruptMemoryError("another memory than the backup lists. Take another backup.", place)
        verify(place, key=key)


def checksum(place: Place) -> str:
    """What the list of a backup says of a memory."""
    return hashlib.sha256(read_manifest(place)).hexdigest()


def copy_in_use(source: Folder, target: Place, key_of: Callable[[], MemoryKey | None]) -> str:
    """Copy a memory while others may save it, as it was at one save, with every byte checked.

    Returns:
        Its checksum for the list.

    Raises:
        CorruptMemoryError: It is damaged.
        MemoryNotFoundError: It was deleted meanwhile.
        OSError: The copy cannot be written.
    """
    for _ in range(TRIES):
        before = read_manifest(source)
        try:
            copy(source, target, key=(key := key_of()), new_key=key, check=True)
            return checksum(target)
        except (CorruptMemoryError, MemoryKeyError, MemoryReadError, FileNotFoundError):
            # Another save may have ended meanwhile, and have removed files of the save that is being copied.
            if read_manifest(source) == before:
                raise
    with source.lock(SAVE_TIMEOUT):
        copy(source, target, key=(key := key_of()), new_key=key, check=True)
    return checksum(target)


def damage(place: Place, key: MemoryKey | None) -> str | None:
    """What is wrong with a saved memory, every byte of it read; None if nothing is."""
    try:
        verify(place, key=key)
    except (CorruptMemoryError, MemoryKeyError, MemoryReadError, MemoryNotFoundError) as error:
        return str(error)
    return None


def is_encrypted(place: Place) -> bool:
    """Whether a saved memory is encrypted."""
    with place.open(MANIFEST) as file:
        return key_id(file.read(256)) is not None


def first_memory(place: Place) -> str | None:
    """The name of a memory that is in a folder already; None if there is none."""
    if isinstance(place, Url):
        found = (name for name, files in sorted(place.folders().items()) if MANIFEST in files)
    else:
        assert isinstance(place, Folder)
        found = (path.parent.name for path in sorted(place.path.glob(f"*/{MANIFEST}")))
    return next(found, None)
