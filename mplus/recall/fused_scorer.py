"""Recall by two scorers together."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.recall.scorer import GoesOn, Normed, Question, Relevance, RetrievalRows, Scorer, Scores, Shortlist
from mplus.recall.units import Candidates, KeyBlock


class FusedScorer(Scorer):
    """Relevance by one scorer, plus that of another with a weight, each counted in spreads over all units.

    The sum is on the scale of the first scorer, and an average unit keeps its relevance. Memory tokens have the
    retrieval keys of the first scorer, which also compares sentences; the second has keys of its own elsewhere, or the
    same ones.

    Args:
        main: The first scorer.
        other: The second.
        weight: The weight of the second, by the layout of the memory.
    """

    def __init__(self, main: Scorer, other: Scorer, weight: Callable[[MemoryConfig], float]) -> None:
        super().__init__()
        self.main, self.other, self._weight = main, other, weight

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Retrieval keys of the first scorer."""
        return self.main.keys(layer, normed)

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Retrieval queries of the first scorer."""
        return self.main.queries(layer, normed)

    def relevance(
        self, queries: RetrievalRows, blocks: Iterable[KeyBlock], num_units: int, goes_on: GoesOn | None = None
    ) -> Relevance:
        """Relevance by the first scorer alone."""
        return self.main.relevance(queries, blocks, num_units, goes_on)

    def prepare(self, store: LongTermMemory, config: MemoryConfig) -> None:
        """What both scorers need."""
        self.main.prepare(store, config)
        self.other.prepare(store, config)

    def shortlist(self, question: Question, candidates: Candidates, config: MemoryConfig) -> Shortlist:
        """The units that either scorer finds worth scoring."""
        shortlists = [scorer.shortlist(question, candidates, config) for scorer in (self.main, self.other)]
        sample = next((shortlist.sample for shortlist in shortlists if shortlist.sample is not None), None)
        if any(len(shortlist.candidates) == len(candidates) for shortlist in shortlists):
            return Shortlist(candidates)
        places = [_places(shortlist.candidates, candidates) for shortlist in shortlists]
        return Shortlist(candidates.take(torch.cat(places).unique()), sample)

    @torch.no_grad()
    def scores(self, question: Question, shortlist: Shortlist, config: MemoryConfig) -> Scores:
        """The first scorer's relevance plus the second's, in spreads."""
        first = self.main.scores(question, shortlist, config)
        return fused(first, self.other.scores(question, shortlist, config), self._weight(config))


def fused(first: Scores, second: Scores, weight: float) -> Scores:
    """The first scores plus the second ones above their average, in spreads of the first for each of the second."""
    unit = weight * first.spread / max(second.spread, 1e-9)
    return Scores(
        first.relevance + unit * (second.relevance - second.average),
        first.usual + unit * (second.usual - second.average),
        first.level,
    )


def _places(some: Candidates, every: Candidates) -> Int[Tensor, " u"]:
    """The place of each of some candidates among all."""
    found, shift = list[Tensor](), 0
    for mine, units in zip(some.units, every.units, strict=True):
        found.append(torch.searchsorted(units.starts, mine.starts) + shift)
        shift += len(units)
    return torch.cat(found)
