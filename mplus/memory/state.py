"""The state of one memory, as an immutable value.

Writing and forgetting make a new state and leave the old one whole. So a fork shares all tensors until it
diverges, a failed operation changes nothing, and a read never sees half of a write.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.computed_once import computed_once
from mplus.config import MemoryConfig
from mplus.layouts.by_config import layout_of
from mplus.layouts.layout import Eviction
from mplus.memory.chunk_log import ChunkLog, ChunkMoments
from mplus.memory.ledger import Ledger
from mplus.memory.long_term import LongTermMemory, survivors, whole_chunks
from mplus.memory.placement import placed
from mplus.memory.tiers import Segment, SegmentTier
from mplus.memory.tokens import Provenance, StoredProvenance, Tokens
from mplus.memory.vectors import ChunkVectors
from mplus.memory.warm import Warm, WarmChunks, chunk_key, chunk_keys
from mplus.storage.json_fields import LATER, Record

SEGMENT_TOKENS = 4096
"""Long-term memory is kept in segments of about this many tokens."""

Keeps = Callable[[Provenance], Bool[Tensor, " T"]]
"""A test for the tokens that stay."""


def arrival_tier(config: MemoryConfig) -> SegmentTier:
    """The tier that evicted tokens wait on."""
    return "device" if config.long_term_device == "cuda" else "host"


def chained(digest: str, *facts: object) -> str:
    """The digest of a state after something happened to it."""
    said = "\x1f".join([digest, *map(str, facts)])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Context:
    """States of the last written tokens at the input of each layer, which the next write attends to."""

    states: tuple[Float[Tensor, "T D"], ...]
    sources: Int[Tensor, " T"]

    def take(self, index: Int[Tensor, " T"]) -> "Context":
        """The rows at ``index``, in that order."""
        return Context(tuple(layer[index.to(layer.device)] for layer in self.states), self.sources[index])


@dataclass(frozen=True)
class Tail:
    """Text that is too short to be written yet. Reads treat it as if it had been written."""

    input_ids: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    since: float = 0.0
    """Unix time at which its first text was given."""
    latest: float | None = field(default=None, metadata=LATER)
    """Unix time at which its last text was said; None: ``since``."""
    is_dated: bool = field(default=False, metadata=LATER)
    """Whether its texts were given with the time at which they were said."""

    @property
    def time(self) -> float:
        """Unix time at which its last text was said."""
        return self.since if self.latest is None else self.latest


@dataclass(frozen=True)
class SourceRecord(Record):
    """A row of a memory's table of sources."""

    name: str
    metadata: Mapping[str, Any]
    first_written: float
    last_written: float
    text_tokens: int
    forgotten: bool = False
    texts: tuple[str, ...] = ()
    """The written texts, if ``keep_text`` was set."""
    earliest: float | None = field(default=None, metadata=LATER)
    """Unix time at which its earliest text was said; None: ``first_written``."""
    latest: float | None = field(default=None, metadata=LATER)
    """Unix time at which its latest text was said; None: ``last_written``."""

    @property
    def span(self) -> tuple[float, float]:
        """Unix times at which its earliest and its latest text were said."""
        first = self.first_written if self.earliest is None else self.earliest
        return first, self.last_written if self.latest is None else self.latest

    def comes_before(self, time: float, *, is_dated: bool) -> bool:
        """Whether nothing of it was said after a time, so that what was said then may continue it.

        Without times that were given (``is_dated``: of what continues it), what is written later is said later,
        whatever the clock says.
        """
        return (self.latest is None and not is_dated) or self.span[1] <= time

    @classmethod
    def blank(cls) -> "SourceRecord":
        """The empty row that a forgotten source leaves, so that other sources keep their row numbers."""
        return cls("", {}, 0.0, 0.0, 0, forgotten=True)


