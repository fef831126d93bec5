"""Which chunks contain the question's own words: names and numbers, which states of a small model do not tell apart."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mplus.recall.scorer import GoesOn, with_neighbours
from mplus.recall.units import Candidates
from mplus.words import NO_WORD, WordForms

SATURATION, LENGTH = 1.2, 0.75
"""k1 and b of BM25, at their usual values."""
REACH = 3
"""So many chunks on either side of a chunk are the passage around it."""


def lexical_match(forms: WordForms, candidates: Candidates, counted: Candidates | None = None) -> Float[Tensor, " U"]:
    """How many of the question's own words each unit contains: BM25 divided by that of all words, 0 to about 2.

    A word is weighted by its rarity, and counts in any of its forms. Half of the score is the unit's own, which is
    averaged with its neighbours' where it continues another, as in late interaction; half is that of the passage
    around it, since what a question names may stand sentences before what answers it.

    Args:
        forms: The question's words.
        candidates: The units to score.
        counted: The sample of units in which rarity is counted; None: the candidates themselves.
    """
    if not forms.num_words:
        return torch.zeros(len(candidates))
    times = _times_said(forms, candidates)
    seen = times if counted is None else _times_said(forms, counted)
    having = (seen > 0).sum(dim=0)
    rarity = torch.log1p((len(seen) - having + 0.5) / (having + 0.5))
    sizes, goes_on = candidates.sizes.float(), candidates.goes_on
    said = with_neighbours(_saturated(times, sizes) * rarity, goes_on)
    around, length = _passages(times, goes_on), _passages(sizes[:, None], goes_on)[:, 0]
    passage = _saturated(around, length) * rarity
    return (said + passage).sum(dim=1) / (2 * rarity.sum())


def _saturated(times: Float[Tensor, "U W"], sizes: Float[Tensor, " U"]) -> Float[Tensor, "U W"]:
    """BM25's weight of a word that is said so often in units of these sizes, but for its rarity."""
    room = SATURATION * (1 - LENGTH + LENGTH * sizes / sizes.mean())
    return times * (SATURATION + 1) / (times + room[:, None])


def _passages(counts: Float[Tensor, "U W"], goes_on: GoesOn | None) -> Float[Tensor, "U W"]:
    """The sum of each unit's counts and those of up to ``REACH`` units of the same text on either side."""
    if goes_on is None or not len(counts):
        return counts
    place = torch.arange(len(counts))
    first = torch.where(goes_on, 0, place).cummax(0).values
    ends = torch.cat([~goes_on[1:], goes_on.new_ones(1)])
    last = torch.where(ends, place, len(counts)).flip(0).cummin(0).values.flip(0)
    upto = torch.zeros(len(counts) + 1, counts.shape[1], dtype=torch.float64)  # exact beyond 16 million tokens
    torch.cumsum(counts, 0, out=upto[1:])
    return (upto[torch.minimum(place + REACH, last) + 1] - upto[torch.maximum(place - REACH, first)]).float()


def share_of_words(words: Int32[Tensor, " S"], candidates: Candidates) -> Float[Tensor, " U"]:
    """The share of the question's own words, as they are, that each unit contains, however often."""
    asked = words[words > NO_WORD].unique()
    if not len(asked):
        return torch.zeros(len(candidates))
    forms = WordForms(asked, torch.arange(len(asked)), len(asked))
    return (_times_said(forms, candidates) > 0).float().mean(dim=1)


def _times_said(forms: WordForms, candidates: Candidates) -> Float[Tensor, "U W"]:
    """How often each unit contains each word."""
    said, num_units = candidates.words, len(candidates)
    hits = torch.isin(said, forms.numbers).nonzero().flatten()
    word = forms.word[torch.searchsorted(forms.numbers, said[hits])]
    unit = torch.searchsorted(candidates.sizes.cumsum(0), hits, right=True)
    count = torch.bincount(unit * forms.num_words + word, minlength=num_units * forms.num_words)
    return count.view(num_units, forms.num_words).float()
