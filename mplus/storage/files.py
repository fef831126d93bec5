"""The files of a save: which exist already, which are new, and how they are written to a place and read back.

A save writes the new files, forces them to disk, and then exchanges the manifest in one step. If it is killed at
any point, the old or the new state loads. Files that no state needs any more are removed afterwards.
"""

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryNotFoundError, damage_in
from mplus.storage.encryption import MemoryKey
from mplus.storage.folder import open_regular
from mplus.storage.json_fields import Record, decode, from_json
from mplus.storage.manifest import Manifest, parse_manifest, read_manifest, sealed_manifest
from mplus.storage.names import MANIFEST, is_own_file
from mplus.storage.place import Place, Sink, not_read
from mplus.storage.shards import OpenShard, ShardSum, content_hash, shard_bytes, write_shard

RECORDS_BYTES = 2**18
"""A file of records is closed at this many bytes, so that new records do not rewrite earlier files."""
MAX_RECORDS_BYTES = 2**30
SAVE_TIMEOUT = 60.0

# --- writing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewFile:
    """A file that is to be written."""

    size: Callable[[], int]
    write: Callable[[Sink], ShardSum]


class FileSet:
    """The files that a save consists of: existing ones that it keeps, and new ones to be written.

    Args:
        known: Files of the last save in the same place.
        key: Key to encrypt with; None does not encrypt.
    """

    def __init__(self, known: Mapping[str, ShardSum], key: MemoryKey | None) -> None:
        self._known, self._key = known, key
        self.kept: dict[str, ShardSum] = {}
        self.new: dict[str, NewFile] = {}

    def planned(self) -> dict[str, ShardSum]:
        """All of them with their sizes. The checksums of new ones are not known yet."""
        return self.kept | {name: ShardSum(nbytes=f.size(), sha256="0" * 64) for name, f in self.new.items()}

    def shard(self, kind: str, stem: str, tensors: Callable[[], Mapping[str, Tensor]]) -> str:
        """The file of tensors with a known name; ``tensors`` is called only if there is no such file yet."""
        key = self._key
        name = f"{kind}-{stem}.{'safetensors' if key is None else 'sealed'}"
        write = lambda file: write_shard(file, name, tensors(), key)
        return self._named(name, NewFile(lambda: shard_bytes(tensors(), key), write))

    def segment(self, name: str, tensors: Callable[[], Mapping[str, Tensor]]) -> str:
        """The file of a segment of that name."""
        return self.shard("tokens", _masked(name, self._key), tensors)

    def tensors(self, kind: str, tensors: Mapping[str, Tensor]) -> str:
        """The file of tensors that is named by a hash of their content."""
        return self.shard(kind, content_hash(tensors, self._secret), lambda: tensors)

    def records(self, records: Sequence[Record]) -> list[str]:
        """The files of a table of records, in order."""
        names: list[str] = []
        lines: list[bytes] = []
        size = 0
        for record in records:
            lines.append(record.line)
            size += len(lines[-1])
            if size >= RECORDS_BYTES:
                names.append(self.text(b"".join(lines)))
                lines, size = [], 0
        return [*names, self.text(b"".join(lines))] if lines else names

    def text(self, text: bytes) -> str:
        """The file of some records, one per line."""
        name = f"records-{hashlib.sha256(self._secret + text).hexdigest()[:32]}.jsonl"
        key = self._key

        def write(file: Sink) -> ShardSum:
            whole = text if key is None else key.seal(name, text)
            file.write(whole)
            return ShardSum(nbytes=len(whole), sha256=hashlib.sha256(whole).hexdigest())

        return self._named(name, NewFile(lambda: len(text) + (key.head_bytes + key.overhead if key else 0), write))

    @property
    def _secret(self) -> bytes:
        return b"" if self._key is None else self._key.secret

    def _named(self, name: str, file: NewFile) -> str:
        if name in self._known:
            self.kept[name] = self._known[name]
        elif name not in self.new:
            self.new[name] = file
        return name


def _masked(name: str, key: MemoryKey | None) -> str:
    """Convert the name of a segment to that of its file, or back.

    The file name depends on the key, so that a save with a new key overwrites no file of the save before it.
    """
    if key is None:
        return name
    mask = hashlib.sha256(b"mplus segment names" + key.secret).digest()
    return bytes(a ^ b for a, b in zip(bytes.fromhex(name), mask, strict=False)).hex()


class LastSave(NamedTuple):
    """What a save begins from.

    Attributes:
        manifest: The bytes of the present manifest; None if there is none.
        files: Files of it that are complete and can be kept by a save with this key.
    """

    manifest: bytes | None
    files: Mapping[str, ShardSum]


def last_save(place: Place, key: MemoryKey | None) -> LastSave:
    """The present save in a place, for a save with this key."""
    text = _present(place)
    try:
        manifest = None if text is None else parse_manifest(text, place, key)
    except (CorruptMemoryError, MemoryKeyError):
        manifest = None
    if manifest is None:
        return LastSave(text, {})
    sizes = place.sizes()
    return LastSave(text, {name: known for name, known in manifest.files.items() if sizes.get(name) == known.nbytes})


def put_files(place: Place, files: FileSet, manifest: Manifest, key: MemoryKey | None, last: LastSave) -> None:
    """Write the files of a save and then its manifest. The caller holds the lock of the place.

    Raises:
        OSError: The place cannot be written to; the earlier save is intact.
        MemoryConflictError: The present save is not ``last`` any more.
    """
    before, written = last.manifest, dict(files.kept)
    try:
        for name, file in files.new.items():
            with place.put(name) as sink:
                written[name] = file.write(sink)
        place.sync()
        text = sealed_manifest(manifest.model_copy(update={"files": written}), key)
        place.exchange_if(MANIFEST, text, before)
    except BaseException:
        # A network may fail after the exchange was made. New files are removed only if the old manifest is still there.
        with suppress(Exception):
            if _present(place) == before:
                for name in written.keys() - files.kept.keys():
                    place.remove(name)
        raise
    place.sync()
    for name in {*last.files, *place.orphans()}:
        if is_own_file(name) and name not in written:
            place.remove(name)


