"""When an answer from memory declines: where declining is likely enough."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mplus.decline_head import DeclineHead
from mplus.inert import encode_inert

DECLINED = "I don't know."
"""How a trained read adapter declines."""
LEAST_PROBABILITY = 1e-6
"""Probabilities below it count as it."""


def declining_token(tokenizer: Any) -> int:
    """The first token of declining."""
    return encode_inert(tokenizer, DECLINED)[0]


class DeclineThreshold:
    """A logits processor: the first token is that of declining where this has a given probability, and only there.

    Declining is told in one way, a right answer in many, so which of them is likeliest says little: the likeliest
    beginning declines what was told, or answers what was not. The probability of declining tells the two apart, or a
    decline head does.

    Args:
        tokenizer: The model's.
        threshold: Probability from which on declining is taken: that of its first token, or the head's.
        forces: Take it from there on even where another token is likelier; else only bar it below.
    """

    def __init__(self, tokenizer: Any, threshold: float, *, forces: bool = True) -> None:
        self._threshold, self._forces = threshold, forces
        self._token = declining_token(tokenizer)

    def __call__(self, token_ids: Sequence[int], scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The scores of the next token, given those that were chosen."""
        if token_ids:
            return scores
        barred = scores.clone()
        barred[self._token] = float("-inf")
        taken = _only(self._token, scores) if self._forces else scores
        return taken.where(self.is_likely(scores), barred)  # on the device: the host does not wait for the probability

    def is_likely(self, scores: Float[Tensor, " V"]) -> Bool[Tensor, ""]:
        """Whether declining has its probability, given the scores of the first token."""
        return self._own_probability(scores) >= self._threshold

    def _own_probability(self, scores: Float[Tensor, " V"]) -> Float[Tensor, ""]:
        return scores.float().softmax(dim=-1)[self._token]


class HeadThreshold(DeclineThreshold):
    """A logits processor that declines where the decline head finds that memory does not answer.

    Args:
        tokenizer: The model's.
        threshold: Probability of the head from which on an answer declines.
        head: The head; what it found of this prompt is in ``log_odds``.
        stops: Tokens that end an answer.
        forces: Decline from there on even where the model would say something else.
    """

    def __init__(
        self, tokenizer: Any, threshold: float, head: DeclineHead, stops: Collection[int], *, forces: bool = True
    ) -> None:
        super().__init__(tokenizer, threshold, forces=forces)
        self._head, self._has_learnt = head, bool(head.own)
        self._sentence = [*encode_inert(tokenizer, DECLINED), *sorted(stops)[:1]]
        self._found: Bool[Tensor, ""] | None = None
        self.log_odds: Float[Tensor, ""] | None = None
        """What the head found when the prompt was read."""

    def __call__(self, token_ids: Sequence[int], scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """The scores of the next token, given those that were chosen.

        A model may not know how to go on after the first token of declining, so that the sentence is forced to its end.
        """
        if not token_ids:
            self._found = self.is_likely(scores)
            if self._head.read == "latent" or self._has_learnt:
                return super().__call__(token_ids, scores)
            # A model that was not taught to decline: the token may begin an answer of its own.
            return _only(self._token, scores).where(self._found, scores) if self._forces else scores
        place = len(token_ids)
        goes_on = self._forces and place < len(self._sentence) and list(token_ids) == self._sentence[:place]
        return _only(self._sentence[place], scores) if goes_on and self.declines else scores

    @property
    def declines(self) -> bool:
        """Whether the head found that memory does not answer; its first token has been chosen."""
        return self._found is not None and bool(self._found)

    def is_likely(self, scores: Float[Tensor, " V"]) -> Bool[Tensor, ""]:
        """Whether the head's probability, with the model's own, is that of declining."""
        assert self.log_odds is not None, "the prompt was read"
        own = self._own_probability(scores).logit(eps=LEAST_PROBABILITY)
        found = self.log_odds.to(scores.device) + self._head.own.to(scores.device) * own
        return found.sigmoid() >= self._threshold


def _only(token: int, scores: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
    """Scores of one token alone."""
    alone = torch.full_like(scores, float("-inf"))
    alone[token] = scores[token]
    return alone
