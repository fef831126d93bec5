"""Saves a memory in a place, as a manifest and files, and loads it again."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

from mplus.config import MemoryConfig
from mplus.errors import CorruptMemoryError, MemoryLimitError, MemoryMismatchError, MemorySaveError
from mplus.given import check_kind
from mplus.memory.clock import MemoryClock
from mplus.memory.snapshots import Snapshot
from mplus.memory.state import MemoryState
from mplus.memory.state_files import StateReader, describe_state
from mplus.storage.encryption import MemoryKey
from mplus.storage.files import SAVE_TIMEOUT, FileSet, last_save, put_files, reading
from mplus.storage.manifest import (
    MAX_MANIFEST_BYTES,
    ClockEntry,
    Manifest,
    SnapshotEntry,
    StateEntry,
    parse_manifest,
    read_manifest,
    sealed_manifest,
)
from mplus.storage.names import MAX_FILES
from mplus.storage.place import Place, not_saved

VERIFIED_BYTES = 2**26
"""Memories up to this many bytes are read whole and checked when they are opened; of larger ones, each block is checked
when it is first used. ``storage.files.verify`` checks everything at once."""


@runtime_checkable
class Keepable(Protocol):
    """The part of a memory that saving and loading need."""

    config: MemoryConfig
    model_fingerprint: str
    seed: int

    @property
    def state(self) -> MemoryState:
        """Its present state."""
        ...

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Its snapshots."""
        ...

    @property
    def clock(self) -> MemoryClock | None:
        """Its clock; None if it has none."""
        ...

    def keep_clock(self, clock: MemoryClock | None) -> None:
        """Go by a clock that was saved, or remember that it has been saved."""
        ...

    def writing(self) -> AbstractContextManager[Any]:
        """A lock that keeps state and snapshots from changing."""
        ...

    def restore(self, state: MemoryState, snapshots: tuple[Snapshot, ...]) -> None:
        """Replace state and snapshots."""
        ...


Kept = TypeVar("Kept", bound=Keepable)


def save(
    memory: Keepable,
    place: Place,
    *,
    key: MemoryKey | None = None,
    check_size: Callable[[int], None] = lambda nbytes: None,
    timeout: float = SAVE_TIMEOUT,
) -> None:
    """Save a memory; an earlier save in the same place is replaced, atomically.

    Args:
        memory: The memory, whose present state is saved; it may be written to meanwhile.
        place: The place to save in; made if it does not exist.
        key: Key to encrypt with.
        check_size: Called with the total bytes of the save before anything is written; may raise to refuse it.
        timeout: Seconds to wait for another save into the same place.

    Raises:
        MemorySaveError: The place cannot be written to, or is full; the earlier save is intact.
        MemoryLockedError: Another save into the same place took too long.
        MemoryLimitError: It has too many snapshots or files to be opened again.
        MemoryConflictError: Another writer saved there meanwhile, behind a url.
    """
    check_kind("key", key, MemoryKey, "a MemoryKey, or None to save it without one", optional=True)
    try:
        with place.lock(timeout):
            last = last_save(place, key)
            files = FileSet(last.files, key)
            manifest = _described(memory, files)
            planned = manifest.model_copy(update={"files": files.planned()})
            check_size(planned.nbytes + _checked_size(planned, place, key))
            put_files(place, files, manifest, key, last)
            if manifest.clock is not None:
                memory.keep_clock(MemoryClock(manifest.clock.seen, manifest.clock.behind))
    except MemorySaveError:
        raise
    except OSError as error:
        raise not_saved(place, error) from error


