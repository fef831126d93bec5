"""When an answer from memory may decline: only where declining is likely enough."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mplus.inert import encode_inert

DECLINED = "I don't know."
"""How a trained read adapter declines."""


def declining_token(tokenizer: Any) -> int:
    """The first token of declining."""
    return encode_inert(tokenizer, DECLINED)[0]


class DeclineThreshold:
    """A logits processor: the first token is that of declining only where this has a given probability.

    The right answer to a question can be told in many ways, and the likeliest of them may be less likely than
    declining, which is told in one. So the likeliest token declines too often.

    Args:
        tokenizer: The model's.
        threshold: Least probability of the first token of declining, with which it may be taken.
    """

    def __init__(self, tokenizer: Any, threshold: float) -> None:
        self._threshold = threshold
        self._token = declining_token(tokenizer)

    def __call__(self, token_ids: Sequence[int], scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The scores of the next token, given those that were chosen."""
        if token_ids:
            return scores
        is_likely = scores.float().softmax(dim=-1)[self._token] >= self._threshold
        barred = scores.clone()
        barred[self._token] = float("-inf")
        return scores.where(is_likely, barred)  # on the device: the host does not wait for the probability
