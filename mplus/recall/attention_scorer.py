"""Recall by the model's own attention: needs no training."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.backbone.attention import Projection
from mplus.recall.scorer import GoesOn, Normed, Relevance, RetrievalRows, Scorer, equal_weights, sum_of_runs
from mplus.recall.units import KeyBlock


class AttentionScorer(Scorer):
    """The scorer that the paper compares with: relevance is the layer's own attention, without training.

    Softmax over all long-term tokens of query . key before rotary embedding (distance is unrelated to
    relevance), averaged over heads and query rows; a unit has the sum of its tokens.
    """

    def __init__(self, projections: Sequence[Projection], num_key_value_heads: int, head_size: int) -> None:
        """Score by what ``Backbone.projections`` makes of each layer's rows."""
        super().__init__()
        self._projections = projections
        self.num_key_value_heads = num_key_value_heads
        self.head_size = head_size

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Attention keys of that layer, heads side by side."""
        return self._projections[layer]("k", normed).flatten(1)

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Attention queries of that layer, [rows, heads, head size]."""
        return self._projections[layer]("q", normed)

    def relevance(
        self, queries: RetrievalRows, blocks: Iterable[KeyBlock], num_units: int, goes_on: GoesOn | None = None
    ) -> Relevance:
        """Attention mass of each unit: one pass for the softmax's denominators, one for the masses."""
        weights = equal_weights(queries)
        grouped = queries.unflatten(1, (self.num_key_value_heads, -1)) * self.head_size**-0.5
        grouped = grouped.permute(1, 3, 0, 2)  # [head, size, row, group]
        highest = grouped.new_full((grouped.shape[0], 1, *grouped.shape[2:]), float("-inf"))
        total = torch.zeros_like(highest)
        for keys, _, _ in blocks:
            logits = self._logits(keys, grouped)
            higher = torch.maximum(highest, logits.amax(dim=1, keepdim=True))
            total = total * (highest - higher).exp() + (logits - higher).exp().sum(dim=1, keepdim=True)
            highest = higher
        mass = queries.new_zeros(num_units)
        for keys, sizes, first in blocks:
            share = (self._logits(keys, grouped) - highest).exp_().div_(total)
            mass[first : first + len(sizes)] += sum_of_runs(share.mean(dim=(0, 3)) @ weights, sizes)
        return mass

    def _logits(self, keys: Tensor, grouped: Tensor) -> Float[Tensor, "H T S G"]:
        heads = keys.to(grouped.dtype).unflatten(1, (self.num_key_value_heads, self.head_size)).transpose(0, 1)
        return (heads @ grouped.flatten(2)).unflatten(2, grouped.shape[2:])
