"""Which sources an answer has read, from which pool, and which of them may contradict each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.layouts.by_config import layout_of
from mplus.layouts.whole_chunks import AS_RELEVANT, RIVALS
from mplus.memory.together import Member
from mplus.read.prefill import ReadRequest
from mplus.recall.choose import Recalled

Pool = Literal["short_term", "long_term", "both"]
CHECKPOINT = "(checkpoint)"
"""Stands for tokens that came with a checkpoint, which have no source."""


class RecalledSource(NamedTuple):
    """A source that a read used.

    Attributes:
        source: Its name.
        share: Its share of the memory tokens, or of the text, that was read; the shares of an answer add up to 1.
        relevance: Relevance of its best chunk or token, as the scorer counts; 0 if it was not scored.
        metadata: Metadata that was given when the source was written.
        memory: Which of the memories that were read together it is from: 0 for the first, or for a single one.
        pool: Where it was read from. Short-term memory, the latest texts, is always read whole.
        newer_than: Names of sources about the same thing that were written before it. A read mostly follows the newer
            one where they contradict each other, so look whether it may be trusted.
    """

    source: str
    share: float
    relevance: float
    metadata: Mapping[str, Any]
    memory: int = 0
    pool: Pool = "long_term"
    newer_than: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tokens:
    """Tokens that were read, of one track and pool."""

    sources: Int[Tensor, " T"]
    relevance: Float[Tensor, " T"]
    ages: Int[Tensor, " T"]
    recent: bool

    def where(self, is_mine: Tensor, *, recent: bool) -> "_Tokens":
        return _Tokens(self.sources[is_mine], self.relevance[is_mine], self.ages[is_mine], recent)


def recalled_sources(request: ReadRequest, recalled: Sequence[Recalled]) -> tuple[RecalledSource, ...]:
    """The sources that a read used, most relevant first.

    Those that were not scored come last, and among equals what recall has chosen comes before what short-term memory
    gives in any case, and the larger share before the smaller.

    Args:
        request: The read.
        recalled: What each track recalled.
    """
    records = request.state.sources
    counts, best, ages = _by_source(_tokens(request, recalled), len(records) + 1)
    read, total = counts.sum(dim=0), float(counts.sum())
    relevance = best.where(best > float("-inf"), 0.0)
    newer = _newer(best[:-1], ages[:-1]) if layout_of(request.config).units_are_texts else {}
    order = [(-float(best[n]), not float(counts[0, n]), -float(read[n]), n) for n in read.nonzero().flatten().tolist()]
    return tuple(
        RecalledSource(
            records[n].name if n < len(records) else CHECKPOINT,
            float(read[n]) / total,
            float(relevance[n]),
            dict(records[n].metadata) if n < len(records) else {},
            memory_of(request.members, n),
            _pool(float(counts[1, n]), float(counts[0, n])),
            tuple(records[other].name for other in newer.get(n, ())),
        )
        for *_, n in sorted(order)
    )


def relevance_of_sources(request: ReadRequest, recalled: Sequence[Recalled]) -> tuple[float, ...]:
    """Relevance of each source that recall chose; what short-term memory gives in any case is left out."""
    size = len(request.state.sources) + 1
    counts, best, _ = _by_source([_chosen(size - 1, track) for track in recalled], size)
    return tuple(float(best[n]) for n in counts.sum(dim=0).nonzero().flatten().tolist())


def memory_of(members: Sequence[Member], source: int) -> int:
    """Which of the memories of a read has a row of its table of sources; 0 for tokens that have no source."""
    return next((n for n, member in enumerate(members) if member.holds(source)), 0)


def _tokens(request: ReadRequest, recalled: Sequence[Recalled]) -> list[_Tokens]:
    """All tokens that were read, by track and pool."""
    found: list[_Tokens] = []
    unknown = len(request.state.sources)
    for track, taken in zip(request.state.tracks, recalled, strict=False):
        chosen = _chosen(unknown, taken)
        if taken.is_recent is not None:
            parts = [(taken.is_recent, True), (~taken.is_recent, False)]
            found += [chosen.where(is_mine, recent=recent) for is_mine, recent in parts]
            continue
        pool = track.short_term.provenance
        if request.sources is not None:
            pool = pool.take(torch.isin(pool.sources, request.sources).nonzero().flatten())
        relevance = taken.recent_relevance
        if relevance is None or len(relevance) != len(pool.sources):
            relevance = torch.full((len(pool.sources),), float("-inf"))
        sources = pool.sources.where(pool.sources >= 0, unknown)
        found += [chosen, _Tokens(sources, relevance, pool.ages, recent=True)]
    return found


def _chosen(unknown: int, taken: Recalled) -> _Tokens:
    """Recalled tokens; those without a source count for the row ``unknown``."""
    sources = taken.provenance.sources
    return _Tokens(sources.where(sources >= 0, unknown), taken.relevance, taken.provenance.ages, recent=False)


def _by_source(
    tokens: Sequence[_Tokens], size: int
) -> tuple[Float[Tensor, "2 n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """For each source: tokens read from long-term and short-term memory, best relevance, age of the newest."""
    counts = torch.zeros(2, size, dtype=torch.float64)
    best = torch.full((size,), float("-inf"), dtype=torch.float64)
    ages = torch.full((size,), float("inf"), dtype=torch.float64)
    for part in tokens:
        counts[int(part.recent)].index_add_(0, part.sources, torch.ones_like(part.sources, dtype=torch.float64))
        best.scatter_reduce_(0, part.sources, part.relevance.double(), reduce="amax")
        ages.scatter_reduce_(0, part.sources, part.ages.double(), reduce="amin")
    return counts, best, ages


def _newer(best: Float[Tensor, " n"], ages: Float[Tensor, " n"]) -> dict[int, list[int]]:
    """For each source that is about the same as the most relevant one, those of them that were written before it."""
    order = best.argsort(descending=True, stable=True)[: RIVALS + 1].tolist()
    top = float(best[order[0]]) if order else 0.0
    same = [n for n in order if top > 0 and float(best[n]) >= AS_RELEVANT * top]
    return {n: [other for other in same if ages[other] > ages[n]] for n in same}


def _pool(recent: float, stored: float) -> Pool:
    if recent and stored:
        return "both"
    return "short_term" if recent else "long_term"
