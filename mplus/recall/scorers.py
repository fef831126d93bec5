"""Which long-term tokens answer this question: three scorers behind one interface.

A scorer turns the normed input of a layer into *retrieval keys* when a memory token is born, and into
*retrieval queries* when a question is read; ``relevance`` compares them. Relevance is per **unit**: a
whole chunk where chunks are kept whole, else a single token. Keys come in blocks, and no [tokens x
queries] matrix is ever held for more than one of them.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

Normed = Float[Tensor, "S D"]
RetrievalRows = Float[Tensor, "S ..."]
RowWeights = Float[Tensor, " S"]
Relevance = Float[Tensor, " U"]
GoesOn = Bool[Tensor, " U"]


class KeyBlock(NamedTuple):
    """Retrieval keys of some units that follow one another, token by token."""

    keys: Float[Tensor, "T R"]
    sizes: Int[Tensor, " u"]
    """Tokens of each unit, in order; they add up to the number of keys."""
    first: int
    """Number of the first unit. Where it is the last one of the block before, that unit goes on."""


@runtime_checkable
class Scorer(Protocol):
    """What recall needs to know about a way of scoring."""

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Retrieval keys of memory tokens, from their normed states at ``layer``."""
        ...

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Retrieval queries of a question's rows, from their normed states at ``layer``."""
        ...

    def relevance(
        self,
        queries: RetrievalRows,
        blocks: Iterable[KeyBlock],
        num_units: int,
        row_weights: RowWeights | None = None,
        goes_on: GoesOn | None = None,
    ) -> Relevance:
        """Relevance of units 0 to ``num_units`` - 1, each of which has a key in some block.

        Args:
            queries: What is asked for, row by row.
            blocks: All keys; gone through more than once where a scorer has to.
            num_units: U.
            row_weights: How much each query row says; all alike where not given.
            goes_on: Which units go on where the one before them ends; None: each stands alone. Only late
                interaction looks at it.
        """
        ...


class LateInteraction(nn.Module):
    """Scores a unit by late interaction (MaxSim) over states of the model itself.

    Relevance of a unit: for every query row the best cosine with any of the unit's tokens, minus that
    row's mean over all units (so that zero is an average unit; it changes no order), averaged over the
    query rows. States are centred and standardised per dimension first. Training-free
    with the identity as projection; with trained linear projections the same formula (docs/concepts/recall.md).
    """

    def __init__(
        self,
        mean: Float[Tensor, "L D"],
        deviation: Float[Tensor, "L D"],
        *,
        query_projection: Float[Tensor, "R D"] | None = None,
        key_projection: Float[Tensor, "R D"] | None = None,
    ) -> None:
        super().__init__()
        self.mean = nn.Buffer(mean)
        self.deviation = nn.Buffer(deviation)
        self.query_projection = None if query_projection is None else nn.Parameter(query_projection)
        self.key_projection = None if key_projection is None else nn.Parameter(key_projection)

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Unit-length retrieval keys."""
        return self._project(layer, normed, self.key_projection)

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Unit-length retrieval queries."""
        return self._project(layer, normed, self.query_projection)

    def _project(self, layer: int, normed: Normed, projection: Tensor | None) -> Float[Tensor, "S R"]:
        rows = (normed.to(self.mean) - self.mean[layer]) / self.deviation[layer]
        if projection is not None:
            rows = functional.linear(rows, projection)
        return functional.normalize(rows, dim=-1)

    def relevance(
        self,
        queries: RetrievalRows,
        blocks: Iterable[KeyBlock],
        num_units: int,
        row_weights: RowWeights | None = None,
        goes_on: GoesOn | None = None,
    ) -> Relevance:
        """Mean over query rows of (best cosine in the unit - that row's mean best cosine)."""
        match = self.match(queries, blocks, num_units, row_weights, goes_on)
        # The mean over units of a mean over rows: what each row loses adds up to one number.
        return match - match.mean()

    def match(
        self,
        queries: RetrievalRows,
        blocks: Iterable[KeyBlock],
        num_units: int,
        row_weights: RowWeights | None = None,
        goes_on: GoesOn | None = None,
    ) -> Relevance:
        """Mean over query rows of the best cosine in each unit, with its neighbours where they are told."""
        weights = normalised(row_weights, queries)
        if goes_on is not None:
            best = queries.new_empty(num_units, len(queries))
            for first, rows in _best_of_units(queries, blocks):
                best[first : first + len(rows)] = rows
            return with_neighbours(best, goes_on) @ weights
        match = queries.new_zeros(num_units)
        for first, rows in _best_of_units(queries, blocks):
            match[first : first + len(rows)] = rows @ weights
        return match


def _best_of_units(queries: RetrievalRows, blocks: Iterable[KeyBlock]) -> Iterator[tuple[int, Tensor]]:
    """Per block, its first unit and the best cosine of every query row in each of its units so far."""
    last_unit, last_best = -1, queries.new_empty(0)
    for keys, sizes, first in blocks:
        best = best_of_runs(functional.linear(keys.to(queries.dtype), queries), sizes)
        if first == last_unit:
            best[0] = torch.maximum(best[0], last_best)
        yield first, best
        last_unit, last_best = first + len(sizes) - 1, best[-1]


