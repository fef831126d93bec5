"""The state of one memory, as an immutable value.

Writing and forgetting make a new state and leave the old one whole. So a fork shares everything until it
diverges, a failed operation changes nothing, and a read never sees half of a write.
"""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.memory.chunk_log import ChunkLog
from mplus.memory.ledger import Ledger
from mplus.memory.long_term import LongTermMemory, survivors
from mplus.memory.placement import placed
from mplus.memory.short_term import chunk_starts, evict_chunks, evict_tokens
from mplus.memory.sources import SourceRecord
from mplus.memory.tiers import Segment, SegmentTier
from mplus.memory.tokens import Content, Provenance, Tokens

SEGMENT_TOKENS = 4096
"""Long-term memory is kept in segments of about this many tokens."""

NO_SOURCES = torch.empty(0, dtype=torch.int64)
Keeps = Callable[[Provenance], Bool[Tensor, " T"]]
"""Which tokens stay."""


def arrival_tier(config: MemoryConfig) -> SegmentTier:
    """Where tokens go that leave short-term memory."""
    return "device" if config.long_term_device == "cuda" else "host"


def chained(digest: str, *facts: object) -> str:
    """The digest of a state after something happened to it."""
    return hashlib.sha256("\x1f".join([digest, *map(str, facts)]).encode()).hexdigest()


@dataclass(frozen=True)
class Context:
    """What the next write still sees of the last one: states at the input of each layer."""

    states: tuple[Float[Tensor, "T D"], ...]
    sources: Int[Tensor, " T"]

    def take(self, index: Int[Tensor, " T"]) -> "Context":
        """The rows at ``index``, in that order."""
        return Context(tuple(layer[index.to(layer.device)] for layer in self.states), self.sources[index])


@dataclass(frozen=True)
class Tail:
    """Text too short to be written yet; reads see it all the same."""

    input_ids: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    since: float = 0.0
    """Unix time at which the first of it was handed in."""


