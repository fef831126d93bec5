"""The published retriever: small networks, trained with the model, that score single tokens."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mplus.recall.scorer import GoesOn, Normed, Relevance, RetrievalRows, Scorer, equal_weights, sum_of_runs
from mplus.recall.units import KeyBlock


class PublishedRetriever(Scorer):
    """The co-trained retriever of the paper: one pair of two-layer perceptrons per layer (spec section 7).

    Relevance of a token: mean over the query rows of sigmoid(query . key), unscaled. A unit of several
    tokens has the mean of its tokens.
    """

    def __init__(self, query_projections: nn.ModuleList, key_projections: nn.ModuleList) -> None:
        super().__init__()
        self.query_projections = query_projections
        self.key_projections = key_projections

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """f_k of that layer."""
        return self.key_projections[layer](normed)

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """f_q of that layer."""
        return self.query_projections[layer](normed)

    def relevance(
        self, queries: RetrievalRows, blocks: Iterable[KeyBlock], num_units: int, goes_on: GoesOn | None = None
    ) -> Relevance:
        """Mean over query rows, then over the unit's tokens, of sigmoid(query . key)."""
        weights = equal_weights(queries)
        total, count = queries.new_zeros(num_units), queries.new_zeros(num_units)
        for keys, sizes, first in blocks:
            scores = functional.linear(keys.to(queries.dtype), queries).sigmoid_() @ weights
            units = slice(first, first + len(sizes))
            total[units] += sum_of_runs(scores, sizes)
            count[units] += sizes
        return total / count

    @staticmethod
    def projection(hidden_size: int, retriever_size: int) -> nn.Sequential:
        """One untrained f_q or f_k: D -> 2R -> R without bias, SiLU between."""
        return nn.Sequential(
            nn.Linear(hidden_size, 2 * retriever_size, bias=False),
            nn.SiLU(),
            nn.Linear(2 * retriever_size, retriever_size, bias=False),
        )
