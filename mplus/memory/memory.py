"""``Memory``: what belongs to one conversation or one corpus, and is passed to the model."""

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mplus.config import MemoryConfig
from mplus.memory.state import MemoryState, SourceRecord, Tail, chained

if TYPE_CHECKING:
    from mplus.memory.encryption import MemoryKey
    from mplus.memory.snapshot import MemoryMaker


@dataclass(frozen=True)
class Source:
    """One source that a memory holds."""

    name: str
    metadata: Mapping[str, Any]
    memory_tokens: int
    """Tokens left over all pools; in the token layout, the mean over layers."""
    text_tokens: int
    """Text tokens written under this name."""
    first_written: float
    """Unix time."""
    last_written: float
    """Unix time."""
    oldest_age: int
    """Memory tokens written since the oldest of its tokens."""
    texts: tuple[str, ...] = ()
    """What was written, where it was kept (``write(..., keep_text=True)``)."""


@dataclass(frozen=True)
class PoolStats:
    """How much is in one pool."""

    tokens: tuple[int, ...]
    """Memory tokens by layer."""
    nbytes: int


@dataclass(frozen=True)
class MemoryStats:
    """Sizes, ages and sources of a memory."""

    short_term: PoolStats
    pending: PoolStats
    long_term: PoolStats
    tail_tokens: int
    """Text tokens that wait until a chunk is full."""
    written_tokens: int
    """Memory tokens written per layer so far."""
    text_tokens: int
    """Text tokens written so far."""
    oldest_age: int
    """Age of the oldest memory token that is still held."""
    num_sources: int
    nbytes: int