@dataclass(frozen=True)
class Track:
    """The pools of layers that share their choices: all layers in the chunk layout, one in the token layout."""

    layers: tuple[int, ...]
    recall_layer: int
    short_term: Tokens
    pending: LongTermMemory
    long_term: LongTermMemory

    def __len__(self) -> int:
        return len(self.short_term) + len(self.pending) + len(self.long_term)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where each layer's short-term memory is, and recalled tokens go."""
        return tuple(layer.device for layer in self.short_term.content.keys)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which content is read."""
        return self.short_term.content.keys[0].dtype

    def write(self, new: Tokens, config: MemoryConfig, generator: torch.Generator) -> "tuple[Track, int]":
        """New tokens in; what has to leave short-term memory waits as pending.

        Returns:
            The track afterwards, and how many tokens were evicted.
        """
        permutation = None
        if config.layout == "token":
            permutation = torch.randperm(len(self.short_term), generator=generator)
        return self.write_permuted(new, config, permutation)

    def write_permuted(
        self, new: Tokens, config: MemoryConfig, permutation: Int[Tensor, " T"] | None
    ) -> "tuple[Track, int]":
        """``write`` with its one random choice given (None: whole chunks leave, nothing is random)."""
        pool = self.short_term
        if not config.ages_stop_in_short_term:
            pool = replace(pool, provenance=pool.provenance.aged(len(new)))
        if permutation is None:
            remaining, evicted = evict_chunks(pool, new, config.short_term_tokens)
        else:
            remaining, evicted = evict_tokens(pool, new, config.short_term_tokens, permutation)
        pending = self.pending.aged(len(new))
        if len(evicted) and config.long_term_capacity:
            segment = Segment.store(evicted.content, "auto", arrival_tier(config))
            pending = pending.append(segment, evicted.provenance)
        track = replace(self, short_term=remaining, pending=pending, long_term=self.long_term.aged(len(new)))
        return track, len(evicted)

    def consolidate(self, config: MemoryConfig, pinned: Int[Tensor, " n"] = NO_SOURCES) -> "Track":
        """Pending tokens join long-term memory; those without a claim left are forgotten (spec section 5).

        Tokens of ``pinned`` sources always have one.
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
            long_term = long_term.append(segment, replace(fresh, recall_frequencies=frequencies))
        provenance, staying = survivors(
            long_term.provenance,
            decay=config.recall_frequency_decay,
            capacity=config.long_term_capacity,
            required=config.recalled_tokens,
            pinned=torch.isin(long_term.provenance.sources, pinned),
        )
        long_term = replace(long_term, provenance=provenance)
        if len(staying) < len(long_term):
            long_term = long_term.take(staying)
        compact = long_term.compacted(size=SEGMENT_TOKENS)
        if config.recall == "late" and config.layout == "chunk" and len(compact) > config.exact_recall_tokens:
            compact.coarse_index()  # here, so that no read has to wait for it
        return replace(self, pending=LongTermMemory.empty(), long_term=compact)

    def keeping(self, keeps: Keeps, config: MemoryConfig) -> "Track":
        """Without any other token, in any pool and any tensor."""
        kept = keeps(self.short_term.provenance).nonzero().flatten()
        track = replace(
            self,
            short_term=self.short_term.take(kept),
            pending=self.pending.where(keeps(self.pending.provenance)).purged(),
            long_term=self.long_term.where(keeps(self.long_term.provenance)).purged(),
        )
        return track._refilled(config) if config.layout == "chunk" else track

    def _refilled(self, config: MemoryConfig) -> "Track":
        """The newest chunks back in short-term memory where forgetting made room.

        So that a memory that forgot a source reads like one that never had it.
        """
        track = self
        for pool in ("pending", "long_term"):
            store: LongTermMemory = getattr(track, pool)
            if not len(store):
                continue
            room = config.short_term_tokens - len(track.short_term)
            starts = chunk_starts(store.provenance.chunks)
            fitting = starts[len(store) - starts <= room]
            if not len(fitting):
                break
            index = torch.arange(len(store))
            back = Tokens(
                store.content(index[int(fitting[0]) :], track.dtype, track.devices),
                store.provenance.take(index[int(fitting[0]) :]),
            )
            track = replace(
                track,
                short_term=Tokens.cat([back, track.short_term]),
                **{pool: store.take(index[: int(fitting[0])]).purged()},
            )
            if int(fitting[0]) > 0:
                break
        return track


@dataclass(frozen=True)
class MemoryState:
    """Everything a memory holds."""

    tracks: tuple[Track, ...]
    digest: str
    """Hash of everything ever written and forgotten: two equal digests read alike."""
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
    pinned: frozenset[str] = frozenset()
    """Names of sources that age, capacity and disuse spare."""
    ledger: Ledger | None = None
    """What was written, in order; None where it is not kept."""
    replayable: bool = True
    """Whether writing the ledger again gives this state: so until something was taken out of it."""

    def numbers(self, names: Collection[str]) -> Int[Tensor, " n"]:
        """Rows of the living sources of these names."""
        rows = [n for n, s in enumerate(self.sources) if s.name in names and not s.forgotten] if names else []
        return torch.tensor(rows, dtype=torch.int64)

    def source_number(self, name: str) -> int | None:
        """Row of a living source, None where there is none of that name."""
        for number in range(len(self.sources) - 1, -1, -1):
            if self.sources[number].name == name and not self.sources[number].forgotten:
                return number
        return None

    def consolidated_when_due(self, config: MemoryConfig) -> "tuple[MemoryState, int]":
        """Consolidate once enough has been written since the last time; how many tokens moved, per layer."""
        if self.waiting_tokens < config.consolidate_every * config.tokens_per_write:
            return self, 0
        moved = max(len(track.pending) for track in self.tracks)
        pinned = self.numbers(self.pinned)
        tracks = [track.consolidate(config, pinned) for track in self.tracks]
        stores = placed([track.long_term for track in tracks], config)
        tracks = [replace(track, long_term=store) for track, store in zip(tracks, stores, strict=True)]
        return replace(self, tracks=tuple(tracks), waiting_tokens=0), moved


__all__ = [
    "ChunkLog",
    "Content",
    "Context",
    "MemoryState",
    "Provenance",
    "SourceRecord",
    "Tail",
    "Track",
    "chained",
]
