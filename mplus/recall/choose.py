"""Recall: chooses the long-term and pending tokens that answer a question.

candidates ──scorer.shortlist──▶ worth scoring ──scorer.scores──▶ relevance ──layout.choose──▶ chosen
                                      reading order ◀──layout.standing_last, best sentence──┘
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.by_config import layout_of
from mplus.layouts.layout import Ranked
from mplus.memory.state import MemoryState, Track
from mplus.memory.tokens import Provenance
from mplus.recall.best_sentence import is_turned, towards_best_sentence
from mplus.recall.gate import NOTHING, BestUnit
from mplus.recall.lexical import share_of_words
from mplus.recall.scorer import Question, Scorer, Scores, Shortlist
from mplus.recall.units import Candidates


@dataclass(frozen=True)
class Recalled:
    """The tokens that one track recalled for one read, in reading order."""

    index: Int[Tensor, " T"]
    """Rows of [long-term ; pending]."""
    provenance: Provenance
    relevance: Float[Tensor, " T"]
    """Relevance of the unit that each token was recalled with."""
    order: Int[Tensor, " P"] | None = None
    """Rows of [recalled ; short-term] in reading order, some of them twice; None: all rows in their present order."""
    recent_relevance: Float[Tensor, " R"] | None = None
    """Relevance of the unit of each token of short-term memory that is read beside them; None: they were not scored."""
    is_recent: Bool[Tensor, " T"] | None = None
    """Whether each token is one of short-term memory, where it is read as text; None: none is."""


def nothing_recalled() -> Recalled:
    """The result of recall from an empty memory."""
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
        scorer: Scores the units.
        track: The pools to choose from.
        config: Number of tokens to recall, and the layout.
        question: The question, with states of the track's recall layer.
        sources: Rows of the table of sources that may be recalled; None for all.
    """
    layout = layout_of(config)
    stored = (track.long_term, track.pending)
    index = layout.unscored(track.long_term.provenance.ages, config) if sources is None else None
    if index is not None:
        return Recalled(index, track.long_term.provenance.take(index), torch.zeros(len(index)))
    pools = (*stored, track.short_term) if layout.scores_short_term else stored
    candidates = Candidates.of(pools, layout, sources, track.vectors)
    if not len(candidates) or not config.recalled_tokens:
        return nothing_recalled()
    shortlist = scorer.shortlist(question, candidates, config)
    candidates, scores = shortlist.candidates, scorer.scores(question, shortlist, config)
    num_stored = sum(map(len, candidates.units[: len(stored)]))
    ranked = Ranked(
        scores.relevance, scores.average, candidates.sizes, candidates.chunks, candidates.goes_on, num_stored
    )
    chosen = layout.choose(ranked, config)
    last = layout.standing_last(ranked, chosen)
    recalled, order = _in_order(candidates.take(chosen), scores.relevance[chosen], _places(ranked, chosen, last))
    if is_turned(config, last, ranked.goes_on):
        text = candidates.take(torch.tensor(last))
        turned = towards_best_sentence(scorer, question, text, config)
        others, mine = order.tensor_split([len(order) - int(text.sizes.sum())])
        order = torch.cat([others, mine[turned]])
    recent = scores.relevance[num_stored:].repeat_interleave(candidates.sizes[num_stored:])
    return replace(recalled, order=order if last else None, recent_relevance=recent)


def best_unit(
    scorer: Scorer, track: Track, config: MemoryConfig, question: Question, sources: Int[Tensor, " n"] | None = None
) -> BestUnit:
    """How well the best unit of all pools matches a question."""
    candidates = Candidates.of((track.long_term, track.pending, track.short_term), layout_of(config), sources)
    if not len(candidates):
        return NOTHING
    shortlist = scorer.shortlist(question, candidates, config)
    return best_of(scorer.scores(question, shortlist, config), question, shortlist.candidates, len(candidates))


def best_of(scores: Scores, question: Question, scored: Candidates, num_units: int) -> BestUnit:
    """How well the best of the scored units matches, of which there are so many in all."""
    best = float(scores.relevance.max())
    shared = 0.0 if question.words is None else float(share_of_words(question.words, scored).max())
    return BestUnit(best - scores.average, best + scores.level, shared, num_units)


def _places(ranked: Ranked, chosen: Int[Tensor, " chosen"], last: Sequence[int]) -> Int[Tensor, " P"]:
    """For each token that is read, its unit's place among those next to the prompt, from 1 on; 0 for all others."""
    read = ranked.read(chosen).numpy()
    place = np.zeros(len(ranked.sizes), dtype=np.int64)
    place[np.asarray(last, dtype=np.int64)] = np.arange(1, len(last) + 1)
    return torch.from_numpy(place[read].repeat(ranked.sizes.numpy()[read]))


def _in_order(
    chosen: Candidates, relevance: Float[Tensor, " U"], place: Int[Tensor, " P"]
) -> tuple[Recalled, Int[Tensor, " P"]]:
    """Recalled tokens in reading order (by place, then the oldest first), and ``Recalled.order`` of all tokens.

    Args:
        chosen: Recalled units, in ascending order.
        relevance: Relevance of each unit.
        place: Place of each of their tokens, followed by those of the tokens that are read in any case.
    """
    index, provenance = chosen.tokens(), chosen.provenance
    # Tokens of equal age are in descending order, as in the published model.
    oldest = provenance.ages.numpy().argsort(kind="stable")[::-1]
    order = np.concatenate([oldest, np.arange(len(index), len(place))])
    order = order[place.numpy()[order].argsort(kind="stable")]
    from_recall = order < len(index)
    taken = torch.from_numpy(order[from_recall])
    order[from_recall] = np.arange(len(taken))
    relevance = relevance.repeat_interleave(chosen.sizes)
    return Recalled(index[taken], provenance.take(taken), relevance[taken]), torch.from_numpy(order)


class RankedSource(NamedTuple):
    """A source that was scored.

    Attributes:
        number: Its row of the table of sources.
        relevance: Relevance of its best unit.
        match: The same above nothing, rather than above a usual unit, so that it does not depend on what else is held.
    """

    number: int
    relevance: float
    match: float


def rank_sources(
    scorer: Scorer, state: MemoryState, config: MemoryConfig, question: Question, sources: Int[Tensor, " n"] | None
) -> list[RankedSource]:
    """Every source in any pool with the relevance of its best unit, most relevant first.

    Args:
        scorer: Scores the units.
        state: The memory's state.
        config: The memory's layout.
        question: The query, with states of the recall layer of one track.
        sources: Rows of the table of sources to search; None for all.
    """
    track, _ = state.track_of(question.layer)
    if sources is None:
        sources = torch.arange(len(state.sources))  # tokens that came with a checkpoint have no source
    pools = (track.long_term, track.pending, track.short_term)
    candidates = Candidates.of(pools, layout_of(config), sources, track.vectors)
    if not len(candidates):
        return []
    scores = scorer.scores(question, Shortlist(candidates), config)
    relevance = scores.relevance
    best = torch.full((len(state.sources),), float("-inf"), dtype=relevance.dtype)
    best.scatter_reduce_(0, candidates.sources, relevance, reduce="amax")
    order = best.argsort(descending=True, stable=True)
    found = [(n, float(best[n])) for n in order.tolist() if best[n] > float("-inf")]
    return [RankedSource(n, mine, mine + scores.level) for n, mine in found]
