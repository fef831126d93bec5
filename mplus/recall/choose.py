"""Recall: which long-term and pending tokens answer this question.

candidates ──scorer.shortlist──▶ worth scoring ──scorer.scores──▶ relevance ──layout.choose──▶ chosen
                                      reading order ◀──layout.standing_last, best sentence──┘
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.by_config import layout_of
from mplus.layouts.layout import Ranked
from mplus.memory.state import MemoryState, Track
from mplus.memory.tokens import Provenance
from mplus.recall.best_sentence import is_turned, towards_best_sentence
from mplus.recall.scorer import Question, Scorer, Shortlist
from mplus.recall.units import Candidates


@dataclass(frozen=True)
class Recalled:
    """What one track brought back for one read, in the order in which it is read."""

    index: Int[Tensor, " T"]
    """Rows of [long-term ; pending]."""
    provenance: Provenance
    relevance: Float[Tensor, " T"]
    """Relevance of the unit each token was recalled with."""
    order: Int[Tensor, " P"] | None = None
    """In which order rows of [recalled ; short-term] are read, some of them twice; None: as they stand there."""


def nothing_recalled() -> Recalled:
    """What a read recalls where there is nothing."""
    return Recalled(torch.empty(0, dtype=torch.int64), Provenance.none(), torch.empty(0))


def recall(
    scorer: Scorer,
    track: Track,
    config: MemoryConfig,
    question: Question,
    sources: Int[Tensor, " n"] | None = None,
) -> Recalled:
    """Choose the long-term and pending tokens most relevant to a question (spec section 7).

    Args:
        scorer: Tells what is relevant.
        track: The pools to choose from.
        config: How many tokens, and by which layout.
        question: What is asked, by states of the track's recall layer.
        sources: Rows of the table of sources that may be recalled; None for all.
    """
    layout = layout_of(config)
    stored = (track.long_term, track.pending)
    index = layout.unscored(track.long_term.provenance.ages, config) if sources is None else None
    if index is not None:
        return Recalled(index, track.long_term.provenance.take(index), torch.zeros(len(index)))
    pools = (*stored, track.short_term) if layout.scores_short_term else stored
    candidates = Candidates.of(pools, layout, sources)
    if not len(candidates) or not config.recalled_tokens:
        return nothing_recalled()
    shortlist = scorer.shortlist(question, candidates, config)
    candidates, scores = shortlist.candidates, scorer.scores(question, shortlist, config)
    num_stored = sum(map(len, candidates.units[: len(stored)]))
    ranked = Ranked(*scores, candidates.sizes, candidates.chunks, candidates.goes_on, num_stored)
    chosen = layout.choose(ranked, config)
    last = layout.standing_last(ranked, chosen)
    recalled, order = _in_order(candidates.take(chosen), scores.relevance[chosen], _places(ranked, chosen, last))
    if is_turned(config, last, ranked.goes_on):
        text = candidates.take(torch.tensor(last))
        turned = towards_best_sentence(scorer, question, text, config)
        others, mine = order.tensor_split([len(order) - int(text.sizes.sum())])
        order = torch.cat([others, mine[turned]])
    return replace(recalled, order=order) if last else recalled


def _places(ranked: Ranked, chosen: Int[Tensor, " chosen"], last: Sequence[int]) -> Int[Tensor, " P"]:
    """Of each token that is read: 0, or the place of its unit among those that stand last, from 1 on."""
    read = ranked.read(chosen)
    place = torch.zeros(len(ranked.sizes), dtype=torch.int64)
    place[torch.tensor(last, dtype=torch.int64)] = torch.arange(1, len(last) + 1)
    return place[read].repeat_interleave(ranked.sizes[read])


def _in_order(
    chosen: Candidates, relevance: Float[Tensor, " U"], place: Int[Tensor, " P"]
) -> tuple[Recalled, Int[Tensor, " P"]]:
    """Tokens in the order in which they are read: by place, the oldest first; and ``Recalled.order`` of all.

    Args:
        chosen: Units that are recalled, in ascending order.
        relevance: Of each.
        place: Of each of their tokens, and of those that are read anyway, which stand behind them.
    """
    index, provenance = chosen.tokens(), chosen.provenance
    # Ties in age in descending order, as the published order has them.
    oldest = provenance.ages.argsort(stable=True).flip(0)
    order = torch.cat([oldest, torch.arange(len(index), len(place))])
    order = order[place[order].argsort(stable=True)]
    from_recall = order < len(index)
    taken = order[from_recall]
    order[from_recall] = torch.arange(len(taken))
    relevance = relevance.repeat_interleave(chosen.sizes)
    return Recalled(index[taken], provenance.take(taken), relevance[taken]), order


def rank_sources(
    scorer: Scorer, state: MemoryState, config: MemoryConfig, question: Question, sources: Int[Tensor, " n"] | None
) -> list[tuple[int, float]]:
    """Every source in any pool with the relevance of its best unit, most relevant first.

    Args:
        scorer: Tells what is relevant.
        state: What is remembered.
        config: How it is laid out.
        question: What is searched for, by states of the recall layer of one of its tracks.
        sources: Rows of the table of sources that count; None for all.
    """
    track, _ = state.track_of(question.layer)
    if sources is None:
        sources = torch.arange(len(state.sources))  # not what came with a checkpoint
    pools = (track.long_term, track.pending, track.short_term)
    candidates = Candidates.of(pools, layout_of(config), sources)
    if not len(candidates):
        return []
    relevance = scorer.scores(question, Shortlist(candidates), config).relevance
    best = torch.full((len(state.sources),), float("-inf"), dtype=relevance.dtype)
    best.scatter_reduce_(0, candidates.sources, relevance, reduce="amax")
    order = best.argsort(descending=True, stable=True)
    return [(n, float(best[n])) for n in order.tolist() if best[n] > float("-inf")]
