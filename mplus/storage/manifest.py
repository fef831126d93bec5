"""``memory.json``: the file that lists the other files of a saved memory with their checksums.

    {"format": 2, "sha256": …, "memory": {…}}                  plain
    {"format": 2, "sha256": …, "key": …, "sealed": "…"}        encrypted: "memory", sealed, in base64

The checksum covers the bytes of the last value and is checked before these are parsed.
"""

import base64
import binascii
import hashlib
import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryNotFoundError, damage_in
from mplus.storage.encryption import MemoryKey
from mplus.storage.json_fields import from_json, to_json
from mplus.storage.names import MANIFEST, MAX_FILES, is_own_file
from mplus.storage.place import Place, not_read
from mplus.storage.shards import ShardSum

FORMAT = 2
MAX_MANIFEST_BYTES = 2**28
_SEAL = re.compile(
    rb'\{"format":(?P<format>\d{1,9}),"sha256":"(?P<sha256>[0-9a-f]{64})",'
    rb'("key":"(?P<key>[0-9a-f]{16})","sealed":|"memory":)'
)


def _renamed(name: str, info: Any) -> str:
    return name if info.context is None else info.context[name]


FileName = Annotated[str, AfterValidator(_renamed)]
"""The name of a file. With a mapping as validation context, it is replaced by the file's name in a copy."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TrackEntry(_Entry):
    """The files of one track, in order."""

    short_term: list[FileName]
    pending: list[FileName]
    long_term: list[FileName]
    num_pending: int = Field(ge=0)
    """How many tokens in the files of ``pending`` are still held; the files may contain removed ones too."""
    num_long_term: int = Field(ge=0)
    vectors: list[FileName] = Field(default_factory=list[FileName])
    """Files of the vectors of chunks."""
    embedder: str = ""
    """Name of the embedder that made them."""


class StateEntry(_Entry):
    """The files and facts of one state."""

    shard: FileName
    """File of the columns of provenance and all other small tensors."""
    context: FileName | None
    tracks: list[TrackEntry]
    values: dict[str, Any]
    """Fields of the state that are stored in the manifest itself."""
    records: dict[str, list[FileName] | None]
    """Fields that are tables of records, such as the sources."""


class SnapshotEntry(_Entry):
    """A snapshot of the memory."""

    id: str
    label: str
    created: float
    """Unix time."""
    state: StateEntry


class Manifest(_Entry):
    """Content of ``memory.json``: the states of a saved memory and all its files."""

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
        """Bytes of all its files except the manifest."""
        return sum(file.nbytes for file in self.files.values())


def sealed_manifest(manifest: Manifest, key: MemoryKey | None) -> bytes:
    """The bytes of ``memory.json``."""
    body = to_json(manifest.model_dump(mode="json"))
    middle = b'"memory":'
    if key is not None:
        body = b'"' + base64.b64encode(key.seal(MANIFEST, body)) + b'"'
        middle = f'"key":"{key.id}","sealed":'.encode()
    digest = hashlib.sha256(body).hexdigest()
    return f'{{"format":{FORMAT},"sha256":"{digest}",'.encode() + middle + body + b"}\n"


def read_manifest(place: Place) -> bytes:
    """Read the bytes of ``memory.json``, up to a largest size.

    Raises:
        MemoryNotFoundError: There is no manifest.
        CorruptMemoryError: The manifest is not a regular file, or is too large.
        MemoryReadError: The place cannot be reached.
    """
    try:
        with place.open(MANIFEST) as file:
            nbytes = file.seek(0, os.SEEK_END)  # checked first: ``read(limit)`` would allocate all of the limit
            if nbytes > MAX_MANIFEST_BYTES:
                raise CorruptMemoryError(
                    f"{MANIFEST} has {nbytes:,} bytes, at most {MAX_MANIFEST_BYTES:,} are read", place
                )
            file.seek(0)
            return file.read(nbytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MemoryNotFoundError(f"{place}: no saved memory. Expected a folder with {MANIFEST} in it.") from error
    except OSError as error:
        raise not_read(place, error) from error


def is_sealed(text: bytes) -> bool:
    """Whether a saved memory is encrypted, according to the first 256 bytes of its manifest."""
    match = _SEAL.match(text)
    return match is not None and match["key"] is not None


def parse_manifest(text: bytes, place: object, key: MemoryKey | None) -> Manifest:
    """Check and parse the bytes of ``memory.json``.

    Raises:
        CorruptMemoryError: The manifest was altered, or is of another format.
        MemoryKeyError: The memory is encrypted and the key is missing or wrong, or it is not and a key is given.
    """
    with damage_in(f"{place}/{MANIFEST}"):
        match = _SEAL.match(text)
        if match is None:
            raise CorruptMemoryError("it does not begin as a manifest does")
        if int(match["format"]) != FORMAT:
            found = int(match["format"])
            raise CorruptMemoryError(f"it has format {found}, this version reads {FORMAT}; update mplus-memory")
        body = text[match.end() :].rstrip(b"\n")[:-1]
        if hashlib.sha256(body).hexdigest() != match["sha256"].decode() or not text.rstrip(b"\n").endswith(b"}"):
            raise CorruptMemoryError("it was altered after it was saved")
        if (match["key"] is None) != (key is None) or (key is not None and match["key"].decode() != key.id):
            raise MemoryKeyError(_key_message(place, match["key"], key))
        try:
            if key is not None:
                body = key.unseal(MANIFEST, base64.b64decode(body.strip(b'"'), validate=True))
            manifest = Manifest.model_validate(from_json(body))
        except (ValidationError, binascii.Error) as error:
            raise CorruptMemoryError(f"it is not one that this version reads ({error})") from error
        for name in manifest.files:
            if not is_own_file(name):
                raise CorruptMemoryError(f"it names a file {name!r:.80}, which no save writes")
    return manifest


def _key_message(place: object, saved: bytes | None, key: MemoryKey | None) -> str:
    if key is None:
        return f"{place}: this memory is encrypted. Pass the key it was saved with: key=MemoryKey(…)."
    if saved is None:
        return (
            f"{place}: this memory is not encrypted, but a key was given. Load it without, then save it with the key."
        )
    return f"{place}: encrypted with key {saved.decode()}, the key given is {key.id}."
