"""``memory.json``: the one file that says which others make up a saved memory, and their checksums.

    {"format": 2, "sha256": …, "memory": {…}}                  plain
    {"format": 2, "sha256": …, "key": …, "sealed": "…"}        encrypted: "memory", sealed, in base64

The checksum is of the bytes of the last value, so nothing of it is parsed before it is known to be whole.
"""

import base64
import binascii
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryNotFoundError
from mplus.storage.codec import from_json, to_json
from mplus.storage.encryption import MemoryKey
from mplus.storage.shards import ShardSum, open_regular

FORMAT = 2
MANIFEST = "memory.json"
MAX_MANIFEST_BYTES = 2**28
MAX_FILES = 2**20
FILE_NAME = r"^(tokens|state|records)-[0-9a-f]{32}\.(safetensors|sealed|jsonl)$"
_OWN_NAME = re.compile(FILE_NAME)
_OLD_NAME = re.compile(r"^(segment-[0-9a-f]{32}|state-[0-9a-f]{24}-[0-9a-f]{8})\.safetensors$")
_SEAL = re.compile(
    rb'\{"format":(?P<format>\d{1,9}),"sha256":"(?P<sha256>[0-9a-f]{64})",'
    rb'("key":"(?P<key>[0-9a-f]{16})","sealed":|"memory":)'
)

FileName = str


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrackEntry(_Entry):
    """The files of one track, in order."""

    short_term: list[FileName]
    pending: list[FileName]
    long_term: list[FileName]
    num_pending: int = Field(ge=0)
    """Tokens that live in those files."""
    num_long_term: int = Field(ge=0)


class StateEntry(_Entry):
    """The files and facts of one state."""

    shard: FileName
    """Columns of provenance, and whatever else tensors hold."""
    context: FileName | None
    tracks: list[TrackEntry]
    values: dict[str, Any]
    """Fields of the state that fit in here."""
    records: dict[str, list[FileName] | None]
    """Fields that are tables of records, such as the sources."""


class SnapshotEntry(_Entry):
    """A state that can be rolled back to."""

    id: str
    label: str
    created: float
    """Unix time."""
    state: StateEntry


class Manifest(_Entry):
    """What a saved memory consists of."""

    format: Literal[2] = FORMAT
    model: str
    """Fingerprint of the model that wrote it."""
    seed: int
    config: dict[str, Any]
    saved: float
    """Unix time."""
    state: StateEntry
    snapshots: list[SnapshotEntry] = Field(default_factory=list[SnapshotEntry])
    files: dict[FileName, ShardSum] = Field(max_length=MAX_FILES)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files but the manifest."""
        return sum(file.nbytes for file in self.files.values())


def is_own_file(name: str) -> bool:
    """Whether a file of that name can only be one that saving a memory made."""
    return bool(_OWN_NAME.fullmatch(name) or _OLD_NAME.fullmatch(name)) or name.startswith(".writing-")


def sealed_manifest(manifest: Manifest, key: MemoryKey | None) -> bytes:
    """The bytes of ``memory.json``."""
    body = to_json(manifest.model_dump(mode="json"))
    middle = b'"memory":'
    if key is not None:
        body = b'"' + base64.b64encode(key.seal(MANIFEST, body)) + b'"'
        middle = f'"key":"{key.id}","sealed":'.encode()
    digest = hashlib.sha256(body).hexdigest()
    return f'{{"format":{FORMAT},"sha256":"{digest}",'.encode() + middle + body + b"}\n"


def read_manifest_bytes(folder: Path) -> bytes:
    """The bytes of ``memory.json``, if there are not too many.

    Raises:
        MemoryNotFoundError: There is none.
        CorruptMemoryError: It is no regular file, or too large.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise MemoryNotFoundError(f"{folder}: no saved memory. Expected a folder with {MANIFEST} in it.")
    with open_regular(path) as file:
        text = file.read(MAX_MANIFEST_BYTES + 1)
    if len(text) > MAX_MANIFEST_BYTES:
        raise CorruptMemoryError(f"{path}: more than {MAX_MANIFEST_BYTES:,} bytes. Restore it from a copy.")
    return text


def format_of(text: bytes, path: Path) -> int:
    """The format that ``memory.json`` is written in.

    Raises:
        CorruptMemoryError: It is of no format that this version reads.
    """
    match = _SEAL.match(text)
    if match is not None:
        found: Any = int(match["format"])
    else:
        # The first format has its number inside, behind its checksum.
        try:
            found = json.loads(text)["memory"]["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptMemoryError(f"{path}: not readable ({error}). Restore it from a copy.") from error
    if found not in (1, FORMAT) or (found == FORMAT) != (match is not None):
        raise CorruptMemoryError(f"{path}: format {found!r:.40}, this version reads 1 and {FORMAT}. Update mplus.")
    return int(found)


def is_sealed(folder: Path) -> bool:
    """Whether what is saved in a folder is encrypted.

    Raises:
        FileNotFoundError: Nothing is saved there.
    """
    with (folder / MANIFEST).open("rb") as file:
        match = _SEAL.match(file.read(256))
    return match is not None and match["key"] is not None


def parse_manifest(text: bytes, path: Path, key: MemoryKey | None) -> Manifest:
    """The manifest in the bytes of ``memory.json``, checked.

    Raises:
        CorruptMemoryError: It was altered.
        MemoryKeyError: It is encrypted and the key is missing or another one, or it is not and there is one.
    """
    match = _SEAL.match(text)
    assert match is not None
    body = text[match.end() :].rstrip(b"\n")[:-1]
    if hashlib.sha256(body).hexdigest() != match["sha256"].decode() or not text.rstrip(b"\n").endswith(b"}"):
        raise CorruptMemoryError(f"{path}: was altered after it was saved. Restore it from a copy.")
    if (match["key"] is None) != (key is None) or (key is not None and match["key"].decode() != key.id):
        raise MemoryKeyError(_key_message(path, match["key"], key))
    if key is not None:
        try:
            body = key.unseal(MANIFEST, base64.b64decode(body.strip(b'"'), validate=True))
        except (binascii.Error, CorruptMemoryError) as error:
            raise CorruptMemoryError(f"{path}: cannot be decrypted ({error}). Restore it from a copy.") from error
    try:
        manifest = Manifest.model_validate(from_json(body))
    except (ValidationError, CorruptMemoryError) as error:
        raise CorruptMemoryError(f"{path}: not a memory this version can open ({error}).") from error
    for name in manifest.files:
        if not _OWN_NAME.fullmatch(name):
            raise CorruptMemoryError(f"{path}: names a file {name!r:.80}, which no save makes.")
    return manifest


def _key_message(path: Path, saved: bytes | None, key: MemoryKey | None) -> str:
    if key is None:
        return f"{path}: this memory is encrypted. Pass the key it was saved with: key=MemoryKey(…)."
    if saved is None:
        return f"{path}: this memory is not encrypted, but a key was given. Load it without, then save it with the key."
    return f"{path}: encrypted with key {saved.decode()}, the key given is {key.id}."