@dataclass(frozen=True)
class Track:
    """The pools of layers that recall the same tokens: all layers in the chunk layout, one in the token layout."""

    layers: tuple[int, ...]
    recall_layer: int
    short_term: Tokens
    pending: LongTermMemory
    long_term: LongTermMemory
    vectors: ChunkVectors = field(default_factory=ChunkVectors)
    """Vectors of the chunks in all pools; none unless the user's embedder scores them."""
    warm: Warm | None = None
    """Keys and values that were made of token ids; None if the pools hold them."""

    def __len__(self) -> int:
        return sum(map(len, self.pools))

    @property
    def pools(self) -> tuple[Tokens, LongTermMemory, LongTermMemory]:
        """Short-term memory, what is pending, and long-term memory."""
        return self.short_term, self.pending, self.long_term

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of each layer's short-term memory, to which recalled tokens are copied."""
        return tuple(layer.device for layer in self.short_term.content.keys)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which content is read."""
        return self.short_term.content.dtype

    def write(self, new: Tokens, config: MemoryConfig, generator: torch.Generator) -> "tuple[Track, int]":
        """The track with new tokens in short-term memory; evicted tokens are added to the pending ones.

        Returns:
            The track afterwards, and how many tokens were evicted.
        """
        chunks = torch.cat([self.short_term.provenance.chunks, new.provenance.chunks])
        eviction = layout_of(config).evict(chunks, len(new), config.short_term_tokens, generator)
        return self.after(eviction, new, config)

    def after(self, eviction: Eviction, new: Tokens, config: MemoryConfig) -> "tuple[Track, int]":
        """``write`` with a given eviction."""
        pool = self.short_term
        ages = layout_of(config).aged(pool.provenance.ages, len(new), config)
        pool = replace(pool, provenance=pool.provenance.changed(ages=ages))
        pool = Tokens.cat([pool, new]) if len(pool) else new
        pending = self.pending.aged(len(new))
        if len(eviction.evicted) and config.long_term_capacity:
            evicted = pool.take(eviction.evicted)
            segment = Segment.store(evicted.content, "auto", arrival_tier(config))
            pending = pending.append(segment, evicted.provenance)
        remaining = pool.take(eviction.remaining)
        track = replace(self, short_term=remaining, pending=pending, long_term=self.long_term.aged(len(new)))
        return track if config.long_term_capacity else track._with_held_vectors(), len(eviction.evicted)

    def consolidate(self, config: MemoryConfig, pinned: Int[Tensor, " n"]) -> "Track":
        """Move pending tokens to long-term memory; forget tokens whose recall frequency is used up (spec section 5).

        Tokens of ``pinned`` sources are never forgotten.
        """
        if not len(self.pending):
            return self
        long_term = self.long_term
        everything = torch.arange(len(self.pending))
        for part in everything.split(SEGMENT_TOKENS):
            content = self.pending.content(part, self.dtype, self.devices)
            segment = Segment.store(content, config.resolved_long_term_dtype, arrival_tier(config))
            fresh = self.pending.provenance.take(part)
            frequencies = torch.full_like(fresh.recall_frequencies, config.initial_recall_frequency)
            long_term = long_term.append(segment, fresh.changed(recall_frequencies=frequencies))
        provenance, staying = survivors(
            long_term.provenance,
            decay=config.recall_frequency_decay,
            capacity=config.long_term_capacity,
            required=config.recalled_tokens,
            pinned=torch.isin(long_term.provenance.sources, pinned),
        )
        long_term, warm = replace(long_term, provenance=StoredProvenance.of(provenance)), self.warm
        if isinstance(warm, WarmChunks) and len(warm):
            warm.settle(chunk_keys(self.pending, everything))
        if len(staying) < len(long_term):
            if warm is not None:  # a chunk is made again from all of its token ids
                staying = whole_chunks(provenance.chunks, staying)
                gone = torch.ones(len(long_term), dtype=torch.bool).index_fill_(0, staying, False)
                warm = _warm_without(warm, [(long_term, gone)])
            long_term = long_term.take(staying)
        compact = long_term.compacted(size=SEGMENT_TOKENS)
        return replace(self, pending=LongTermMemory.empty(), long_term=compact, warm=warm)._with_held_vectors()

    def keeping(self, keeps: Keeps, config: MemoryConfig, *, purged: bool = True) -> "Track":
        """The track with only the tokens that ``keeps`` selects.

        Args:
            keeps: Selects them.
            config: The memory's layout.
            purged: Whether no tensor may hold another token; else long-term memory shares its tensors with this one's.
        """
        kept = [keeps(pool.provenance) for pool in self.pools]
        short_term, pending, long_term = kept
        warm, stores = self.warm, (self.pending.where(pending), self.long_term.where(long_term))
        if purged:
            stores = (stores[0].purged(), stores[1].purged())
            if warm is not None:
                warm = _warm_without(warm, [(pool, ~rows) for pool, rows in zip(self.pools, kept, strict=True)])
        track = replace(
            self,
            short_term=self.short_term.take(short_term.nonzero().flatten()),
            pending=stores[0],
            long_term=stores[1],
            warm=warm,
        )
        return track._refilled(config, purged=purged)._with_held_vectors()

    @property
    def chunks(self) -> Int[Tensor, " U"]:
        """Serial numbers of the chunks that are held in any pool, ascending."""
        return torch.cat([pool.provenance.chunks.unique_consecutive() for pool in self.pools]).unique()

    def _with_held_vectors(self) -> "Track":
        """The track without vectors of chunks that no pool holds."""
        return replace(self, vectors=self.vectors.keeping(self.chunks)) if len(self.vectors) else self

    def _refilled(self, config: MemoryConfig, *, purged: bool) -> "Track":
        """Move the newest evicted tokens back into short-term memory if forgetting made room."""
        track = self
        for pool in ("pending", "long_term"):
            store: LongTermMemory = getattr(track, pool)
            room = config.short_term_tokens - len(track.short_term)
            count = layout_of(config).num_returning(store.provenance.chunks, room)
            staying, returning = torch.arange(len(store)).tensor_split([len(store) - count])
            if count:
                content = store.content(returning, track.dtype, track.devices)
                back = Tokens(content, store.provenance.take(returning))
                rest = store.take(staying)
                left = {pool: rest.purged() if purged else rest}
                track = replace(track, short_term=Tokens.cat([back, track.short_term]), **left)
            if len(staying):
                break
        return track


def _warm_without(warm: Warm, gone: Sequence[tuple[Tokens | LongTermMemory, Bool[Tensor, " _"]]]) -> Warm:
    """Room without the chunks that go."""
    assert isinstance(warm, WarmChunks), "memories that are read together do not change"
    return warm.without({key for pool, rows in gone for key in chunk_keys(pool, rows.nonzero().flatten())})


class Lineage:
    """What the versions of one memory have in common: an identity, by which a process may keep things for them."""


@dataclass(frozen=True)
class MemoryState:
    """Everything a memory holds."""

    tracks: tuple[Track, ...]
    digest: str
    """Hash of everything ever written and forgotten: reads of states with equal digests give the same result."""
    context: Context | None = None
    tail: Tail = field(default_factory=Tail)
    sources: tuple[SourceRecord, ...] = ()
    written_tokens: int = 0
    """Memory tokens written per layer so far."""
    text_tokens: int = 0
    num_chunks: int = 0
    waiting_tokens: int = 0
    """Memory tokens written since the last consolidation (published: update_step)."""
    chunk_log: ChunkLog = field(default_factory=ChunkLog)
    moments: ChunkMoments = field(default_factory=ChunkMoments)
    """When chunks were said, where that is not when they were written."""
    pinned: frozenset[str] = frozenset()
    """Names of sources that are kept regardless of age, capacity and disuse."""
    ledger: Ledger | None = None
    """All writes in order; None if the memory keeps no ledger."""
    replayable: bool = True
    """Whether writing the ledger again gives this state. True until something is removed from the state."""
    removed_rows: int = 0
    """Rows of forgotten sources that went from the table, so that names that were made by number do not come back."""
    lineage: Lineage = field(default_factory=Lineage, compare=False, repr=False)
    """The same in every later version of this state."""

    @computed_once
    def source_counts(self) -> tuple[list[int], list[list[int]], list[int], list[int]]:
        """Of each source: its tokens (mean over tracks), those by pool, text tokens of the tail, and its oldest age.

        A state never changes, so they are counted once; an answer looks at them several times.
        """
        counts = torch.zeros(3, len(self.sources), dtype=torch.int64)
        oldest = torch.zeros(len(self.sources), dtype=torch.int64)
        for track in self.tracks:
            for place, pool in enumerate(track.pools):
                provenance = pool.provenance
                known = provenance.sources >= 0
                row, age = provenance.sources[known], provenance.ages[known]
                counts[place].index_add_(0, row, torch.ones_like(row))
                oldest.scatter_reduce_(0, row, age, reduce="amax")
        tail = torch.bincount(torch.tensor(self.tail.sources, dtype=torch.int64), minlength=len(self.sources))
        totals, pools = counts.sum(0) // len(self.tracks), counts.T // len(self.tracks)
        # Whole columns: single numbers are slow.
        return totals.tolist(), pools.tolist(), tail.tolist(), oldest.tolist()

    def numbers(self, names: Collection[str]) -> Int[Tensor, " n"]:
        """Rows of the sources of these names that are not forgotten."""
        rows = [n for n, s in enumerate(self.sources) if s.name in names and not s.forgotten] if names else []
        return torch.tensor(rows, dtype=torch.int64)

    def cooled(self) -> "MemoryState":
        """The state with room for keys and values of its own, and nothing in it."""
        return self._with_rooms(lambda room: room.anew())

    def beside_tail(self) -> "MemoryState":
        """The state for a write of its tail that no other state sees."""
        key = chunk_key(torch.tensor(self.tail.input_ids, dtype=torch.int32))
        return self._with_rooms(lambda room: room.beside(key))

    def sharing_rooms(self, other: "MemoryState") -> "MemoryState":
        """The state with the room for keys and values that another state of the memory has."""
        rooms = iter([track.warm for track in other.tracks if isinstance(track.warm, WarmChunks)])
        return self._with_rooms(lambda _: next(rooms))

    def _with_rooms(self, change: Callable[[WarmChunks], WarmChunks]) -> "MemoryState":
        if all(track.warm is None for track in self.tracks):
            return self
        tracks = [replace(t, warm=change(t.warm)) if isinstance(t.warm, WarmChunks) else t for t in self.tracks]
        return replace(self, tracks=tuple(tracks))

    def track_of(self, layer: int) -> tuple[Track, int]:
        """The track of a layer, and the layer's index within it."""
        return (self.tracks[0], layer) if len(self.tracks) == 1 else (self.tracks[layer], 0)

    def source_number(self, name: str) -> int | None:
        """Row of the source of that name that is not forgotten; None if there is none."""
        for number in range(len(self.sources) - 1, -1, -1):
            if self.sources[number].name == name and not self.sources[number].forgotten:
                return number
        return None

    def consolidated_when_due(self, config: MemoryConfig) -> "tuple[MemoryState, int]":
        """Consolidate if enough was written since the last time. Also returns how many tokens moved per layer."""
        if self.waiting_tokens < config.consolidate_every * config.tokens_per_write:
            return self, 0
        moved = max(len(track.pending) for track in self.tracks)
        pinned = self.numbers(self.pinned)
        tracks = [track.consolidate(config, pinned) for track in self.tracks]
        stores = placed([track.long_term for track in tracks], config)
        tracks = [replace(track, long_term=store) for track, store in zip(tracks, stores, strict=True)]
        return replace(self, tracks=tuple(tracks), waiting_tokens=0), moved
