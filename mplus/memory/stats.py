"""Sizes and ages of a memory."""

from dataclasses import dataclass

from mplus.memory.state import MemoryState


@dataclass(frozen=True)
class PoolStats:
    """Size of one pool."""

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
    """Text tokens of the sources that are remembered; those in the tail are counted, those forgotten are not."""
    oldest_age: int
    """Age of the oldest memory token that is still held."""
    num_sources: int
    nbytes: int
    """Bytes of all pools and of the vectors of chunks."""
    warm_nbytes: int = 0
    """Bytes of keys and values that were made of token ids and are held for later reads; ``nbytes`` is without them."""


def measured(state: MemoryState) -> MemoryStats:
    """Tokens per pool and layer, bytes, ages, number of sources."""
    tracks = state.tracks
    pools = [
        PoolStats(
            tuple(len(t.pools[place]) for t in tracks for _ in t.layers), sum(t.pools[place].nbytes for t in tracks)
        )
        for place in range(3)
    ]
    ages = [pool.provenance.ages.max() for track in tracks for pool in track.pools if len(pool)]
    return MemoryStats(
        *pools,
        tail_tokens=len(state.tail.input_ids),
        written_tokens=state.written_tokens,
        text_tokens=sum(s.text_tokens for s in state.sources if not s.forgotten),
        oldest_age=int(max(ages)) if ages else 0,
        num_sources=sum(not s.forgotten for s in state.sources),
        nbytes=sum(pool.nbytes for pool in pools) + sum(track.vectors.nbytes for track in tracks),
        warm_nbytes=sum(track.warm.nbytes for track in tracks if track.warm is not None),
    )