def _present(place: Place) -> bytes | None:
    try:
        return read_manifest(place)
    except (MemoryNotFoundError, CorruptMemoryError):
        return None


# --- reading ------------------------------------------------------------------------------------------


class FileReader:
    """Opens the files of one saved memory.

    Args:
        folder: The folder they are in.
        files: Their expected sizes and checksums.
        key: Key to decrypt with; None if they are not encrypted.
        verify: Check every byte against its checksum at once, not when it is first used.
    """

    def __init__(self, folder: Path, files: Mapping[str, ShardSum], key: MemoryKey | None, *, verify: bool) -> None:
        self._folder, self._files, self._key, self._verify = folder, files, key, verify
        self._interned: dict[bytes, Record] = {}

    def shard(self, name: str) -> OpenShard:
        """A shard by its file name."""
        shard = OpenShard(self._folder / name, self._expected(name), key=self._key)
        if self._verify:
            shard.tensors()
        return shard

    def segment_name(self, file_name: str) -> str:
        """The name of the segment in a file."""
        return _masked(file_name.removeprefix("tokens-").partition(".")[0], self._key)

    def checked(self, name: str) -> Path:
        """The path of a file that has been checked against the manifest."""
        self.text(name) if name.endswith(".jsonl") else self.shard(name)
        return self._folder / name

    def records(self, names: Sequence[str], kind: type[Record]) -> tuple[Any, ...]:
        """The records of a table. Equal records are one object, which several states share."""
        records: list[Record] = []
        for name in names:
            for line in self.text(name).splitlines():
                if line not in self._interned:
                    self._interned[line] = decode(kind, from_json(line))
                records.append(self._interned[line])
        return tuple(records)

    def text(self, name: str) -> bytes:
        """The text of a file of records, checked against the manifest."""
        path, expected = self._folder / name, self._expected(name)
        with damage_in(path), open_regular(path) as file:
            if expected.nbytes > MAX_RECORDS_BYTES:
                raise CorruptMemoryError(f"{expected.nbytes:,} bytes, at most {MAX_RECORDS_BYTES:,} are read")
            text = file.read(expected.nbytes + 1)
            if len(text) != expected.nbytes or hashlib.sha256(text).hexdigest() != expected.sha256:
                raise CorruptMemoryError("it was altered after it was saved")
            return text if self._key is None else self._key.unseal(name, text)

    def _expected(self, name: str) -> ShardSum:
        expected = self._files.get(name)
        if expected is None:
            raise CorruptMemoryError(f"{name!r:.80} is used, but not listed")
        return expected


@contextmanager
def reading(place: Place, manifest: Manifest, key: MemoryKey | None, *, verify: bool) -> Generator[FileReader]:
    """A reader of the files of a save, on local disk. Tensors that it has read stay valid after the block.

    Raises:
        CorruptMemoryError: A file is missing, or does not have the size that was saved.
        MemoryReadError: The place cannot be reached, or there is no room for the fetched files.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(place.on_disk({name: known.nbytes for name, known in manifest.files.items()}))
        except FileNotFoundError as error:
            raise CorruptMemoryError(f"a file went missing ({error}). Restore it from a copy.", place) from error
        except OSError as error:
            raise not_read(place, error) from error
        with damage_in(place):
            yield FileReader(folder, manifest.files, key, verify=verify)


def verify(place: Place, *, key: MemoryKey | None = None) -> None:
    """Check every byte of a saved memory against its checksums.

    Raises:
        MemoryNotFoundError: Nothing is saved there.
        CorruptMemoryError: A file was altered.
        MemoryKeyError: It is encrypted with another key, or one is needed.
        MemoryReadError: The place cannot be reached.
    """
    manifest = parse_manifest(read_manifest(place), place, key)
    with reading(place, manifest, key, verify=True) as reader:
        for name in manifest.files:
            reader.checked(name)


def copy(
    source: Place, target: Place, *, key: MemoryKey | None, new_key: MemoryKey | None, check: bool = False
) -> None:
    """Copy a save to another place. Files are hard-linked if the file system allows it and the key is the same.

    Args:
        source: The save to copy.
        target: The place to copy to; a save that is there is replaced, atomically.
        key: The key of the save.
        new_key: The key of the copy.
        check: Check every byte of the save, not only the files' headers.

    Raises:
        CorruptMemoryError: The save was altered.
        OSError: The copy cannot be written.
    """
    manifest = parse_manifest(read_manifest(source), source, key)
    files = FileSet({}, new_key)
    with target.lock(SAVE_TIMEOUT), reading(source, manifest, key, verify=check) as reader:
        if key == new_key:
            files.kept |= manifest.files
            for name in manifest.files:
                target.add(reader.checked(name))
        else:
            names = {name: _again(name, reader, files) for name in manifest.files}
            manifest = Manifest.model_validate(manifest.model_dump(), context=names)
        put_files(target, files, manifest, new_key, LastSave(_present(target), {}))


def _again(name: str, reader: FileReader, files: FileSet) -> str:
    """The name of a file in the copy."""
    kind, _, stem = name.partition(".")[0].partition("-")
    if kind == "records":
        return files.text(reader.text(name))
    return files.shard(kind, stem, lambda: reader.shard(name).tensors())
