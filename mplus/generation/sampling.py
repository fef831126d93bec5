"""Chooses tokens from logits, and turns tokens into text as soon as it is certain."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor

from mplus.errors import UnknownNameError
from mplus.given import NO_SWITCH, Whole
from mplus.memory.transfer import moved

LEAST_TEMPERATURE = 1e-5
"""Below it the likeliest token is certain to far more digits than float32 has, and logits over it overflow soon."""

GateChoice = Literal["auto", "always", "never"]
"""Whether memory is read: as the model's gate decides, or always, or never."""


class SamplingOptions(TypedDict, total=False):
    """The fields of ``SamplingParams`` as keyword arguments; None or a missing argument stands for the default."""

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    seed: int | None
    timeout: float | None
    abstain_below: float | None
    abstain_reply: str | None
    decline_threshold: float | None
    gate: GateChoice | None


class SamplingParams(BaseModel):
    """How an answer is generated; frozen, checked when built. None stands for a field's default.

    Raises:
        ValueError: A setting is unknown, out of range or not finite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: Annotated[int, Field(ge=1, strict=True), NO_SWITCH] = 256
    """Most tokens of an answer."""
    temperature: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), NO_SWITCH] = 0.0
    """0, or less than 0.00001, always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NO_SWITCH] = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=0, strict=True), NO_SWITCH] = 0
    """Sample from this many likeliest tokens; 0 from all."""
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False), NO_SWITCH] = 1.0
    """Above 1 makes tokens that occur in the prompt or answer less likely; what memory puts into a prompt is spared."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it."""
    stop_token_ids: tuple[Whole, ...] = ()
    """Tokens that end the answer, in addition to the model's own end token."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64), NO_SWITCH] | None = None
    """The same seed gives the same answer, regardless of other requests in the batch."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False), NO_SWITCH] | None = None
    """Seconds after which an answer is cut off, as if cancelled; None: never."""

    abstain_below: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_SWITCH] | None = None
    """Reply with ``abstain_reply`` if the confidence in an answer is below this; None: never."""
    abstain_reply: str = "I don't know."
    """The reply that is given instead of the answer."""
    decline_threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NO_SWITCH] | None = None
    """Probability of declining ("I don't know.") from which on an answer from memory to a chat declines, whatever else
    is likelier; below it, it does not. 1 hardly ever declines, 0 has no threshold: whenever that is likeliest. Beside
    tools nothing is declined that is not likeliest. None: the model's (``MPlus.decline_threshold``)."""
    gate: GateChoice = "auto"
    """Whether the answer reads memory: "always", "never" (the plain backbone answers), or "auto": chat messages that
    the model's gate takes for ordinary ones are answered as with an empty memory."""

    @model_validator(mode="before")
    @classmethod
    def _known_and_given(cls, given: dict[str, Any]) -> dict[str, Any]:
        UnknownNameError.check(given, cls.model_fields, of="SamplingParams")
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value)

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("stop holds an empty string, which would end every answer at once; remove it")
        return value


