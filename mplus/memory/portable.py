"""A memory in one file, to carry elsewhere: an uncompressed zip of what a save consists of.

Any unpacking tool makes a folder of it that ``Memory.load`` opens.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from mplus.errors import CorruptMemoryError
from mplus.memory.memory import Memory
from mplus.memory.saving import described
from mplus.memory.state_files import FileReader, FileSet
from mplus.storage.codec import from_json, to_json
from mplus.storage.encryption import MemoryKey
from mplus.storage.folders import Sink, make_private, put_file, sync_folder
from mplus.storage.manifest import (
    MANIFEST,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    Manifest,
    format_of,
    is_own_file,
    parse_manifest,
    read_manifest_bytes,
    sealed_manifest,
)
from mplus.storage.shards import ShardSum, write_shard

PutFile = Callable[[str, Callable[[Sink], ShardSum]], ShardSum]
"""Makes a file of a name with what is written to it."""
COPY_BYTES = 2**22


def export_memory(memory: Memory, file: Sink, *, key: MemoryKey | None = None) -> None:
    """Write a memory as one portable file.

    Args:
        memory: Its present state is written.
        file: Where to; need not be seekable.
        key: Encrypt with this.
    """
    files = FileSet({}, key)
    manifest = described(memory, files)
    with zipfile.ZipFile(cast("IO[bytes]", file), "w", zipfile.ZIP_STORED) as archive:

        def put(name: str, write: Callable[[Sink], ShardSum]) -> ShardSum:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o600 << 16
            with archive.open(entry, "w", force_zip64=True) as stream:
                return write(stream)

        sums = {name: put(name, new.write) for name, new in files.new.items()}
        entry = zipfile.ZipInfo(MANIFEST)
        entry.external_attr = 0o600 << 16
        archive.writestr(entry, sealed_manifest(manifest.model_copy(update={"files": sums}), key))


def unpack_memory(path: Path, folder: Path) -> None:
    """Make a folder, as saves make them, of a portable file; ``folder`` must not be there yet.

    Nothing is unpacked that the file does not hold in full, or that no save makes.

    Raises:
        CorruptMemoryError: It is no portable memory, or was cut short or altered.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(names) > MAX_FILES or len(set(names)) < len(names) or MANIFEST not in names:
                raise CorruptMemoryError(f"{path}: not a portable memory; it holds {names[:3]!r:.200}.")
            size = path.stat().st_size
            for entry in entries:
                known = entry.filename == MANIFEST or is_own_file(entry.filename)
                whole = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size <= size
                if not known or not whole or (entry.filename == MANIFEST and entry.file_size > MAX_MANIFEST_BYTES):
                    raise CorruptMemoryError(f"{path}: {entry.filename!r:.80} is not as an export makes it.")
            if sum(entry.file_size for entry in entries) > size:
                raise CorruptMemoryError(f"{path}: its parts overlap.")
            folder.mkdir(mode=0o700)
            for entry in sorted(entries, key=lambda entry: entry.filename == MANIFEST):
                with archive.open(entry) as stream:
                    put_file(folder, entry.filename, lambda file, s=stream: shutil.copyfileobj(s, file, COPY_BYTES))
        sync_folder(folder)
    # zipfile raises NotImplementedError at a compression that it does not know.
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError) as error:
        raise CorruptMemoryError(f"{path}: not a portable memory, or altered ({error}). Export it again.") from error


def copy_memory(folder: Path, target: Path, *, key: MemoryKey | None, new_key: MemoryKey | None) -> None:
    """A second saved memory; files are shared where the disk can and the key is the same.

    Args:
        folder: What is copied.
        target: Where to; must not be there yet.
        key: The key of what is copied.
        new_key: The key of the copy.

    Raises:
        CorruptMemoryError: What is copied was altered.
    """
    make_private(target)
    text = read_manifest_bytes(folder)
    first = format_of(text, folder / MANIFEST) == 1
    if first or (key is None and new_key is None):
        for path in sorted(folder.iterdir()):
            if is_own_file(path.name) and not path.is_symlink():
                _link(path, target / path.name)
    else:
        manifest = parse_manifest(text, folder / MANIFEST, key)
        text = _under_another_key(folder, manifest, key, new_key, lambda name, write: put_file(target, name, write))
    sync_folder(target)
    put_file(target, MANIFEST, lambda file: file.write(text))
    sync_folder(target)


def _link(path: Path, target: Path) -> None:
    """The same file under a second name: files of a save never change. A copy where that cannot be."""
    try:
        os.link(path, target)
    except OSError:
        with path.open("rb") as source:
            put_file(target.parent, target.name, lambda file: shutil.copyfileobj(source, file, COPY_BYTES))


def _under_another_key(
    folder: Path, manifest: Manifest, key: MemoryKey | None, new_key: MemoryKey | None, put: PutFile
) -> bytes:
    """Write all files again under another key; the bytes of their manifest."""
    reader = FileReader(folder, manifest.files, key, verify=False)
    sums: dict[str, ShardSum] = {}
    entries = to_json(manifest.model_dump(mode="json", exclude={"files"}))
    for name in manifest.files:
        renamed = name.partition(".")[0] + (".sealed" if new_key is not None else ".safetensors")
        if name.endswith(".jsonl"):
            renamed = name
            text = reader.text(name) if new_key is None else new_key.seal(name, reader.text(name))
            sums[name] = put(name, lambda file, text=text: _write_text(file, text))
        else:
            shard = reader.shard(name)
            tensors = {inner: shard.whole(inner) for inner in shard.layout.tensors}
            write = lambda file, n=renamed, t=tensors: write_shard(file, n, t, new_key)
            sums[renamed] = put(renamed, write)
        # Names are 32 hexadecimal digits that occur nowhere else.
        entries = entries.replace(f'"{name}"'.encode(), f'"{renamed}"'.encode())
    described = {**from_json(entries), "files": {name: known.model_dump() for name, known in sums.items()}}
    return sealed_manifest(Manifest.model_validate(described), new_key)


def _write_text(file: Sink, text: bytes) -> ShardSum:
    file.write(text)
    return ShardSum(nbytes=len(text), sha256=hashlib.sha256(text).hexdigest())
