"""``KeyVault``: the encryption keys of named memories, each in a file of its own so that it can be destroyed."""

import base64
import binascii
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from mplus.errors import CorruptMemoryError, MemoryKeyError
from mplus.given import path_of
from mplus.storage.clear_errors import clear_errors
from mplus.storage.encryption import KEY_BYTES, MemoryKey
from mplus.storage.folder import Folder, is_present, open_regular
from mplus.storage.names import check_name

MAX_KEY_FILE_BYTES = 4096
SALT_FILE = "vault.json"
SALT_BYTES = 16
LOCK_TIMEOUT = 30.0


class KeyVault:
    """Keys of named memories, in a folder that only the user can read.

        vault = KeyVault.with_passphrase("~/.keys", "correct horse battery staple")
        store = MemoryStore("memories", vault=vault)
        vault.destroy("alice")  # no copy of alice's memory can be read any more

    Keep the folder apart from the memories, and out of their backups: a key that is in no backup
    is destroyed when its file is. A vault belongs to one store: memories of one name in two stores would have one key,
    and deleting one would erase both.

    Args:
        folder: The folder of the key files; made if it does not exist.
        master: 32 bytes with which keys are encrypted. None: key files hold the keys unencrypted, and the folder
            itself must be kept secret.
    """

    kind = "vault"
    """What errors of the file system call it."""

    def __init__(self, folder: str | Path, *, master: bytes | None = None) -> None:
        self.folder = self.root = path_of(
            "folder", folder, instead="Name a folder, or one that is mounted, for the keys."
        )
        self._make()
        self._master = None if master is None else MemoryKey(master)

    @clear_errors
    def _make(self) -> None:
        Folder(self.folder).make()

    @classmethod
    def with_passphrase(cls, folder: str | Path, passphrase: str) -> "KeyVault":
        """A vault whose keys are encrypted under a passphrase (scrypt).

        Raises:
            ValueError: The passphrase is empty or no text.
            MemoryKeyError: The vault has keys, but not the file with which passphrases are turned into keys.
        """
        if not isinstance(passphrase, str) or not passphrase:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"passphrase of type {type(passphrase).__name__}: expected text that is not empty.")
        vault = cls(folder)
        secret = hashlib.scrypt(
            passphrase.encode("utf-8", "surrogatepass"),
            salt=vault._salt(),
            n=2**15,
            r=8,
            p=1,
            maxmem=2**26,
            dklen=KEY_BYTES,
        )
        return cls(vault.folder, master=secret)

    @clear_errors
    def _salt(self) -> bytes:
        """The salt of the passphrase, made if there are no keys yet."""
        path, place = self.folder, Folder(self.folder)
        with place.lock(LOCK_TIMEOUT):
            if not is_present(path / SALT_FILE):
                if wrapped := [key.name for key in sorted(path.glob("*.key")) if _is_wrapped(key)]:
                    raise MemoryKeyError(
                        f"{path}: {SALT_FILE} is missing, and {wrapped[0]!r} was made with it. Restore it from a copy; "
                        "with another one no passphrase opens these keys."
                    )
                text = json.dumps({"format": 1, "salt": _to_text(secrets.token_bytes(SALT_BYTES))}).encode()
                place.exchange(SALT_FILE, text)
                place.sync()
        return _from_text(_read(path / SALT_FILE).get("salt"), path / SALT_FILE)

    @clear_errors
    def key(self, name: str) -> MemoryKey:
        """The key of a memory.

        Raises:
            MemoryKeyError: The key was destroyed or never made, or the vault was opened with another master key.
        """
        path = self._path(name)
        if not _is_there(path):
            raise MemoryKeyError(
                f"{self.folder}: no key for memory {name!r}. It was destroyed or is elsewhere; without it the memory "
                "cannot be read."
            )
        known = _read(path)
        secret = _from_text(known.get("secret"), path)
        if known.get("wrapped") is not (self._master is not None):
            how = "with a master key or passphrase" if known.get("wrapped") else "without a master key"
            raise MemoryKeyError(f"{path}: this key was made by a vault opened {how}. Open the vault like that.")
        if self._master is not None:
            try:
                secret = self._master.unseal(path.name, secret)
            except CorruptMemoryError as error:
                raise MemoryKeyError(f"{path}: does not open with this master key or passphrase.") from error
        if len(secret) != KEY_BYTES:
            raise MemoryKeyError(f"{path}: holds no key. Restore it from a copy.")
        return MemoryKey(secret)

    @clear_errors
    def key_for_saving(self, name: str) -> MemoryKey:
        """The key of a memory, made if there is none yet.

        Raises:
            MemoryKeyError: There is a key, but the vault was opened with another master key.
        """
        place = Folder(self.folder)
        with place.lock(LOCK_TIMEOUT):
            if _is_there(self._path(name)):
                return self.key(name)
            key = MemoryKey.new()
            path = self._path(name)
            secret = key.secret if self._master is None else self._master.seal(path.name, key.secret)
            known = {"format": 1, "wrapped": self._master is not None, "id": key.id, "secret": _to_text(secret)}
            place.exchange(path.name, json.dumps(known).encode())
            place.sync()
            return key

    @clear_errors
    def destroy(self, name: str, *, key_id: str | None = None) -> bool:
        """Destroy the key of a memory; files encrypted with it can never be read again.

        Args:
            name: The memory.
            key_id: Destroy only the key of this ``MemoryKey.id``, and leave one that was made since; None: any key.

        Returns:
            Whether there was such a key.
        """
        path, place = self._path(name), Folder(self.folder)
        with place.lock(LOCK_TIMEOUT):
            if not is_present(path) or (key_id is not None and self._id(name) not in (key_id, None)):
                return False
            was_there = not path.is_file() or _is_there(path)
            _overwrite(path)
            path.unlink()
            place.sync()
            return was_there

    def _id(self, name: str) -> str | None:
        """The identifier of a key that is there; None if that cannot be told."""
        try:
            known = _read(self._path(name)).get("id")
            return known if isinstance(known, str) else self.key(name).id  # files of earlier versions do not tell it
        except (MemoryKeyError, CorruptMemoryError):
            return None

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}.key"


def _is_there(path: Path) -> bool:
    """Whether there is a key; one that a killed ``destroy`` had overwritten already is none."""
    if not is_present(path):
        return False
    with open_regular(path) as file:
        return any(file.read(MAX_KEY_FILE_BYTES))


def _overwrite(path: Path) -> None:
    """Overwrite a key in place, so that freed disk blocks do not hold it; what is no regular file holds none."""
    if not path.is_file() or path.is_symlink():
        return
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.write(b"\0" * size)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        text = file.read(MAX_KEY_FILE_BYTES + 1)
    try:
        known = json.loads(text) if len(text) <= MAX_KEY_FILE_BYTES else None
    except ValueError:
        known = None
    if not isinstance(known, dict) or known.get("format") != 1:
        raise MemoryKeyError(f"{path}: not a file of this vault. Restore it from a copy.")
    return known


def _is_wrapped(path: Path) -> bool:
    try:
        return _is_there(path) and _read(path).get("wrapped") is True
    except (MemoryKeyError, CorruptMemoryError):
        return False


def _to_text(secret: bytes) -> str:
    return base64.b64encode(secret).decode()


def _from_text(text: Any, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise MemoryKeyError(f"{path}: holds no key. Restore it from a copy.") from error