class Memory:
    """The memory of one conversation or one corpus.

    A value that the model reads and writes but does not own: make one with ``MPlus.new_memory``, pass it
    to ``write`` and ``generate``, and save, fork or throw it away. Reading and writing from several
    threads is safe: a write is seen whole or not at all.
    """

    def __init__(self, config: MemoryConfig, initial: MemoryState, *, model_fingerprint: str, seed: int = 0) -> None:
        self.config = config
        self.model_fingerprint = model_fingerprint
        self.seed = seed
        self._initial = initial
        self._state = initial
        self._lock = threading.RLock()

    # --- state ------------------------------------------------------------------------------------

    @property
    def state(self) -> MemoryState:
        """The present state: an immutable value that later writes do not touch."""
        return self._state

    def writing(self) -> AbstractContextManager[Any]:
        """Hold this while a new state is computed from the present one and committed."""
        return self._lock

    def commit(self, state: MemoryState) -> None:
        """Make ``state`` the present one."""
        with self._lock:
            self._state = state

    def generator(self, state: MemoryState) -> torch.Generator:
        """Randomness of the write that follows ``state``: a function of the seed and of its serial number."""
        generator = torch.Generator()
        return generator.manual_seed((self.seed * 1_000_003 + state.num_chunks * 7_919 + 1) % 2**63)

    @property
    def fingerprint(self) -> str:
        """A hash that changes exactly when a read could change."""
        state = self._state
        return chained(state.digest, state.tail.input_ids)

    # --- whole-memory operations ------------------------------------------------------------------

    def fork(self) -> "Memory":
        """An independent memory with the same content; nothing is copied until one of them changes."""
        fork = Memory(self.config, self._initial, model_fingerprint=self.model_fingerprint, seed=self.seed)
        fork.commit(self._state)
        return fork

    def reset(self) -> None:
        """Back to how the model made it: nothing written."""
        self.commit(self._initial)

    def forget(self, source: str) -> int:
        """Remove a source from every pool, for good.

        In the chunk layout the memory then reads like one that never had the source. In the token layout
        later chunks were written while seeing earlier ones, so traces of it may remain in them.

        Returns:
            How many memory tokens were removed (in the token layout, the mean over layers); 0 if there is
            no such source.
        """
        with self._lock:
            state = self._state
            numbers = [n for n, s in enumerate(state.sources) if s.name == source and not s.forgotten]
            if not numbers:
                return 0
            gone = torch.tensor(numbers)
            tracks = tuple(track.forget(gone, self.config) for track in state.tracks)
            removed = sum(map(len, state.tracks)) - sum(map(len, tracks))
            context = state.context
            if context is not None and bool(torch.isin(context.sources, gone).any()):
                kept = (~torch.isin(context.sources, gone)).nonzero().flatten()
                context = replace(
                    context,
                    states=tuple(layer[kept.to(layer.device)] for layer in context.states),
                    sources=context.sources[kept],
                )
            tail = [(i, s) for i, s in zip(state.tail.input_ids, state.tail.sources, strict=True) if s not in numbers]
            removed_tail = len(state.tail.input_ids) - len(tail)
            sources = tuple(
                SourceRecord("", {}, 0.0, 0.0, 0, forgotten=True) if n in numbers else s
                for n, s in enumerate(state.sources)
            )
            self.commit(
                replace(
                    state,
                    tracks=tracks,
                    context=context,
                    tail=Tail(tuple(i for i, _ in tail), tuple(s for _, s in tail)),
                    sources=sources,
                    digest=chained(state.digest, "forget", source),
                )
            )
            return removed // len(tracks) + removed_tail

    def note_recalled(self, births: tuple[torch.Tensor, ...]) -> None:
        """Raise the recall frequency of long-term tokens that a read used.

        ``births`` holds, per track, how many tokens had been written when each recalled one was: its name
        for life, so that a write or a consolidation in between does no harm.
        """
        gain = self.config.recall_frequency_gain
        if not gain or not any(map(len, births)):
            return
        with self._lock:
            tracks = list(self._state.tracks)
            for number, (track, recalled) in enumerate(zip(tracks, births, strict=True)):
                known = track.long_term.provenance
                born = self._state.written_tokens - known.ages
                frequencies = known.recall_frequencies + gain * torch.isin(born, recalled)
                provenance = replace(known, recall_frequencies=frequencies)
                tracks[number] = replace(track, long_term=replace(track.long_term, provenance=provenance))
            self._state = replace(self._state, tracks=tuple(tracks))

    # --- on disk ----------------------------------------------------------------------------------

    def save(self, place: str | Path, *, key: "MemoryKey | None" = None) -> None:
        """Save into a folder: atomic, and only what changed since the last save there.

        Args:
            place: A folder, or an ``fsspec`` url such as "s3://bucket/alice".
            key: Encrypt with this; needs the ``cryptography`` package.

        Raises:
            MemorySaveError: The folder cannot be written or the disk is full; an earlier save is intact.
            MemoryLockedError: Another save into the same folder took too long.
        """
        from mplus.memory.remote import local_path, save_to_url
        from mplus.memory.snapshot import save_memory

        folder = local_path(place)
        save_to_url(self, str(place), key=key) if folder is None else save_memory(self, folder, key=key)

    def export(self, place: str | Path, *, key: "MemoryKey | None" = None) -> None:
        """Write everything into one portable file; ``Memory.load`` opens it.

        Args:
            place: A file such as "alice.mplus", or an ``fsspec`` url.
            key: Encrypt with this.

        Raises:
            MemorySaveError: It cannot be written, or the disk is full; an earlier file is intact.
            ValueError: It is a folder.
        """
        from mplus.memory.remote import export_to

        export_to(self, place, key=key)

    @classmethod
    def load(cls, place: str | Path, model: "MemoryMaker", *, key: "MemoryKey | None" = None) -> "Memory":
        """Open a saved memory; its long-term tokens stay on disk until they are recalled.

        Args:
            place: A folder, a portable file, or an ``fsspec`` url of either.
            model: The model that wrote it.
            key: What it was encrypted with.

        Raises:
            MemoryNotFoundError: Nothing is saved there.
            CorruptMemoryError: The save is truncated, altered, or of a newer format.
            MemoryKeyError: It is encrypted with another key, or one is needed.
            MemoryMismatchError: It was made by another model.
        """
        from mplus.memory.remote import load_from_file, load_from_url, local_path
        from mplus.memory.snapshot import load_memory

        path = local_path(place)
        if path is None:
            return load_from_url(str(place), model, key=key)
        return load_from_file(path, model, key=key) if path.is_file() else load_memory(path, model, key=key)

    # --- what is in it ----------------------------------------------------------------------------

    def sources(self) -> list[Source]:
        """Every source that was written and not forgotten, in the order of first writing."""
        state = self._state
        count = torch.zeros(len(state.sources), dtype=torch.int64)
        oldest = torch.zeros(len(state.sources), dtype=torch.int64)
        for track in state.tracks:
            for pool in (track.short_term, track.pending, track.long_term):
                provenance = pool.provenance
                known = provenance.sources >= 0
                row, age = provenance.sources[known], provenance.ages[known]
                count.index_add_(0, row, torch.ones_like(row))
                oldest.scatter_reduce_(0, row, age, reduce="amax")
        return [
            Source(
                record.name,
                dict(record.metadata),
                int(count[number]) // len(state.tracks),
                record.text_tokens,
                record.first_written,
                record.last_written,
                int(oldest[number]),
                record.texts,
            )
            for number, record in enumerate(state.sources)
            if not record.forgotten
        ]

    def stats(self) -> MemoryStats:
        """Tokens per pool and layer, bytes, ages, number of sources."""
        state = self._state

        def pool(sizes: list[tuple[int, int]], nbytes: int) -> PoolStats:
            return PoolStats(tuple(size for size, layers in sizes for _ in range(layers)), nbytes)

        tracks = state.tracks
        short = pool(
            [(len(t.short_term), len(t.layers)) for t in tracks],
            sum(t.short_term.content.nbytes for t in tracks),
        )
        pending = pool([(len(t.pending), len(t.layers)) for t in tracks], sum(t.pending.nbytes for t in tracks))
        long = pool([(len(t.long_term), len(t.layers)) for t in tracks], sum(t.long_term.nbytes for t in tracks))
        ages = [p.provenance.ages.max() for t in tracks for p in (t.short_term, t.pending, t.long_term) if len(p)]
        return MemoryStats(
            short_term=short,
            pending=pending,
            long_term=long,
            tail_tokens=len(state.tail.input_ids),
            written_tokens=state.written_tokens,
            text_tokens=state.text_tokens,
            oldest_age=int(max(ages)) if ages else 0,
            num_sources=sum(not s.forgotten for s in state.sources),
            nbytes=short.nbytes + pending.nbytes + long.nbytes,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all pools, on whatever tier."""
        return self.stats().nbytes

    def __repr__(self) -> str:
        stats = self.stats()
        sizes = ", ".join(
            f"{name} {max(getattr(stats, name).tokens, default=0):,}" for name in ("short_term", "pending", "long_term")
        )
        return (
            f"Memory({stats.text_tokens:,} text tokens from {stats.num_sources} sources; "
            f"tokens per layer: {sizes}; {stats.nbytes / 2**20:.1f} MiB)"
        )
