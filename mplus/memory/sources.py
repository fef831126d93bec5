"""Sources: the record that a memory keeps of each document, turn or note written into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
        for record, total, by_pool, waiting, age in zip(state.sources, *state.source_counts, strict=True)
        if not record.forgotten
    ]
