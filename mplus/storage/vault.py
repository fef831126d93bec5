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
from mplus.storage.encryption import KEY_BYTES, MemoryKey
from mplus.storage.folder import Folder, open_regular
from mplus.storage.names import check_name

MAX_KEY_FILE_BYTES = 4096
SALT_FILE = "vault.json"
LOCK_TIMEOUT = 30.0


class KeyVault:
    """Keys of named memories, in a folder that only the user can read.

        vault = KeyVault.with_passphrase("~/.keys", "correct horse battery staple")
        store = MemoryStore("memories", vault=vault)
        vault.destroy("alice")  # no copy of alice's memory can be read any more

    Keep the folder apart from the memories, and out of their backups: a key that is in no backup
    is destroyed when its file is.

    Args:
        folder: The folder of the key files; made if it does not exist.
        master: 32 bytes with which keys are encrypted. None: key files hold the keys unencrypted, and the folder
            itself must be kept secret.
    """

    def __init__(self, folder: str | Path, *, master: bytes | None = None) -> None:
        self.folder = Path(folder).expanduser()
        Folder(self.folder).make()
        self._master = None if master is None else MemoryKey(master)

    @classmethod
    def with_passphrase(cls, folder: str | Path, passphrase: str) -> "KeyVault":
        """A vault whose keys are encrypted under a passphrase (scrypt).

        Raises:
            ValueError: The passphrase is empty.
        """
        if not passphrase:
            raise ValueError("passphrase='': expected a passphrase that is not empty.")
        path = Path(folder).expanduser()
        place = Folder(path)
        with place.lock(LOCK_TIMEOUT):
            if not (path / SALT_FILE).exists():
                text = json.dumps({"format": 1, "salt": _to_text(secrets.token_bytes(16))}).encode()
                place.exchange(SALT_FILE, text)
        salt = _read(path / SALT_FILE)["salt"]
        secret = hashlib.scrypt(
            passphrase.encode(), salt=_from_text(salt, path), n=2**15, r=8, p=1, maxmem=2**26, dklen=KEY_BYTES
        )
        return cls(path, master=secret)

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
            known = {"format": 1, "wrapped": self._master is not None, "secret": _to_text(secret)}
            place.exchange(path.name, json.dumps(known).encode())
            place.sync()
            return key

    def destroy(self, name: str) -> bool:
        """Destroy the key of a memory; files encrypted with it can never be read again.

        Returns:
            Whether there was a key.
        """
        path, place = self._path(name), Folder(self.folder)
        with place.lock(LOCK_TIMEOUT):
            if not os.path.lexists(path):
                return False
            was_there = not path.is_file() or _is_there(path)
            _overwrite(path)
            path.unlink()
            place.sync()
            return was_there

    def _path(self, name: str) -> Path:
        return self.folder / f"{check_name(name)}.key"


def _is_there(path: Path) -> bool:
    """Whether there is a key; one that a killed ``destroy`` had overwritten already is none."""
    if not os.path.lexists(path):
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


def _to_text(secret: bytes) -> str:
    return base64.b64encode(secret).decode()


def _from_text(text: Any, path: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise MemoryKeyError(f"{path}: holds no key. Restore it from a copy.") from error
