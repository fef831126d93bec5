"""Which long-term tokens answer this question: three scorers behind one interface.

A scorer turns the normed input of a layer into *retrieval keys* when a memory token is born, and into
*retrieval queries* when a question is read; ``relevance`` compares them. Relevance is per **unit**: a
whole chunk where chunks are kept whole, else a single token.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

Normed = Float[Tensor, "S D"]
RetrievalRows = Float[Tensor, "S ..."]
Units = Int[Tensor, " _"]
Relevance = Float[Tensor, " U"]


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
        self, queries: RetrievalRows, keys: list[Float[Tensor, "_ R"]], units: list[Units], num_units: int
    ) -> Relevance:
        """Relevance of each unit; ``units`` gives every key's unit, -1 for a key that does not count.

        Keys come in blocks, and no [keys x queries] matrix is held for more than one of them.
        """
        ...


class LateInteraction(nn.Module):
    """Scores a unit by late interaction (MaxSim) over states of the model itself.

    Relevance of a unit: for every query row the best cosine with any of the unit's tokens, minus that
    row's mean over all units (rows that match everything say nothing: an inverse-frequency effect),
    averaged over the query rows. States are centred and standardised per dimension first. Training-free
    with the identity as projection; with trained linear projections the same formula (docs/recall.md).
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
        self, queries: RetrievalRows, keys: list[Float[Tensor, "_ R"]], units: list[Units], num_units: int
    ) -> Relevance:
        """Mean over query rows of (best cosine in the unit - that row's mean best cosine)."""
        best = queries.new_full((num_units, queries.shape[0]), -1.0)
        for block, unit in zip(keys, units, strict=True):
            counted = unit >= 0
            cosine = block.to(queries.dtype) @ queries.T
            if not bool(counted.all()):
                cosine, unit = cosine[counted], unit[counted]
            best.scatter_reduce_(0, unit[:, None].expand_as(cosine), cosine, reduce="amax")
        return (best - best.mean(dim=0)).mean(dim=1)


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
        self, queries: RetrievalRows, keys: list[Float[Tensor, "_ R"]], units: list[Units], num_units: int
    ) -> Relevance:
        """Mean over query rows, then over the unit's tokens, of sigmoid(query . key)."""
        scores = [(block.to(queries.dtype) @ queries.T).sigmoid().mean(dim=1) for block in keys]
        return _mean_per_unit(scores, units, num_units)

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
        self, queries: RetrievalRows, keys: list[Float[Tensor, "_ R"]], units: list[Units], num_units: int
    ) -> Relevance:
        """Attention mass of each unit."""
        grouped = queries.unflatten(1, (self.num_key_value_heads, -1)) * self.head_size**-0.5
        unit = torch.cat(units)
        counted = unit >= 0
        logits: list[Tensor] = []
        for block in keys:
            heads = block.to(queries.dtype).unflatten(1, (self.num_key_value_heads, self.head_size))
            logits.append(torch.einsum("shge,the->shgt", grouped, heads))
        mass = torch.cat(logits, dim=-1)[..., counted].softmax(dim=-1).mean(dim=(0, 1, 2))
        return mass.new_zeros(num_units).index_add_(0, unit[counted], mass)


def _mean_per_unit(scores: list[Tensor], units: list[Units], num_units: int) -> Relevance:
    unit, score = torch.cat(units), torch.cat(scores)
    counted = unit >= 0
    unit, score = unit[counted], score[counted]
    total = score.new_zeros(num_units).index_add_(0, unit, score)
    count = score.new_zeros(num_units).index_add_(0, unit, torch.ones_like(score))
    return total / count.clamp(min=1)


def choose_units(relevance: Relevance, sizes: Int[Tensor, " U"], budget: int) -> Int[Tensor, " chosen"]:
    """The most relevant units that fit into ``budget`` tokens, best first.

    A unit that does not fit ends the choice: a smaller, less relevant one must not displace it.
    """
    order = relevance.argsort(descending=True, stable=True)
    fits = sizes[order].cumsum(0) <= budget
    return order[: int(fits.sum())]
