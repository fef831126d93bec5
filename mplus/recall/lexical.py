"""Which chunks contain the question's own words: names and numbers, which states of a small model do not tell apart."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from mplus.recall.scorer import with_neighbours
from mplus.recall.units import Candidates
from mplus.words import NO_WORD

SATURATION, LENGTH = 1.2, 0.75
"""k1 and b of BM25, at their usual values."""


def lexical_match(
    words: Int32[Tensor, " S"], candidates: Candidates, counted: Candidates | None = None
) -> Float[Tensor, " U"]:
    """How many of the question's own words each unit contains: BM25 divided by that of all words, 0 to about 2.

    A word is weighted by its rarity. The score of a unit that continues another is averaged with its neighbours', as
    in late interaction.

    Args:
        words: Word numbers of the question.
        candidates: The units to score.
        counted: The sample of units in which rarity is counted; None: the candidates themselves.
    """
    asked = words[words > NO_WORD].unique()
    if not len(asked):
        return torch.zeros(len(candidates))
    times = _times_said(asked, candidates)
    seen = times if counted is None else _times_said(asked, counted)
    having = (seen > 0).sum(dim=0)
    rarity = torch.log1p((len(seen) - having + 0.5) / (having + 0.5))
    sizes = candidates.sizes.float()
    room = SATURATION * (1 - LENGTH + LENGTH * sizes / sizes.mean())
    said = times * (SATURATION + 1) / (times + room[:, None])
    said = with_neighbours(said * rarity, candidates.goes_on)
    return said.sum(dim=1) / rarity.sum()


def share_of_words(words: Int32[Tensor, " S"], candidates: Candidates) -> Float[Tensor, " U"]:
    """The share of the question's own words that each unit contains, however often."""
    asked = words[words > NO_WORD].unique()
    if not len(asked):
        return torch.zeros(len(candidates))
    return (_times_said(asked, candidates) > 0).float().mean(dim=1)


def _times_said(asked: Int32[Tensor, " W"], candidates: Candidates) -> Float[Tensor, "U W"]:
    """How often each unit contains each word; ``asked`` is in ascending order."""
    said, num_units = candidates.words, len(candidates)
    hits = torch.isin(said, asked).nonzero().flatten()
    word = torch.searchsorted(asked, said[hits])
    unit = torch.searchsorted(candidates.sizes.cumsum(0), hits, right=True)
    count = torch.bincount(unit * len(asked) + word, minlength=num_units * len(asked))
    return count.view(num_units, len(asked)).float()
