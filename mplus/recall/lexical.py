"""Which chunks contain the question's own words: names and numbers, which states of a small model do not tell apart."""

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mplus.recall.scorer import with_neighbours
from mplus.recall.units import Candidates
from mplus.words import NO_WORD, WordForms

Counts = Float[np.ndarray, "_ _"]
"""A number for each unit and word, [U, W]; sizes of units have one column."""
SATURATION, LENGTH = 1.2, 0.75
"""k1 and b of BM25, at their usual values."""
LOW_BITS = 0xFFFF
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
    usual = candidates if counted is None else counted
    times = _times_said(forms, candidates)
    seen = times if counted is None else _times_said(forms, counted)
    having = (seen > 0).sum(axis=0)
    rarity = np.log1p((len(seen) - having + 0.5) / (having + 0.5)).astype(np.float32)
    alone = torch.from_numpy(_saturated(times, _sizes(candidates), _sizes(usual)) * rarity)
    passage = _saturated(
        _passages(times, candidates),
        _passages(_sizes(candidates), candidates),
        _passages(_sizes(usual), usual),
    )
    said = with_neighbours(alone, candidates.goes_on).numpy() + passage * rarity
    return torch.from_numpy(said.sum(axis=1) / (2 * rarity.sum()))


def _sizes(candidates: Candidates) -> Counts:
    """Tokens of each unit, as a column."""
    return candidates.sizes.numpy().astype(np.float32)[:, None]


def _saturated(times: Counts, sizes: Counts, usual: Counts) -> Counts:
    """BM25's weight of words that are said so often in units of these sizes, but for their rarity."""
    room = np.float32(SATURATION) * (1 - LENGTH + np.float32(LENGTH) * sizes / usual.mean())
    return times * np.float32(SATURATION + 1) / (times + room)


def _passages(counts: Counts, candidates: Candidates) -> Counts:
    """The sum of each unit's counts and those of up to ``REACH`` units of the same text on either side."""
    goes_on, place = candidates.goes_on, np.arange(len(counts))
    if goes_on is None or not len(counts):
        return counts
    begins = np.flatnonzero(~goes_on.numpy())
    text = begins.searchsorted(place, side="right") - 1
    first, end = begins[text], np.append(begins[1:], len(counts))[text]
    upto = np.zeros((len(counts) + 1, counts.shape[1]))  # in float64, exact for any number of tokens
    counts.cumsum(axis=0, out=upto[1:])
    found = upto[np.minimum(place + REACH + 1, end)] - upto[np.maximum(place - REACH, first)]
    return found.astype(np.float32)


def share_of_words(words: Int32[Tensor, " S"], candidates: Candidates) -> Float[Tensor, " U"]:
    """The share of the question's own words, as they are, that each unit contains, however often."""
    asked = words[words > NO_WORD].unique()
    if not len(asked):
        return torch.zeros(len(candidates))
    forms = WordForms(asked, torch.arange(len(asked)), len(asked))
    return torch.from_numpy((_times_said(forms, candidates) > 0).mean(axis=1, dtype=np.float32))


def _times_said(forms: WordForms, candidates: Candidates) -> Counts:
    """How often each unit contains each word."""
    said, numbers = candidates.words.numpy(), forms.numbers.numpy()
    may_be_asked = np.zeros(LOW_BITS + 1, dtype=bool)
    may_be_asked[numbers & LOW_BITS] = True
    hits = np.flatnonzero(may_be_asked[said & LOW_BITS])  # nearly all tokens are passed over by their last bits
    place = numbers.searchsorted(said[hits]).clip(max=len(numbers) - 1)
    is_asked = numbers[place] == said[hits]
    hits, word = hits[is_asked], forms.word.numpy()[place[is_asked]]
    unit = candidates.sizes.numpy().cumsum().searchsorted(hits, side="right")
    shape = len(candidates), forms.num_words
    return np.bincount(unit * shape[1] + word, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float32)
