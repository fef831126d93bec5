"""Logits processors: what OpenAI's clients may ask of tokens beside the settings of an answer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch


class TokenNote(NamedTuple):
    """What is known of a token of an answer.

    Attributes:
        token: Its id.
        log_probability: What the model gave it.
        likeliest: The likeliest tokens in its place, best first, with their log probabilities.
    """

    token: int
    log_probability: float
    likeliest: tuple[tuple[int, float], ...]


class NoteTokens:
    """Notes the log probability of each token, as the model gave it before sampling settings or a form.

    Args:
        likeliest: How many of the likeliest tokens in its place are noted too.
    """

    def __init__(self, likeliest: int) -> None:
        self._likeliest = likeliest
        self._last: tuple[torch.Tensor, tuple[tuple[int, float], ...]] | None = None
        self._notes: list[TokenNote] = []

    def __call__(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Note one step; the logits [vocabulary] stay as they are. Without tokens an answer begins, maybe anew."""
        if not token_ids:
            self._last, self._notes = None, []
        self._settle(token_ids)
        likelihoods = logits.float().log_softmax(dim=-1)
        best = likelihoods.topk(min(self._likeliest, len(likelihoods))) if self._likeliest else None
        named = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        self._last = (likelihoods, named)
        return logits

    def notes(self, token_ids: Sequence[int]) -> list[TokenNote]:
        """What was noted of the tokens of a whole answer."""
        self._settle(token_ids)
        return self._notes[: len(token_ids)]

    def _settle(self, token_ids: Sequence[int]) -> None:
        # Only of the last step are all likelihoods kept: which token was taken is known with the next one.
        if self._last is not None and len(token_ids) > len(self._notes):
            token, (likelihoods, likeliest) = token_ids[len(self._notes)], self._last
            self._notes.append(TokenNote(token, float(likelihoods[token]), likeliest))


class Penalties:
    """Makes tokens less likely that the answer has already, and others more or less likely.

    Args:
        frequency: Taken from a token's logit for each time that it is in the answer.
        presence: Taken once, if it is there.
        bias: Added to the logits of tokens, by id.
    """

    def __init__(self, frequency: float, presence: float, bias: Mapping[int, float]) -> None:
        self._frequency, self._presence, self._bias = frequency, presence, bias

    def __call__(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits [vocabulary] with all of them taken or added."""
        counts = torch.bincount(torch.tensor(list(token_ids), dtype=torch.int64), minlength=len(logits))
        taken = self._frequency * counts + self._presence * (counts > 0)
        logits = logits - taken.to(logits)
        for token, bias in self._bias.items():
            if not 0 <= token < len(logits):
                raise ValueError(f"logit_bias: there is no token {token}; the vocabulary has {len(logits):,}.")
            logits[token] += bias
        return logits


def token_entry(tokenizer: Any, token: int, log_probability: float) -> dict[str, Any]:
    """A token and its log probability as OpenAI's clients read them."""
    text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # A token may be a part of a character; its bytes are then not to be had from its text.
    return {"token": text, "logprob": log_probability, "bytes": None if "�" in text else list(text.encode())}
