"""Sizes and ages of a memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mplus.memory.state import MemoryState


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


def measured(state: "MemoryState") -> MemoryStats:
    """Tokens per pool and layer, bytes, ages, number of sources."""

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