class Sampler:
    """The settings of one sequence, and its own source of randomness."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], device: torch.device) -> None:
        from transformers import (
            LogitsProcessorList,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self._processors = LogitsProcessorList()
        self._ids = moved(torch.tensor(list(prompt_ids), dtype=torch.int64), device)
        """Prompt and answer, as far as they are needed."""
        self._taken = 0
        self._counts_ids = params.repetition_penalty != 1
        if self._counts_ids:
            self._processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
        self.generator: torch.Generator | None = None
        """None takes the likeliest token."""
        if params.temperature < LEAST_TEMPERATURE:
            return
        self._processors.append(TemperatureLogitsWarper(params.temperature))
        if params.top_k:
            self._processors.append(TopKLogitsWarper(params.top_k))
        if params.top_p < 1:
            self._processors.append(TopPLogitsWarper(params.top_p))
        # On the CPU, so that a seed gives the same result on every device and in every batch.
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)

    def scores(self, logits: Float[Tensor, " V"], generated: Sequence[int]) -> Float[Tensor, " V"]:
        """What the next token is chosen from. The host does not wait for it."""
        if not self._processors:
            return logits
        if self._counts_ids and len(generated) > self._taken:
            fresh = torch.tensor(list(generated[self._taken :]), dtype=torch.int64)
            self._ids = torch.cat([self._ids, moved(fresh, logits.device)])
            self._taken = len(generated)
        return self._processors(self._ids[None], logits[None].float())[0]  # pyright: ignore[reportArgumentType]


class Chosen(NamedTuple):
    """The next token of a sequence, and what the model thought of it before settings and constraints."""

    token: int
    """Below 0 where the probabilities to sample from are not numbers."""
    log_probability: float
    entropy: float
    """Of the distribution, in nats; 0 if it was not asked for."""


@torch.inference_mode()
def choose(
    logits: Float[Tensor, "B V"],
    scores: Sequence[Float[Tensor, " V"]],
    generators: Sequence[torch.Generator | None],
    *,
    with_entropy: bool,
) -> list[Chosen]:
    """The next token of every row, chosen on the device: the host waits once, for what is returned.

    A row that samples takes the token of the largest quotient of probability and noise of an exponential distribution,
    drawn by its own generator. So its choice is that of ``torch.multinomial``, and the other rows do not matter.

    Args:
        logits: What the model gave.
        scores: What to choose from: rows of ``logits``, or what settings and constraints made of them.
        generators: Of each row; None takes the likeliest token.
        with_entropy: Compute the entropy of the distributions.
    """
    changed = any(row.data_ptr() != given.data_ptr() for row, given in zip(scores, logits, strict=True))
    given = torch.stack([row.float() for row in scores]) if changed else logits
    tokens = given.argmax(dim=-1)
    sampled = [generator is not None for generator in generators]
    if any(sampled):
        probabilities = given.float().softmax(dim=-1)
        drawn = (probabilities / _noise(generators, probabilities)).argmax(dim=-1)
        is_number = probabilities.gather(1, drawn[:, None])[:, 0] > 0
        drawn = drawn.where(is_number, -1)
        tokens = drawn if all(sampled) else drawn.where(moved(torch.tensor(sampled), drawn.device), tokens)
    likelihoods = logits.float().log_softmax(dim=-1)
    found = [likelihoods.gather(1, tokens.clamp(min=0)[:, None])[:, 0]]
    if with_entropy:
        found.append(-(likelihoods.exp() * likelihoods.clamp(min=-1e4)).sum(dim=-1))
    # As integers of the same size, so that everything comes to the host in one piece.
    told = torch.stack([tokens.int(), *(numbers.view(torch.int32) for numbers in found)]).cpu().numpy()
    entropies = told[2].view(np.float32).tolist() if with_entropy else [0.0] * len(scores)
    return [Chosen(*row) for row in zip(told[0].tolist(), told[1].view(np.float32).tolist(), entropies, strict=True)]


def _noise(generators: Sequence[torch.Generator | None], like: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """Noise of an exponential distribution for every row that samples, 1 for the others."""
    noise = torch.ones(like.shape, pin_memory=like.device.type == "cuda")
    for row, generator in zip(noise, generators, strict=True):
        if generator is not None:
            row.exponential_(generator=generator)
    return moved(noise, like.device)


class TextStream:
    """Turns tokens into text piece by piece, holding back text that later tokens may change.

    Never emits an incomplete character or a part of a stop string. Decodes a short window per token, so a long
    answer takes linear time.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.finished = False
        """Whether a stop string was completed."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._begin = 0  # window start: tokens before it are settled
        self._decoded = 0  # tokens of the window whose text has been taken
        self._held = ""

    def push(self, token: int) -> str:
        """Take one token; returns text that is now certain, often empty."""
        self._ids.append(token)
        before = self._decode(self._begin, self._begin + self._decoded)
        text = self._decode(self._begin, len(self._ids))
        if text.endswith("�"):
            return ""
        fresh = text[len(before) :]
        # Keep the last piece as context: some tokenizers decode a token differently at the start.
        self._begin, self._decoded = self._begin + self._decoded, len(self._ids) - self._begin - self._decoded
        return self._certain(fresh)

    def finish(self) -> str:
        """End the text; returns what was held back."""
        text = self._decode(self._begin, len(self._ids))
        fresh = text[len(self._decode(self._begin, self._begin + self._decoded)) :]
        self._begin, self._decoded = len(self._ids), 0
        piece = self._certain(fresh) if fresh else ""
        if not self.finished:
            piece, self._held = piece + self._held, ""
        return piece

    def _decode(self, begin: int, end: int) -> str:
        if begin == end:
            return ""
        return self._tokenizer.decode(
            self._ids[begin:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _certain(self, fresh: str) -> str:
        text = self._held + fresh
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.finished, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - hold
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that a stop string begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
