"""When an answer from memory declines: where declining is likely enough."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.inert import encode_inert

DECLINED = "I don't know."
"""How a trained read adapter declines."""


def declining_token(tokenizer: Any) -> int:
    """The first token of declining."""
    return encode_inert(tokenizer, DECLINED)[0]


class DeclineThreshold:
    """A logits processor: the first token is that of declining where this has a given probability, and only there.

    Declining is told in one way, a right answer in many, so which of them is likeliest says little: the likeliest
    beginning declines what was told, or answers what was not. The probability of declining tells the two apart.

    Args:
        tokenizer: The model's.
        threshold: Probability of the first token of declining from which on it is taken.
        forces: Take it from there on even where another token is likelier; else only bar it below.
    """

    def __init__(self, tokenizer: Any, threshold: float, *, forces: bool = True) -> None:
        self._threshold, self._forces = threshold, forces
        self._token = declining_token(tokenizer)

    def __call__(self, token_ids: Sequence[int], scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The scores of the next token, given those that were chosen."""
        if token_ids:
            return scores
        is_likely = scores.float().softmax(dim=-1)[self._token] >= self._threshold
        barred = scores.clone()
        barred[self._token] = float("-inf")
        taken = scores
        if self._forces:
            taken = torch.full_like(scores, float("-inf"))
            taken[self._token] = scores[self._token]
        return taken.where(is_likely, barred)  # on the device: the host does not wait for the probability
