"""Saved memories: a folder with ``memory.json`` and the files it names.

A save writes the files that are new, forces them to disk, and then exchanges ``memory.json`` in one step.
Killed at any point, the old or the new state loads. Files that no state needs any more are removed
afterwards; what a later save finds left over by a kill, it removes too.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from mplus.config import MemoryConfig
from mplus.errors import CorruptMemoryError, MemoryKeyError, MemoryMismatchError, MemoryNotFoundError
from mplus.memory import format1
from mplus.memory.history import Snapshot
from mplus.memory.memory import Memory
from mplus.memory.state import MemoryState
from mplus.memory.state_files import FileReader, FileSet, describe_state, read_state
from mplus.storage.encryption import MemoryKey
from mplus.storage.folders import not_saved, put_file, remove_file, sole_writer, sync_folder
from mplus.storage.manifest import (
    MANIFEST,
    Manifest,
    SnapshotEntry,
    format_of,
    is_own_file,
    parse_manifest,
    read_manifest_bytes,
    sealed_manifest,
)
from mplus.storage.shards import ShardSum

VERIFIED_BYTES = 2**26
"""Memories up to this size are read whole and checked when they are opened; of larger ones, each block when
it is first used. ``verify_memory`` checks everything at once."""
SAVE_TIMEOUT = 60.0


@runtime_checkable
class MemoryMaker(Protocol):
    """What loading needs of a model: its fingerprint and a new memory of a given layout."""

    def new_memory(self, *, seed: int = 0, config: MemoryConfig | None = None) -> Memory:
        """A memory in which nothing has been written."""
        ...


def save_memory(
    memory: Memory,
    folder: Path,
    *,
    key: MemoryKey | None = None,
    check_size: Callable[[int], None] = lambda nbytes: None,
    timeout: float = SAVE_TIMEOUT,
) -> None:
    """Save a memory; an earlier save in the same folder is replaced, atomically.

    Args:
        memory: Its present state is saved; it may be written to meanwhile.
        folder: Where; made if it is not there.
        key: Encrypt with this.
        check_size: Told how many bytes the save will have in all, before anything is written; may refuse.
        timeout: Seconds to wait for another save into the same folder.

    Raises:
        MemorySaveError: The folder cannot be written, or the disk is full; the earlier save is intact.
        MemoryLockedError: Another save into it took too long.
    """
    with sole_writer(folder, timeout=timeout):
        files = FileSet(_reusable(folder, key), key)
        manifest = described(memory, files)
        check_size(files.nbytes)
        try:
            _write(folder, files, manifest, key)
        except OSError as error:
            raise not_saved(folder, error) from error
        _remove_others(folder, files)


def load_memory(folder: Path, model: MemoryMaker, *, key: MemoryKey | None = None) -> Memory:
    """Open a saved memory; long-term tokens stay on disk until they are recalled.

    Raises:
        MemoryNotFoundError: Nothing is saved there.
        CorruptMemoryError: The save is truncated, altered, or of a newer format.
        MemoryKeyError: It is encrypted with another key, or one is needed.
        MemoryMismatchError: It was made by another model.
    """
    text = read_manifest_bytes(folder)
    while True:
        try:
            return _loaded(folder, text, model, key)
        except CorruptMemoryError:
            # A save that ended meanwhile removes files that only the save before it named.
            before, text = text, read_manifest_bytes(folder)
            if text == before:
                raise


def verify_memory(folder: Path, *, key: MemoryKey | None = None) -> None:
    """Read every byte of a saved memory against its checksums.

    Raises:
        MemoryNotFoundError: Nothing is saved there.
        CorruptMemoryError: Something was altered.
        MemoryKeyError: It is encrypted with another key, or one is needed.
    """
    text = read_manifest_bytes(folder)
    if format_of(text, folder / MANIFEST) == 1:
        format1.verify_memory(folder, text)
        return
    manifest = parse_manifest(text, folder / MANIFEST, key)
    reader = FileReader(folder, manifest.files, key, verify=True)
    for name in manifest.files:
        reader.text(name) if name.endswith(".jsonl") else reader.shard(name)


def saved_manifest(folder: Path, key: MemoryKey | None) -> Manifest | None:
    """The manifest of what is saved in a folder; None where that is nothing that can be built upon."""
    try:
        text = read_manifest_bytes(folder)
        if format_of(text, folder / MANIFEST) == 1:
            return None
        return parse_manifest(text, folder / MANIFEST, key)
    except (CorruptMemoryError, MemoryNotFoundError, MemoryKeyError):
        return None


# --- saving -------------------------------------------------------------------------------------------


def _reusable(folder: Path, key: MemoryKey | None) -> Mapping[str, ShardSum]:
    """Files of the last save that are there still, and of their size."""
    manifest = saved_manifest(folder, key)
    if manifest is None:
        return {}
    with os.scandir(folder) as entries:
        sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file()}
    return {name: known for name, known in manifest.files.items() if sizes.get(name) == known.nbytes}


def described(memory: Memory, files: FileSet) -> Manifest:
    """What the save will consist of; files are described in ``files``, not written."""
    with memory.writing():
        state, snapshots = memory.state, memory.snapshots
    return Manifest(
        model=memory.model_fingerprint,
        seed=memory.seed,
        config=memory.config.model_dump(mode="json"),
        saved=time.time(),
        state=describe_state(state, memory.config, files),
        snapshots=[
            SnapshotEntry(
                id=s.id, label=s.label, created=s.created, state=describe_state(s.state, memory.config, files)
            )
            for s in snapshots
        ],
        files={},
    )


def _write(folder: Path, files: FileSet, manifest: Manifest, key: MemoryKey | None) -> None:
    written: dict[str, ShardSum] = {}
    try:
        for name, file in files.new.items():
            written[name] = put_file(folder, name, file.write)
        sync_folder(folder)
        text = sealed_manifest(manifest.model_copy(update={"files": files.kept | written}), key)
        put_file(folder, MANIFEST, lambda file: file.write(text))
    except BaseException:
        # ``memory.json`` is as it was and names none of these.
        for name in written:
            remove_file(folder / name)
        raise
    sync_folder(folder)


def _remove_others(folder: Path, files: FileSet) -> None:
    needed = files.kept.keys() | files.new.keys()
    for path in folder.iterdir():
        if is_own_file(path.name) and path.name not in needed:
            remove_file(path)


# --- loading ------------------------------------------------------------------------------------------


def _loaded(folder: Path, text: bytes, model: MemoryMaker, key: MemoryKey | None) -> Memory:
    path = folder / MANIFEST
    if format_of(text, path) == 1:
        if key is not None:
            raise MemoryKeyError(f"{path}: this memory is not encrypted, but a key was given. Load it without.")
        return format1.load_memory(folder, text, model)
    manifest = parse_manifest(text, path, key)
    memory = new_memory_for(path, model, manifest.config, manifest.seed, manifest.model)
    reader = FileReader(folder, manifest.files, key, verify=manifest.nbytes <= VERIFIED_BYTES)
    try:
        initial = memory.state
        state = read_state(manifest.state, reader, initial)
        memory.restore(state, tuple(_snapshot(entry, reader, initial) for entry in manifest.snapshots))
    except CorruptMemoryError as error:
        message = str(error)
        raise (error if message.startswith(str(folder)) else CorruptMemoryError(f"{folder}: {message}.")) from error
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CorruptMemoryError(f"{folder}: its parts do not fit together ({error!r:.200}).") from error
    return memory


def _snapshot(entry: SnapshotEntry, reader: FileReader, initial: MemoryState) -> Snapshot:
    return Snapshot(read_state(entry.state, reader, initial), entry.label, entry.id, entry.created)


def new_memory_for(path: Path, model: MemoryMaker, config: Mapping[str, object], seed: int, fingerprint: str) -> Memory:
    """An empty memory of the layout that was saved.

    Raises:
        CorruptMemoryError: The layout is none.
        MemoryMismatchError: The model is another one.
    """
    try:
        memory = model.new_memory(seed=seed, config=MemoryConfig(**config))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError) as error:
        raise CorruptMemoryError(f"{path}: not a memory this version can open ({error}).") from error
    if fingerprint != memory.model_fingerprint:
        raise MemoryMismatchError(
            f"{path.parent}: this memory was made by a model with fingerprint {fingerprint}, the model given has "
            f"{memory.model_fingerprint}. Load it with the model that wrote it, or write its texts again."
        )
    return memory
