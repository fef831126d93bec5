"""Sources: the record that a memory keeps of each document, turn or note written into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mplus.memory.state import MemoryState


class SourceTokens(NamedTuple):
    """Memory tokens of one source that are still held, by pool; in the token layout, the mean over layers."""

    short_term: int
    pending: int
    long_term: int


@dataclass(frozen=True)
class Source:
    """One source that a memory holds."""

    name: str
    metadata: Mapping[str, Any]
    memory_tokens: int
    """Tokens still held in all pools together; in the token layout, the mean over layers."""
    tokens: SourceTokens
    """``memory_tokens`` by pool."""
    tail_tokens: int
    """Text tokens that wait until a chunk is full."""
    text_tokens: int
    """Text tokens written under this name."""
    first_written: float
    """Unix time."""
    last_written: float
    """Unix time."""
    oldest_age: int
    """Memory tokens written since the oldest of its tokens."""
    pinned: bool
    """Whether the source is kept regardless of age limits, capacity and disuse."""
    texts: tuple[str, ...]
    """The written texts, if they were kept (``write(..., keep_text=True)``)."""
    earliest: float = 0.0
    """Unix time at which its earliest text was said: as given (``write(..., at=…)``), else when it was written."""
    latest: float = 0.0
    """Unix time at which its latest text was said."""


def listed(state: MemoryState) -> list[Source]:
    """Every source that was written and not forgotten, in the order of first writing."""
    counts = torch.zeros(3, len(state.sources), dtype=torch.int64)
    oldest = torch.zeros(len(state.sources), dtype=torch.int64)
    for track in state.tracks:
        for place, pool in enumerate(track.pools):
            provenance = pool.provenance
            known = provenance.sources >= 0
            row, age = provenance.sources[known], provenance.ages[known]
            counts[place].index_add_(0, row, torch.ones_like(row))
            oldest.scatter_reduce_(0, row, age, reduce="amax")
    tail = torch.bincount(torch.tensor(state.tail.sources, dtype=torch.int64), minlength=len(state.sources))
    totals, pools = counts.sum(0) // len(state.tracks), counts.T // len(state.tracks)
    numbers = (column.tolist() for column in (totals, pools, tail, oldest))  # whole columns: single numbers are slow
    return [
        Source(
            record.name,
            dict(record.metadata),
            total,
            SourceTokens(*by_pool),
            waiting,
            record.text_tokens,
            record.first_written,
            record.last_written,
            age,
            record.name in state.pinned,
            record.texts,
            *record.span,
        )
        for record, total, by_pool, waiting, age in zip(state.sources, *numbers, strict=True)
        if not record.forgotten
    ]