class PublishedRetriever(nn.Module):
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
        self,
        queries: RetrievalRows,
        blocks: Iterable[KeyBlock],
        num_units: int,
        row_weights: RowWeights | None = None,
        goes_on: GoesOn | None = None,
    ) -> Relevance:
        """Mean over query rows, then over the unit's tokens, of sigmoid(query . key)."""
        weights = normalised(row_weights, queries)
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


class AttentionScorer(nn.Module):
    """The paper's comparison: relevance is the layer's own attention, no training.

    Softmax over all long-term tokens of query . key before rotary embedding (distance says nothing about
    relevance), averaged over heads and query rows; a unit has the sum of its tokens.
    """

    def __init__(self, attentions: list[nn.Module], num_key_value_heads: int, head_size: int) -> None:
        super().__init__()
        # Held in a plain list: these modules belong to the backbone.
        self._attentions = attentions
        self.num_key_value_heads = num_key_value_heads
        self.head_size = head_size

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Attention keys of that layer, heads side by side."""
        attention = self._attentions[layer]
        return self._heads(attention.k_proj, getattr(attention, "k_norm", None), normed).flatten(1)  # pyright: ignore[reportArgumentType]

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Attention queries of that layer, [rows, heads, head size]."""
        attention = self._attentions[layer]
        return self._heads(attention.q_proj, getattr(attention, "q_norm", None), normed)  # pyright: ignore[reportArgumentType]

    def _heads(self, projection: nn.Module, norm: nn.Module | None, normed: Normed) -> Float[Tensor, "S H E"]:
        heads: Tensor = projection(normed).unflatten(-1, (-1, self.head_size))
        return heads if norm is None else norm(heads)

    def relevance(
        self,
        queries: RetrievalRows,
        blocks: Iterable[KeyBlock],
        num_units: int,
        row_weights: RowWeights | None = None,
        goes_on: GoesOn | None = None,
    ) -> Relevance:
        """Attention mass of each unit: one pass for the softmax's denominators, one for the masses."""
        weights = normalised(row_weights, queries)
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


def normalised(row_weights: RowWeights | None, queries: RetrievalRows) -> RowWeights:
    """Weights of query rows that add up to 1."""
    if row_weights is None:
        return queries.new_full((queries.shape[0],), 1 / queries.shape[0])
    return row_weights.to(queries) / row_weights.sum()


def best_of_runs(scores: Float[Tensor, "T S"], sizes: Int[Tensor, " u"]) -> Float[Tensor, "u S"]:
    """The highest score of each run of rows, column by column."""
    if len(sizes) == len(scores):
        return scores
    run = torch.arange(len(sizes), device=scores.device).repeat_interleave(sizes, output_size=len(scores))
    best = scores.new_full((len(sizes), scores.shape[1]), float("-inf"))
    return best.scatter_reduce_(0, run[:, None].expand_as(scores), scores, reduce="amax")


def with_neighbours(best: Float[Tensor, "U S"], goes_on: Bool[Tensor, " U"]) -> Float[Tensor, "U S"]:
    """Half of what each unit matches, half of what it does together with its neighbours in the same text.

    An answer's sentence often leaves to the one before what it is about.

    Args:
        best: Best score of every unit and query row.
        goes_on: Which units go on where the one before them ends.
    """
    start = goes_on.new_zeros(1)
    before = torch.where(goes_on[:, None], best.roll(1, 0), best)
    after = torch.where(torch.cat([goes_on[1:], start])[:, None], best.roll(-1, 0), best)
    return (best + torch.maximum(best, torch.maximum(before, after))) / 2


def sum_of_runs(scores: Float[Tensor, " T"], sizes: Int[Tensor, " u"]) -> Float[Tensor, " u"]:
    """The sum of each run of scores."""
    if len(sizes) == len(scores):
        return scores
    run = torch.arange(len(sizes), device=scores.device).repeat_interleave(sizes, output_size=len(scores))
    return scores.new_zeros(len(sizes)).index_add_(0, run, scores)


def choose_units(relevance: Relevance, sizes: Int[Tensor, " U"], budget: int) -> Int[Tensor, " chosen"]:
    """The most relevant units that fit into ``budget`` tokens, best first, the earlier one among equals.

    A unit that does not fit ends the choice: a smaller, less relevant one must not displace it.
    """
    # Every unit has a token, so no more than ``budget`` units fit: only those are put in order.
    most = min(budget, len(relevance))
    if not most:
        return torch.empty(0, dtype=torch.int64)
    worst = relevance.topk(most).values[-1]
    best = (relevance >= worst).nonzero().flatten()
    order = best[relevance[best].argsort(descending=True, stable=True)]
    fits = sizes[order].cumsum(0) <= budget
    return order[: int(fits.sum())]
