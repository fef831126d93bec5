"""Recall: which long-term and pending tokens answer this question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.memory.state import MemoryState, Track
from mplus.memory.tokens import Provenance
from mplus.recall.best_sentence import is_turned, towards_best_sentence
from mplus.recall.lexical import lexical_match
from mplus.recall.scorers import LateInteraction, Scorer, choose_units, normalised
from mplus.recall.units import Candidates, Scored, Units
from mplus.weights import Weights

SHORTLIST = 512
"""Chunks that the coarse index finds and that are then scored exactly."""
QUERY_TOKENS = 256
"""Most tokens of a question that recall looks at: its last ones."""

RIVALS = 3
"""So many chunks after the most relevant one may be about the same thing, changed later."""
AS_RELEVANT = 0.75
"""One with this share, at least, of the most relevant one's relevance (above an average chunk's) is about the same."""


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


class Scores(NamedTuple):
    """How every candidate does."""

    relevance: Float[Tensor, " U"]
    average: float
    """What one of all there is has on average."""


def nothing_recalled() -> Recalled:
    """What a read recalls where there is nothing."""
    return Recalled(torch.empty(0, dtype=torch.int64), Provenance.none(), torch.empty(0))


def recall(
    weights: Weights,
    track: Track,
    config: MemoryConfig,
    normed: Float[Tensor, "S D"],
    sources: Int[Tensor, " n"] | None = None,
    words: Int32[Tensor, " S"] | None = None,
) -> Recalled:
    """Choose the long-term and pending tokens most relevant to a question (spec section 7).

    Args:
        weights: For the scorer.
        track: The pools to choose from.
        config: How many tokens, and whether whole chunks.
        normed: The question's rows, normed by the track's recall layer.
        sources: Rows of the table of sources that may be recalled; None for all.
        words: The question's; None: it is compared by states alone.
    """
    budget = config.recalled_tokens
    if sources is None and config.repeat_short_recall and len(track.long_term) < budget:
        return _repeated(track, budget)
    candidates = _candidates(track, config, sources)
    if not len(candidates) or not budget:
        return nothing_recalled()
    scorer = weights.scorers[config.recall]
    if isinstance(scorer, LateInteraction) and config.layout == "chunk" and _many(candidates, config):
        candidates, scores = _shortlisted(scorer, track, config, candidates, normed, words)
    else:
        scores = scores_of(scorer, track.recall_layer, config, candidates, normed, words)
    chosen = _chosen(candidates, scores, config)
    index = candidates.take(chosen).tokens()
    provenance = _taken(track, index)
    relevance = scores.relevance[chosen].repeat_interleave(candidates.sizes[chosen])
    # Oldest first; ties in age in descending index order, as the published order has them.
    oldest = provenance.ages.argsort(stable=True).flip(0)
    recalled = Recalled(index[oldest], provenance.take(oldest), relevance[oldest])
    if config.layout == "token":
        return recalled
    last = _standing_last(candidates, scores, chosen)
    place = _place(candidates, chosen, last)
    laid_out = _laid_out(recalled, torch.cat([place[oldest], place[len(oldest) :]]))
    if not is_turned(config, last, candidates.goes_on):
        return laid_out
    text = candidates.take(torch.tensor(last))
    turned = towards_best_sentence(scorer, track.recall_layer, config, text, normed)
    assert laid_out.order is not None
    others, mine = laid_out.order.tensor_split([len(laid_out.order) - int(text.sizes.sum())])
    return replace(laid_out, order=torch.cat([others, mine[turned]]))


def _chosen(candidates: Candidates, scores: Scores, config: MemoryConfig) -> Int[Tensor, " chosen"]:
    """The long-term and pending units that are recalled, in ascending order."""
    relevance, sizes, stored = scores.relevance, candidates.sizes, sum(map(len, candidates.units[:2]))
    best_first = choose_units(relevance[:stored], sizes[:stored], config.recalled_tokens)
    if config.layout == "chunk" and config.relevance_cutoff:
        best_first = _as_relevant(best_first, relevance - scores.average, config.relevance_cutoff)
    if config.layout == "chunk" and config.recalled_neighbours:
        near = neighbours(int(relevance.argmax()), candidates.goes_on, config.recalled_neighbours)
        brought = [unit for unit in near if unit < stored]
        best_first = first_fitting([*brought, *best_first.tolist()], sizes, config.recalled_tokens)
    return best_first.sort().values


def _as_relevant(
    best_first: Int[Tensor, " chosen"], relevance: Float[Tensor, " U"], share: float
) -> Int[Tensor, " kept"]:
    """Those that have a share of the best one's relevance above an average unit's; all where the best is no better."""
    mine = relevance[best_first]
    return best_first[mine >= share * mine[0]] if len(mine) and mine[0] > 0 else best_first


def _read_units(candidates: Candidates, chosen: Int[Tensor, " chosen"]) -> Int[Tensor, " U"]:
    """What is recalled, and short-term memory."""
    return torch.cat([chosen, torch.arange(sum(map(len, candidates.units[:2])), len(candidates))])


def _standing_last(candidates: Candidates, scores: Scores, chosen: Int[Tensor, " chosen"]) -> list[int]:
    """The units that stand nearest to the prompt, in order."""
    read = _read_units(candidates, chosen)
    best_first = read[scores.relevance[read].argsort(descending=True, stable=True)].tolist()
    chunks = torch.cat([pool.provenance.chunks[units.starts] for pool, units in zip(*candidates, strict=True)])
    written = dict(zip(read.tolist(), chunks[read].tolist(), strict=True))
    return standing_last(best_first, written, scores.relevance - scores.average, candidates.goes_on)


def _place(candidates: Candidates, chosen: Int[Tensor, " chosen"], last: Sequence[int]) -> Int[Tensor, " P"]:
    """Of each token of [chosen ; short-term]: 0, or the place of its chunk among those that stand last, from 1 on."""
    read = _read_units(candidates, chosen)
    place = torch.zeros(len(candidates), dtype=torch.int64)
    place[torch.tensor(last, dtype=torch.int64)] = torch.arange(1, len(last) + 1)
    return place[read].repeat_interleave(candidates.sizes[read])


def _laid_out(recalled: Recalled, place: Int[Tensor, " P"]) -> Recalled:
    """What was recalled, in the order in which it and short-term memory are read: by place, else as it stands."""
    order = place.argsort(stable=True)
    from_recall = order < len(recalled.index)
    taken = order[from_recall]
    order[from_recall] = torch.arange(len(taken))
    return Recalled(recalled.index[taken], recalled.provenance.take(taken), recalled.relevance[taken], order)


def standing_last(
    best_first: Sequence[int],
    written: Mapping[int, float],
    relevance: Float[Tensor, " U"],
    goes_on: Bool[Tensor, " U"],
) -> list[int]:
    """The chunks that stand nearest to the prompt, in order: where a small reader finds them best.

    The most relevant one with those that are read next to it in its text. Where there are none: it alone; or,
    behind it, the newest of the next best that was written later and is about the same, as a change is.

    Args:
        best_first: Chunks that are read, the most relevant first.
        written: When each was written, as any rising number.
        relevance: Of every chunk, above an average one's.
        goes_on: Which chunks go on where the one before them ends.
    """
    if not best_first:
        return []
    best, *others = best_first
    read = set(best_first)
    first = last = best
    while goes_on[first] and first - 1 in read:
        first -= 1
    while last + 1 in read and goes_on[last + 1]:
        last += 1
    if first < last:
        return list(range(first, last + 1))
    as_relevant = AS_RELEVANT * relevance[best]
    newer = [u for u in others[:RIVALS] if written[u] > written[best] and relevance[u] >= as_relevant]
    return [best, *sorted(newer, key=lambda unit: written[unit])[-1:]]


def neighbours(best: int, goes_on: Bool[Tensor, " U"], reach: int) -> list[int]:
    """A chunk and up to ``reach`` chunks of the same text on either side of it, the nearest first.

    Args:
        best: Place of the chunk.
        goes_on: Which chunks go on where the one before them ends.
        reach: Most chunks on one side.
    """
    before, after = [best], [best]
    for _ in range(reach):
        if before[-1] > 0 and goes_on[before[-1]]:
            before.append(before[-1] - 1)
        if after[-1] + 1 < len(goes_on) and goes_on[after[-1] + 1]:
            after.append(after[-1] + 1)
    return sorted({*before, *after}, key=lambda unit: (abs(unit - best), unit))


def first_fitting(units: Sequence[int], sizes: Int[Tensor, " U"], budget: int) -> Int[Tensor, " chosen"]:
    """Units in the given order, each once, until one does not fit into the budget."""
    order = torch.tensor(list(dict.fromkeys(units)), dtype=torch.int64)
    return order[sizes[order].cumsum(0) <= budget]


def _many(candidates: Candidates, config: MemoryConfig) -> bool:
    long_term = candidates.units[0]
    return int(long_term.sizes.sum()) > config.exact_recall_tokens


def _shortlisted(
    scorer: LateInteraction,
    track: Track,
    config: MemoryConfig,
    candidates: Candidates,
    normed: Float[Tensor, "S D"],
    words: Int32[Tensor, " S"] | None,
) -> tuple[Candidates, Scores]:
    """The candidates worth scoring, and their exact scores.

    Those that the coarse index finds nearest, with their neighbours, those it does not hold yet, and what
    is pending. What relevance is counted from, the mean over all, is taken over a sample of them.
    """
    index, every = track.long_term.coarse_index(), candidates.units[0]
    serials = track.long_term.provenance.chunks[every.starts]
    queries = scorer.queries(track.recall_layer, normed).to(normed.device).float()
    near = index.nearest(queries.cpu(), normalised(None, queries).cpu(), SHORTLIST, serials)
    # A chunk counts with its neighbours, and these with theirs.
    around = torch.searchsorted(serials, near)[:, None] + torch.arange(-2, 3)
    newer = torch.arange(int(torch.searchsorted(serials, index.chunks[-1], right=True)), len(candidates))
    shortlist = candidates.take(torch.cat([around.flatten().clamp(0, len(serials) - 1), newer]).unique())
    runs = torch.arange(0, len(candidates), max(8 * len(candidates) // SHORTLIST, 8))[:, None] + torch.arange(8)
    sample = candidates.take(runs.flatten().clamp(max=len(candidates) - 1).unique())

    def match(some: Candidates) -> Float[Tensor, " u"]:
        goes_on = some.goes_on.to(normed.device)
        return scorer.match(queries, some.blocks(normed.device), len(some), goes_on=goes_on).cpu()

    usual = match(sample)
    relevance = match(shortlist) - usual.mean()
    if words is None or not config.lexical_weight:
        return shortlist, Scores(relevance, 0.0)
    unit = config.lexical_weight * spread(usual)
    said = lexical_match(words, shortlist, sample)
    return shortlist, Scores(relevance + unit * said, float(unit * lexical_match(words, sample).mean()))


def _candidates(track: Track, config: MemoryConfig, sources: Int[Tensor, " n"] | None) -> Candidates:
    """Every unit that may be recalled, of long-term memory and of what is pending; then chunks that are read anyway."""
    pools: tuple[Scored, ...] = (track.long_term, track.pending)
    units = (track.long_term.units(config.layout), track.pending.units(config.layout))
    if config.layout == "chunk":
        pools = (*pools, track.short_term)
        units = (*units, Units.of(track.short_term.provenance, config.layout))
    if sources is not None:
        units = tuple(known.among(pool.provenance, sources) for known, pool in zip(units, pools, strict=True))
    return Candidates(pools, units)


def _taken(track: Track, index: Int[Tensor, " T"]) -> Provenance:
    """Provenance of some rows of [long-term ; pending], in ascending order."""
    long = len(track.long_term)
    inside = index < long
    return Provenance.cat(
        [track.long_term.provenance.take(index[inside]), track.pending.provenance.take(index[~inside] - long)]
    )


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
    units = [Units.of(pool.provenance, config.layout) for pool in pools]
    if sources is None:
        sources = torch.arange(len(state.sources))  # not what came with a checkpoint
    units = [known.among(pool.provenance, sources) for known, pool in zip(units, pools, strict=True)]
    candidates = Candidates(tuple(pools), tuple(units))
    if not len(candidates):
        return []
    scorer = weights.scorers[config.recall]
    words = weights.words_of(ids.tolist())
    relevance = scores_of(scorer, track.recall_layer, config, candidates, normed, words).relevance
    source = torch.cat([pool.provenance.sources[known.starts] for pool, known in zip(pools, units, strict=True)])
    best = torch.full((len(state.sources),), float("-inf"), dtype=relevance.dtype)
    best.scatter_reduce_(0, source, relevance, reduce="amax")
    order = best.argsort(descending=True, stable=True)
    return [(n, float(best[n])) for n in order.tolist() if best[n] > float("-inf")]


@torch.no_grad()
def scores_of(
    scorer: Scorer,
    recall_layer: int,
    config: MemoryConfig,
    candidates: Candidates,
    normed: Float[Tensor, "S D"],
    words: Int32[Tensor, " S"] | None = None,
) -> Scores:
    """Scores of every candidate: worked out where the layer computes, given on the CPU."""
    queries = scorer.queries(recall_layer, normed).to(normed.device).float()
    goes_on = candidates.goes_on.to(normed.device) if config.layout == "chunk" else None
    blocks = candidates.blocks(normed.device)
    relevance = scorer.relevance(queries, blocks, len(candidates), goes_on=goes_on).cpu()
    compares_words = isinstance(scorer, LateInteraction) and config.layout == "chunk" and config.lexical_weight
    if words is not None and compares_words:
        relevance = relevance + config.lexical_weight * spread(relevance) * lexical_match(words, candidates)
    return Scores(relevance, float(relevance.mean()))


def spread(relevance: Float[Tensor, " U"]) -> float:
    """Standard deviation of late interaction over chunks: the unit in which shared words count beside it."""
    return float(relevance.std(correction=0))


def _repeated(track: Track, budget: int) -> Recalled:
    """Published fallback: indices 0 … n-1 over and over, the last R of them; pending is ignored."""
    count = len(track.long_term)
    if not count or not budget:
        return nothing_recalled()
    repeats = -(-budget // count)
    index = torch.arange(count).repeat(repeats)[-budget:]
    index = index[track.long_term.provenance.ages[index].argsort(stable=True)].flip(0)
    return Recalled(index, track.long_term.provenance.take(index), torch.zeros(budget))
