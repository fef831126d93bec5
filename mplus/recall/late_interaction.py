"""Late interaction: relevance by the similarity of a chunk's tokens to the question's, and by shared words."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mplus.config import MemoryConfig
from mplus.layouts.by_config import layout_of
from mplus.memory.long_term import LongTermMemory
from mplus.recall.coarse import coarse_index
from mplus.recall.lexical import REACH, lexical_match
from mplus.recall.scorer import (
    SHORTLIST,
    GoesOn,
    Normed,
    Question,
    Relevance,
    RetrievalRows,
    Scorer,
    Scores,
    Shortlist,
    best_of_runs,
    equal_weights,
    sampled,
    with_neighbours,
)
from mplus.recall.units import Candidates, KeyBlock

COUNTS_ONE = 0.5413248546129181
"""Its softplus is 1."""


class LateInteraction(Scorer):
    """Scores a unit by late interaction (MaxSim) over states of the model itself.

    Relevance of a unit: for every query row the best cosine with any of the unit's tokens, minus that
    row's mean over all units (so that zero is an average unit; it changes no order), averaged over the
    query rows, each as much as ``query_weights`` says. States are centred and standardised per dimension first.
    Training-free with the identity as projection; with trained linear projections the same formula
    (docs/concepts/recall.md).
    """

    def __init__(
        self,
        mean: Float[Tensor, "L D"],
        deviation: Float[Tensor, "L D"],
        *,
        query_projection: Float[Tensor, "R D"] | None = None,
        key_projection: Float[Tensor, "R D"] | None = None,
        query_weights: Float[Tensor, " D"] | None = None,
    ) -> None:
        super().__init__()
        self.mean = nn.Buffer(mean)
        self.deviation = nn.Buffer(deviation)
        self.query_projection = None if query_projection is None else nn.Parameter(query_projection)
        self.key_projection = None if key_projection is None else nn.Parameter(key_projection)
        self.query_weights = None if query_weights is None else nn.Parameter(query_weights)
        """Says how much each row of a question counts; None: all the same."""

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Unit-length retrieval keys."""
        return self._project(layer, normed, self.key_projection)

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Retrieval queries, as long as their rows count: of length 1 on average."""
        queries = self._project(layer, normed, self.query_projection)
        if self.query_weights is None:
            return queries
        counts = functional.softplus(self._standard(layer, normed) @ self.query_weights + COUNTS_ONE)
        return queries * (counts / counts.mean())[:, None]

    def _standard(self, layer: int, normed: Normed) -> Float[Tensor, "S D"]:
        """Rows centred and of equal spread in every dimension."""
        return (normed.to(self.mean) - self.mean[layer]) / self.deviation[layer]

    def _project(self, layer: int, normed: Normed, projection: Tensor | None) -> Float[Tensor, "S R"]:
        rows = self._standard(layer, normed)
        if projection is not None:
            rows = functional.linear(rows, projection)
        return functional.normalize(rows, dim=-1)

    def relevance(
        self, queries: RetrievalRows, blocks: Iterable[KeyBlock], num_units: int, goes_on: GoesOn | None = None
    ) -> Relevance:
        """Mean over query rows of (best cosine in the unit - that row's mean best cosine)."""
        match = self.match(queries, blocks, num_units, goes_on)
        # The mean over units of the mean over rows: subtracting each row's mean subtracts this one number.
        return match - match.mean()

    def match(
        self, queries: RetrievalRows, blocks: Iterable[KeyBlock], num_units: int, goes_on: GoesOn | None = None
    ) -> Relevance:
        """Mean over query rows of the best cosine in each unit, with its neighbours if ``goes_on`` is given."""
        weights = equal_weights(queries)
        if goes_on is not None:
            best = queries.new_empty(num_units, len(queries))
            for first, rows in _best_of_units(queries, blocks):
                best[first : first + len(rows)] = rows
            return with_neighbours(best, goes_on) @ weights
        match = queries.new_zeros(num_units)
        for first, rows in _best_of_units(queries, blocks):
            match[first : first + len(rows)] = rows @ weights
        return match

    # --- with a coarse index and shared words -----------------------------------------------------

    def prepare(self, store: LongTermMemory, config: MemoryConfig) -> None:
        """Build the coarse index of a store with more than ``exact_recall_tokens`` tokens."""
        if layout_of(config).units_are_texts and len(store) > config.exact_recall_tokens:
            coarse_index(store)

    @torch.no_grad()
    def shortlist(self, question: Question, candidates: Candidates, config: MemoryConfig) -> Shortlist:
        """The chunks that the coarse index finds nearest, their neighbours, and chunks that are not indexed yet.

        Only the first pool has an index. The relevance of a usual unit is estimated from a sample of all chunks.
        """
        every = candidates.units[0]
        if not candidates.layout.units_are_texts or every.num_tokens <= config.exact_recall_tokens:
            return Shortlist(candidates)
        store = candidates.long_term
        index, serials = coarse_index(store), store.provenance.at("chunks", every.starts)
        queries = self.asked(question).cpu()
        near = index.nearest(queries, equal_weights(queries), SHORTLIST, serials)
        # Relevance of a chunk includes that of its neighbours and the words of the passage around it.
        around = torch.searchsorted(serials, near)[:, None] + torch.arange(-REACH, REACH + 1)
        newer = torch.arange(int(torch.searchsorted(serials, index.chunks[-1], right=True)), len(candidates))
        found = torch.cat([around.flatten().clamp(0, len(serials) - 1), newer]).unique()
        return Shortlist(candidates.take(found), candidates.take(sampled(len(candidates))))

    @torch.no_grad()
    def scores(self, question: Question, shortlist: Shortlist, config: MemoryConfig) -> Scores:
        """Late interaction of each unit minus that of a usual unit, plus the weight of shared words."""
        candidates, sample = shortlist
        found = self._matched(question, candidates)
        usual = found if sample is None else self._matched(question, sample)
        level = float(usual.mean())
        found, usual = found - level, usual - level
        if question.forms is not None and config.lexical_weight and candidates.layout.units_are_texts:
            unit = config.lexical_weight * float(usual.std(correction=0))
            found = found + unit * lexical_match(question.forms, candidates, sample)
            usual = found if sample is None else usual + unit * lexical_match(question.forms, sample)
        return Scores(found, usual, level)

    def _matched(self, question: Question, candidates: Candidates) -> Relevance:
        queries = self.asked(question)
        return self.match(queries, candidates.blocks(queries.device), len(candidates), candidates.goes_on).cpu()


def _best_of_units(queries: RetrievalRows, blocks: Iterable[KeyBlock]) -> Iterator[tuple[int, Tensor]]:
    """For each block, its first unit and the best cosine of every query row in each of its units so far."""
    last_unit, last_best = -1, queries.new_empty(0)
    for keys, sizes, first in blocks:
        best = best_of_runs(functional.linear(keys.to(queries.dtype), queries), sizes)
        if first == last_unit:
            best[0] = torch.maximum(best[0], last_best)
        yield first, best
        last_unit, last_best = first + len(sizes) - 1, best[-1]
