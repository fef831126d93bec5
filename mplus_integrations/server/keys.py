"""API keys: who may open which memory. A file holds only their hashes."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mplus import MemoryStore
from mplus.forks import ProcessLock
from mplus.given import path_of

FORMAT = 1
OWN_PREFIX = "key-"
"""Names of memories that belong to a key without a file of keys begin with this."""


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        id: A name for logs and rates that tells neither key nor person.
        memory: The memory that is meant where a request names none.
        may_open: Memories that may be read and written; None: every one.
        may_read: Memories that may also be read beside the own one.
    """

    id: str
    memory: str
    may_open: frozenset[str] | None
    may_read: frozenset[str] = frozenset()

    def opens(self, name: str) -> bool:
        """Whether the caller may read and write a memory."""
        return self.may_open is None or name in self.may_open

    def reads(self, name: str) -> bool:
        """Whether the caller may read a memory."""
        return self.opens(name) or name in self.may_read


@dataclass(frozen=True)
class KnownKey:
    """A key as a file keeps it."""

    id: str
    sha256: str
    memory: str
    opens: tuple[str, ...] | None
    """Memories that it opens beside its own; None: every one."""
    created: float
    """Unix time."""


def digest(key: str) -> str:
    """The hash of a key. Keys are random and long, so a plain hash cannot be searched for them."""
    return hashlib.sha256(key.encode()).hexdigest()


def own_memory(key: str) -> str:
    """The name of the memory that belongs to a key where there is no file of keys; does not tell the key."""
    return OWN_PREFIX + digest(f"memory of {key}")[:40]


class KeyRing:
    """A file of keys, read anew when it changes: a key that is revoked is let in no more, without a restart.

    Args:
        path: The file; made by the first key, for the user alone.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path_of("keys", path)
        self._known: dict[str, KnownKey] = {}
        self._read_at: tuple[int, int, int] | None = None
        self._guard = ProcessLock()

    def add(self, memory: str, *, opens: Iterable[str] | None = ()) -> tuple[KnownKey, str]:
        """Make a key for a memory.

        Args:
            memory: The memory that is meant where a request names none.
            opens: Further memories that the key opens; None: every one.

        Returns:
            What is kept of it, and the key itself, which is kept nowhere.

        Raises:
            ValueError: A name is not allowed.
        """
        MemoryStore.check_name(memory, "memory=")
        others = None if opens is None else tuple(MemoryStore.check_name(name, "opens=") for name in opens)
        key = f"mplus-{secrets.token_urlsafe(32)}"
        known = KnownKey(secrets.token_hex(4), digest(key), memory, others, time.time())
        with self._changing() as keys:
            self._write([*keys.values(), known])
        return known, key

    def revoke(self, key_id: str) -> None:
        """Let a key in no more.

        Raises:
            ValueError: There is no key of that id.
        """
        with self._changing() as keys:
            left = [known for known in keys.values() if known.id != key_id]
            if len(left) == len(keys):
                ids = ", ".join(known.id for known in keys.values()) or "none"
                raise ValueError(f"key {key_id!r}: {self.path} has no such key; it has: {ids}.")
            self._write(left)

    def list(self) -> list[KnownKey]:
        """Every key, in the order in which they were made."""
        return list(self._present().values())

    def find(self, key: str) -> KnownKey | None:
        """What is known of a key; None if it is not in the file."""
        return self._present().get(digest(key))

    def _present(self) -> dict[str, KnownKey]:
        with self._guard:
            try:
                about = self.path.stat()
            except FileNotFoundError:
                self._known, self._read_at = {}, None
                return {}
            stamp = (about.st_mtime_ns, about.st_ino, about.st_size)
            if stamp != self._read_at:
                self._known = _parsed(self.path)
                self._read_at = stamp
            return self._known

    def _changing(self) -> "_Changing":
        return _Changing(self)

    def _write(self, keys: Iterable[KnownKey]) -> None:
        text = json.dumps({"format": FORMAT, "keys": [asdict(known) for known in keys]}, indent=1)
        work = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(work, self.path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise
        _force_names(self.path.parent)  # else a key that was revoked opens memories again after a power loss


class _Changing:
    """Holds the lock of a file of keys, so that two changes at once lose none."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        folder = ring.path.parent
        missing = [path for path in (folder, *folder.parents) if not path.is_dir()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            _force_names(path.parent)
        self._lock = FileLock(f"{ring.path}.lock", mode=0o600)

    def __enter__(self) -> dict[str, KnownKey]:
        self._lock.acquire()
        return dict(self._ring._present())

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _force_names(folder: Path) -> None:
    """Force the names of a folder's files to disk, where the system lets folders be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parsed(path: Path) -> dict[str, KnownKey]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, expected {FORMAT}")
        keys = [_as_key(key) for key in found["keys"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of keys ({error}). Restore it, or make keys with mplus keys."
        ) from error
    return {known.sha256: known for known in keys}


def _as_key(found: dict[str, Any]) -> KnownKey:
    opens = None if found["opens"] is None else tuple(found["opens"])
    return KnownKey(found["id"], found["sha256"], found["memory"], opens, found["created"])
