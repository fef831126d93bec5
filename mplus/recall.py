"""Recall: which long-term and pending tokens answer this question."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import MemoryState, Track
from mplus.memory.tokens import Provenance, Tokens
from mplus.retriever import Scorer, choose_units
from mplus.weights import Weights

QUERY_TOKENS = 256
"""Most tokens of a question that recall looks at: its last ones."""


@dataclass(frozen=True)
class Recalled:
    """What one track brought back for one read, oldest first."""

    index: Int[Tensor, " T"]
    """Rows of [long-term ; pending]."""
    provenance: Provenance
    relevance: Float[Tensor, " T"]
    """Relevance of the unit each token was recalled with."""


def nothing_recalled() -> Recalled:
    """What a read recalls where there is nothing."""
    return Recalled(torch.empty(0, dtype=torch.int64), Provenance.none(), torch.empty(0))


def recall(
    weights: Weights,
    track: Track,
    config: MemoryConfig,
    normed: Float[Tensor, "S D"],
    sources: Int[Tensor, " n"] | None = None,
) -> Recalled:
    """Choose the long-term and pending tokens most relevant to a question (spec section 7).

    Args:
        weights: For the scorer.
        track: The pools to choose from.
        config: How many tokens, and whether whole chunks.
        normed: The question's rows, normed by the track's recall layer.
        sources: Rows of the table of sources that may be recalled; None for all.
    """
    budget = config.recalled_tokens
    if sources is None and config.repeat_short_recall and len(track.long_term) < budget:
        return _repeated(track, budget)
    stores = [store for store in (track.long_term, track.pending) if len(store)]
    if not stores or not budget:
        return nothing_recalled()
    provenance = Provenance.cat([store.provenance for store in stores])
    unit, num_units = _units(provenance, config, sources)
    if not num_units:
        return nothing_recalled()
    relevance = relevance_of_units(weights.scorers[config.recall], track, stores, normed, unit, num_units)
    sizes = torch.bincount(unit[unit >= 0], minlength=num_units)
    chosen = choose_units(relevance, sizes, budget)
    index = torch.isin(unit, chosen).nonzero().flatten()
    # Oldest first; ties in age in descending index order, as the published order has them.
    index = index[provenance.ages[index].argsort(stable=True)].flip(0)
    return Recalled(index, provenance.take(index), relevance[unit[index]])


def rank_sources(
    weights: Weights,
    state: MemoryState,
    config: MemoryConfig,
    query: Sequence[int],
    sources: Int[Tensor, " n"] | None = None,
) -> list[tuple[int, float]]:
    """Every source in any pool with the relevance of its best chunk, most relevant first.

    Args:
        weights: The model.
        state: What is remembered.
        config: How it is laid out.
        query: Tokens of what is searched for.
        sources: Rows of the table of sources that count; None for all.
    """
    # In the token layout every layer recalls for itself: ask the one that would be asked for all.
    track = state.tracks[0] if len(state.tracks) == 1 else state.tracks[weights.recall_layer]
    pools = [pool for pool in (track.long_term, track.pending, track.short_term) if len(pool)]
    if not pools:
        return []
    ids = torch.tensor(list(query[-QUERY_TOKENS:]))
    normed = weights.norm(track.recall_layer, weights.backbone.plain_states(ids, track.recall_layer)[-1], reading=False)
    provenance = Provenance.cat([pool.provenance for pool in pools])
    allowed = provenance.sources >= 0
    if sources is not None:
        allowed &= torch.isin(provenance.sources, sources)
    known, inside = provenance.chunks[allowed].unique(return_inverse=True)
    if not len(known):
        return []
    unit = torch.full((len(provenance),), -1, dtype=torch.int64)
    unit[allowed] = inside
    relevance = relevance_of_units(weights.scorers[config.recall], track, pools, normed, unit, len(known))
    best = torch.full((len(state.sources),), float("-inf"), dtype=relevance.dtype)
    best.scatter_reduce_(0, provenance.sources[allowed], relevance[inside], reduce="amax")
    order = best.argsort(descending=True, stable=True)
    return [(n, float(best[n])) for n in order.tolist() if best[n] > float("-inf")]


def relevance_of_units(
    scorer: Scorer,
    track: Track,
    pools: Sequence[LongTermMemory | Tokens],
    normed: Float[Tensor, "S D"],
    unit: Int[Tensor, " T"],
    num_units: int,
) -> Float[Tensor, " U"]:
    """Relevance of every unit of some pools, on the CPU; ``unit`` is -1 for tokens that do not count."""
    queries = scorer.queries(track.recall_layer, normed).cpu().float()
    keys: list[Tensor] = []
    units: list[Tensor] = []
    for pool, rows in zip(pools, unit.split([len(pool) for pool in pools]), strict=True):
        if isinstance(pool, LongTermMemory):
            units += pool.unit_rows(rows)
            keys += [segment.retrieval_keys for segment in pool.segments]
        else:
            units.append(rows)
            keys.append(pool.content.retrieval_keys.cpu())
    return scorer.relevance(queries, keys, units, num_units)


def _units(
    provenance: Provenance, config: MemoryConfig, sources: Int[Tensor, " n"] | None
) -> tuple[Int[Tensor, " T"], int]:
    """The unit of recall each token belongs to: its chunk, or itself; -1 where it may not be recalled."""
    if sources is None:
        if config.layout == "token":
            return torch.arange(len(provenance)), len(provenance)
        known, unit = provenance.chunks.unique(return_inverse=True)
        return unit, len(known)
    allowed = torch.isin(provenance.sources, sources)
    unit = torch.full((len(provenance),), -1, dtype=torch.int64)
    inside, count = _units(provenance.take(allowed.nonzero().flatten()), config, None)
    unit[allowed] = inside
    return unit, count


def _repeated(track: Track, budget: int) -> Recalled:
    """Published fallback: indices 0 … n-1 over and over, the last R of them; pending is ignored."""
    count = len(track.long_term)
    if not count or not budget:
        return nothing_recalled()
    repeats = -(-budget // count)
    index = torch.arange(count).repeat(repeats)[-budget:]
    index = index[track.long_term.provenance.ages[index].argsort(stable=True)].flip(0)
    return Recalled(index, track.long_term.provenance.take(index), torch.zeros(budget))
