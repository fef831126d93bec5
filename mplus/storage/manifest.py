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
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryNotFoundError, damage_in
from mplus.storage.encryption import MemoryKey
from mplus.storage.json_fields import from_json, to_json
from mplus.storage.names import MANIFEST, MAX_FILES, is_own_file
from mplus.storage.place import Place, not_read
from mplus.storage.shards import ShardSum

FORMAT = 2
MAX_MANIFEST_BYTES = 2**26
MAX_SNAPSHOTS = 4096
MAX_TRACKS = 2**10
ROW_BYTES = 64
"""Host memory that the provenance of one token takes in one state."""
FREE_BYTES = 2**26
MOST_BYTES_PER_BYTE = 32
"""An opened memory takes at most ``FREE_BYTES`` of host memory and so many bytes for each of its files. States share
files, so a small forged manifest could otherwise name the same few files for thousands of snapshots."""
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
    tracks: list[TrackEntry] = Field(max_length=MAX_TRACKS)
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


class ClockEntry(_Entry):
    """The clock of a memory with an age limit."""

    seen: float
    """Unix time that the machine's clock showed last."""
    behind: float
    """Seconds that the memory's time is behind it."""


class Manifest(_Entry):
    """Content of ``memory.json``: the states of a saved memory and all its files."""

    format: Literal[2] = FORMAT
    model: str
    """Fingerprint of the model that wrote it."""
    seed: int
    config: dict[str, Any]
    saved: float
    """Unix time."""
    clock: ClockEntry | None = None
    """None: no age limit, or saved by a version that went by the machine's clock."""
    state: StateEntry
    snapshots: list[SnapshotEntry] = Field(default_factory=list[SnapshotEntry], max_length=MAX_SNAPSHOTS)
    files: dict[FileName, ShardSum] = Field(max_length=MAX_FILES)

    @property
    def nbytes(self) -> int:
        """Bytes of all its files except the manifest."""
        return sum(file.nbytes for file in self.files.values())

    @property
    def open_nbytes(self) -> int:
        """Most bytes of host memory that its states take when it is opened; equal parts of them are shared."""
        parts: set[tuple[str, ...]] = set()
        rows: dict[str, int] = {}
        for state in (self.state, *(snapshot.state for snapshot in self.snapshots)):
            parts |= {(state.shard,), *({(state.context,)} if state.context else ())}
            parts |= {tuple(names) for names in state.records.values() if names}
            for track in state.tracks:
                parts |= {tuple(track.short_term), tuple(track.vectors)}
            rows[state.model_dump_json()] = sum(track.num_pending + track.num_long_term for track in state.tracks)
        named = sum(self.files[name].nbytes for names in parts for name in names if name in self.files)
        return named + ROW_BYTES * sum(rows.values())

    @property
    def excess(self) -> str:
        """What makes it too large to be opened; empty if nothing does."""
        most = FREE_BYTES + MOST_BYTES_PER_BYTE * self.nbytes
        if self.open_nbytes <= most:
            return ""
        return (
            f"its {len(self.snapshots)} snapshots and its present state would take {self.open_nbytes:,} bytes of host "
            f"memory, at most {most:,} are taken for files of {self.nbytes:,} bytes"
        )


def sealed_manifest(manifest: Manifest, key: MemoryKey | None) -> bytes:
    """The bytes of ``memory.json``."""
    described = manifest.model_dump(mode="json")
    if manifest.clock is None:
        del described["clock"]  # earlier versions do not know it
    body = to_json(described)
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
    return key_id(text) is not None


def key_id(text: bytes) -> str | None:
    """The identifier of the key that a saved memory is encrypted with, according to the beginning of its manifest."""
    match = _SEAL.match(text)
    return None if match is None or match["key"] is None else match["key"].decode()


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
            manifest = Manifest.model_validate(_counted(from_json(body, only_finite=True)))
        except ValidationError as error:
            first = next(iter(error.errors(include_url=False, include_context=False)))
            raise CorruptMemoryError(
                f"it is not one that this version reads ({'.'.join(map(str, first['loc']))}: {first['msg']})"
            ) from error
        except binascii.Error as error:
            raise CorruptMemoryError(f"it is not one that this version reads ({error})") from error
        for name in manifest.files:
            if not is_own_file(name):
                raise CorruptMemoryError(f"it names a file {name!r:.80}, which no save writes")
        if manifest.excess:
            raise CorruptMemoryError(manifest.excess)
    return manifest


def _counted(found: Any) -> Any:
    """What a manifest says, once its lists are known to be short enough to be looked at one by one."""
    limits = {"snapshots": MAX_SNAPSHOTS, "files": MAX_FILES}
    for name, most in limits.items() if isinstance(found, dict) else ():
        part: Any = cast("dict[str, Any]", found).get(name)
        if isinstance(part, (list, dict)) and len(cast("list[Any]", part)) > most:
            raise CorruptMemoryError(f"it lists {len(cast('list[Any]', part)):,} {name}, at most {most:,} are read")
    return found


def _key_message(place: object, saved: bytes | None, key: MemoryKey | None) -> str:
    if key is None:
        return f"{place}: this memory is encrypted. Pass the key it was saved with: key=MemoryKey(…)."
    if saved is None:
        return (
            f"{place}: this memory is not encrypted, but a key was given. Load it without, then save it with the key."
        )
    return f"{place}: encrypted with key {saved.decode()}, the key given is {key.id}."
