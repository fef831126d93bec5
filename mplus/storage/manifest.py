"""``memory.json``: the one file that says which others make up a saved memory, and their checksums.

    {"format": 2, "sha256": …, "memory": {…}}                  plain
    {"format": 2, "sha256": …, "key": …, "sealed": "…"}        encrypted: "memory", sealed, in base64

The checksum is of the bytes of the last value, so nothing of it is parsed before it is known to be whole.
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
"""The name of a file; validated with a mapping as context, the name that it has in a copy."""


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
    """The bytes of ``memory.json``, if there are not too many.

    Raises:
        MemoryNotFoundError: There is none.
        CorruptMemoryError: It is no regular file, or too large.
        MemoryReadError: The place cannot be reached.
    """
    try:
        with place.open(MANIFEST) as file:
            nbytes = file.seek(0, os.SEEK_END)  # reading "at most" so many bytes allocates them all
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
    """Whether what is saved is encrypted, by the first 256 bytes of its manifest."""
    match = _SEAL.match(text)
    return match is not None and match["key"] is not None


def parse_manifest(text: bytes, place: object, key: MemoryKey | None) -> Manifest:
    """The manifest in the bytes of ``memory.json``, checked.

    Raises:
        CorruptMemoryError: It was altered, or is of another format.
        MemoryKeyError: It is encrypted and the key is missing or another one, or it is not and there is one.
    """
    with damage_in(f"{place}/{MANIFEST}"):
        match = _SEAL.match(text)
        if match is None:
            raise CorruptMemoryError("it does not begin as a manifest does")
        if int(match["format"]) != FORMAT:
            found = int(match["format"])
            raise CorruptMemoryError(f"it has format {found}, this version reads {FORMAT}; update mplus")
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
                raise CorruptMemoryError(f"it names a file {name!r:.80}, which no save makes")
    return manifest


def _key_message(place: object, saved: bytes | None, key: MemoryKey | None) -> str:
    if key is None:
        return f"{place}: this memory is encrypted. Pass the key it was saved with: key=MemoryKey(…)."
    if saved is None:
        return (
            f"{place}: this memory is not encrypted, but a key was given. Load it without, then save it with the key."
        )
    return f"{place}: encrypted with key {saved.decode()}, the key given is {key.id}."
