"""Selects the sources that a read may use or a search finds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mplus.memory.state import MemoryState

Where = Mapping[str, Any] | Callable[[str, Mapping[str, Any]], bool]
"""The sources that may be read: metadata that must be equal, or a test of name and metadata."""


@dataclass(frozen=True)
class FoundSource:
    """A source that a search found.

    Attributes:
        source: Its name.
        relevance: Relevance of its best chunk, as the scorer counts.
        metadata: Metadata that was given when the source was written.
        texts: The written texts, if they were kept.
    """

    source: str
    relevance: float
    metadata: Mapping[str, Any]
    texts: tuple[str, ...]


def source_filter(where: Where) -> Callable[[str, Mapping[str, Any]], bool]:
    """A choice of sources as a test of a source's name and metadata.

    Args:
        where: Metadata that must be there and equal, or a test already.
    """
    if callable(where):
        return lambda name, metadata: bool(where(name, metadata))
    wanted, missing = dict(where), object()
    return lambda _, metadata: all(metadata.get(key, missing) == value for key, value in wanted.items())


def allowed_sources(state: MemoryState, where: Where | None) -> torch.Tensor | None:
    """Rows of the table of sources that match; None if all may be read."""
    if where is None:
        return None
    fits = source_filter(where)
    rows = [n for n, s in enumerate(state.sources) if not s.forgotten and fits(s.name, s.metadata)]
    return torch.tensor(rows, dtype=torch.int64)
