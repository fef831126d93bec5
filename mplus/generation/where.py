"""Selects the sources that a read may use or a search finds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mplus.filters import checked_test, metadata_filter
from mplus.memory.together import Together

Where = Mapping[str, Any] | Callable[[str, Mapping[str, Any]], bool]
"""The sources that may be read: a filter of metadata, or a test of name and metadata."""
WhereLike = Where | Sequence[Where | None] | None
"""The sources that may be read, of all memories of a read or of each; None for all."""


@dataclass(frozen=True)
class FoundSource:
    """A source that a search found.

    Attributes:
        source: Its name.
        relevance: Relevance of its best chunk, as the scorer counts.
        metadata: Metadata that was given when the source was written.
        texts: The written texts, if they were kept.
        memory: Which of the memories that were searched together it is from.
        score: The same from 0 to 1: above 0.5 it is more likely about the query than not, and a cutoff of 0.7 keeps
            what clearly is. With an embedder alone, the cosine.
    """

    source: str
    relevance: float
    metadata: Mapping[str, Any]
    texts: tuple[str, ...]
    memory: int = 0
    score: float = 0.0


def source_filter(where: Where) -> Callable[[str, Mapping[str, Any]], bool]:
    """A choice of sources as a test of a source's name and metadata.

    Args:
        where: A filter of metadata (``metadata_filter``), or a test already.

    Raises:
        ValueError: An operator of a filter is unknown, or its operand is of the wrong kind. The test is asynchronous,
            takes something else, or, when it is asked, returns neither True nor False.
    """
    if callable(where):
        return checked_test(where, "where", "name", "metadata")
    fits = metadata_filter(where)
    return lambda _, metadata: fits(metadata)


def allowed_sources(read: Together, where: WhereLike) -> torch.Tensor | None:
    """Rows of the table of sources of a read that match; None if all may be read.

    Raises:
        ValueError: There is another number of conditions than of memories.
    """
    tests = list(where) if isinstance(where, Sequence) else [where] * len(read.members)
    if len(tests) != len(read.members):
        raise ValueError(
            f"{len(tests)} conditions in where for {len(read.members)} memories: expected one for each, None for all, "
            "or a single one."
        )
    if all(test is None for test in tests):
        return None
    rows: list[int] = []
    for member, test in zip(read.members, tests, strict=True):
        fits = source_filter(test) if test is not None else None
        for n in range(member.first_source, member.first_source + member.num_sources):
            source = read.state.sources[n]
            if not source.forgotten and (fits is None or fits(source.name, source.metadata)):
                rows.append(n)
    return torch.tensor(sorted(rows), dtype=torch.int64)
