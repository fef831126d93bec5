"""Encryption at rest: AES-256-GCM under one key per memory. Destroying the key erases the memory.

Every file has a key of its own, derived from the memory's key and a random salt (HKDF-SHA-256). Blocks are
numbered, and the number is the nonce. So no nonce is used twice with the same key, and an exchanged block, file
or end of a file is detected.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Any

from mplus.errors import CorruptMemoryError

KEY_BYTES = 32
MAGIC = b"mplus-2\n"
SALT_BYTES = 32
TAG_BYTES = 16


def _aead(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ImportError(
            "Encrypted memories need the 'cryptography' package: pip install 'mplus-memory[encryption]'."
        ) from error
    return AESGCM(key)


class FileCipher:
    """Encryption of the numbered blocks of one file."""

    overhead = TAG_BYTES

    def __init__(self, key: bytes, salt: bytes, name: str) -> None:
        self.head = MAGIC + salt
        # HKDF with one block of output: extract, then expand.
        extracted = hmac.new(salt, key, hashlib.sha256).digest()
        info = b"mplus file " + name.encode() + b"\x01"
        self._aead = _aead(hmac.new(extracted, info, hashlib.sha256).digest())

    def encrypt(self, number: int, block: Any) -> bytes:
        """Encrypt a block; the result ends with its tag."""
        return self._aead.encrypt(number.to_bytes(12, "little"), block, None)

    def decrypt(self, number: int, block: Any) -> bytes:
        """Decrypt a block.

        Raises:
            CorruptMemoryError: The block was altered, or is from another position or file.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(number.to_bytes(12, "little"), block, None)
        except (InvalidTag, ValueError) as error:
            raise CorruptMemoryError("altered after it was saved, or of another key") from error


@dataclass(frozen=True)
class MemoryKey:
    """The key of one memory.

    Attributes:
        secret: 32 random bytes; ``MemoryKey.new()`` draws them.
    """

    secret: bytes = field(repr=False)

    head_bytes = len(MAGIC) + SALT_BYTES
    overhead = TAG_BYTES

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes | bytearray):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"A key is {KEY_BYTES} bytes, this is {type(self.secret).__name__}.")
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"A key has {KEY_BYTES} bytes, this has {len(self.secret)}. MemoryKey.new() makes one.")
        _aead(self.secret)

    @classmethod
    def new(cls) -> "MemoryKey":
        """A new random key."""
        return cls(os.urandom(KEY_BYTES))

    @property
    def id(self) -> str:
        """An identifier from which the key cannot be derived."""
        return hashlib.sha256(b"mplus key id" + self.secret).hexdigest()[:16]

    def new_cipher(self, name: str) -> FileCipher:
        """Encryption of a new file of that name."""
        return FileCipher(self.secret, os.urandom(SALT_BYTES), name)

    def cipher(self, name: str, head: bytes) -> FileCipher:
        """Decryption of the file of that name that begins with ``head``.

        Raises:
            CorruptMemoryError: ``head`` is not the beginning of an encrypted file.
        """
        if len(head) != self.head_bytes or not head.startswith(MAGIC):
            raise CorruptMemoryError("it is not an encrypted file of a memory")
        return FileCipher(self.secret, head[len(MAGIC) :], name)

    def seal(self, name: str, text: bytes) -> bytes:
        """Encrypt a small file in one piece."""
        cipher = self.new_cipher(name)
        return cipher.head + cipher.encrypt(0, text)

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """Decrypt a file that ``seal`` encrypted.

        Raises:
            CorruptMemoryError: The file was altered.
        """
        return self.cipher(name, sealed[: self.head_bytes]).decrypt(0, sealed[self.head_bytes :])
