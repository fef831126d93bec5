"""Yes and no: what a reader leant to in training is taken back."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mplus.inert import encode_inert

PAIRS = (("Yes", "No"), ("yes", "no"))
"""How an answer to a yes/no question begins."""


class YesOdds:
    """A logits processor: shifts the first token between yes and no, by the odds that training leant to.

    A reader that learnt from more questions answered no than yes begins with "No" where the text says otherwise. Where
    classes are as frequent as each other, the right odds are those of the reader times the odds of no to yes among what
    it learnt from (prior correction; Saerens et al., 2002). The two share the probability that they have together, so
    that nothing else changes.

    Args:
        tokenizer: The model's.
        odds: What the odds of yes to no are multiplied with, above 0.
    """

    def __init__(self, tokenizer: Any, odds: float) -> None:
        self._shift = math.log(odds)
        first = [tuple(encode_inert(tokenizer, text)[0] for text in pair) for pair in PAIRS]
        self._pairs = [pair for pair in dict.fromkeys(first) if pair[0] != pair[1]]

    def __call__(self, token_ids: Sequence[int], scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The scores of the next token, given those that were chosen."""
        if token_ids:
            return scores
        shifted = scores.clone()
        for yes, no in self._pairs:
            both = torch.logaddexp(scores[yes], scores[no])
            odds = scores[yes] - scores[no] + self._shift
            shifted[yes], shifted[no] = both + functional.logsigmoid(odds), both + functional.logsigmoid(-odds)
        # Where neither is possible there is nothing to share.
        return shifted.where(shifted.isnan().logical_not(), scores)