def _checked_size(manifest: Manifest, place: Place, key: MemoryKey | None) -> int:
    """Bytes of a manifest that can be read again.

    Raises:
        MemoryLimitError: It lists more than is read when a memory is opened.
    """
    nbytes = len(sealed_manifest(manifest, key))
    excess = manifest.excess
    if len(manifest.files) > MAX_FILES:
        excess = f"it would have {len(manifest.files):,} files, at most {MAX_FILES:,} are read"
    elif nbytes > MAX_MANIFEST_BYTES:
        excess = f"its list of files would have {nbytes:,} bytes, at most {MAX_MANIFEST_BYTES:,} are read"
    if excess:
        raise MemoryLimitError(
            f"{place}: this memory was not saved, because it could not be opened again: {excess}. Discard some of its "
            f"{len(manifest.snapshots)} snapshots, or forget sources; what was saved there before is intact."
        )
    return nbytes


def _described(memory: Keepable, files: FileSet) -> Manifest:
    """The manifest of the save. Files are only described in ``files``; nothing is written yet."""
    with memory.writing():
        state, snapshots, clock = memory.state, memory.snapshots, memory.clock

    def described(state: MemoryState) -> StateEntry:
        return describe_state(state, memory.config, files)

    return Manifest(
        model=memory.model_fingerprint,
        seed=memory.seed,
        config=memory.config.model_dump(mode="json"),
        saved=time.time(),
        clock=None if clock is None else ClockEntry(seen=clock.seen, behind=clock.behind),
        state=described(state),
        snapshots=[
            SnapshotEntry(id=s.id, label=s.label, created=s.created, state=described(s.state)) for s in snapshots
        ],
        files={},
    )


def load(place: Place, new_memory: Callable[..., Kept], *, key: MemoryKey | None = None) -> Kept:
    """Open a saved memory; long-term tokens stay on disk until they are recalled.

    Args:
        place: The place it is saved in.
        new_memory: Makes an empty memory of a given ``seed`` and ``config``, as ``MPlus.new_memory`` does.
        key: The key that it was encrypted with.

    Raises:
        MemoryNotFoundError: Nothing is saved there.
        CorruptMemoryError: The save is truncated, altered, or of a newer format.
        MemoryKeyError: It is encrypted with another key, or one is needed.
        MemoryMismatchError: It was made by another model.
        MemoryReadError: The place cannot be reached.
    """
    check_kind("key", key, MemoryKey, "a MemoryKey, or None for a memory without one", optional=True)
    text = read_manifest(place)
    while True:
        try:
            return _loaded(place, parse_manifest(text, place, key), new_memory, key)
        except CorruptMemoryError:
            # Another save may have ended meanwhile, and have removed files of the save that is being read.
            before, text = text, read_manifest(place)
            if text == before:
                raise


def _loaded(place: Place, manifest: Manifest, new_memory: Callable[..., Kept], key: MemoryKey | None) -> Kept:
    try:
        memory = new_memory(seed=manifest.seed, config=MemoryConfig(**manifest.config))
    except (TypeError, ValueError) as error:
        raise CorruptMemoryError(f"not a memory this version can open ({error}).", place) from error
    if manifest.model != memory.model_fingerprint:
        raise MemoryMismatchError(
            f"{place}: this memory was made by a model with fingerprint {manifest.model}, the model given has "
            f"{memory.model_fingerprint}. Load it with the model that wrote it, or write its texts again "
            "(mplus export --text, mplus import --from jsonl)."
        )
    with reading(place, manifest, key, verify=manifest.nbytes <= VERIFIED_BYTES) as files:
        states = StateReader(files, memory.state)
        try:
            snapshots = tuple(Snapshot(states.state(s.state), s.label, s.id, s.created) for s in manifest.snapshots)
            state = states.state(manifest.state)
            memory.restore(state, snapshots)
            memory.keep_clock(_clock_of(manifest, state))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CorruptMemoryError(f"its parts do not fit together ({error!r:.200})") from error
    return memory


def _clock_of(manifest: Manifest, state: MemoryState) -> MemoryClock | None:
    """The clock by which a loaded memory goes on."""
    if manifest.config.get("age_limit_seconds") is None:
        return None
    if manifest.clock is not None:
        return MemoryClock(manifest.clock.seen, manifest.clock.behind)
    return MemoryClock.after(manifest.saved, max([state.tail.since, *state.chunk_log.times[-1:].tolist()]))
