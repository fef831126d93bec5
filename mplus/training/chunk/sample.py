"""``Sample``: one thing for a read adapter to learn, and how a prompt with its reply becomes one."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mplus.generation.prompt import Prompt, encode_prompt
from mplus.generation.told import encode_told
from mplus.inert import encode_inert

TOGETHER = 4
"""Samples about one memory: they stay beside each other in a batch, where what they read is encoded once."""
STRESS = 3.0
"""How much a token of the answer itself counts, beside one of the sentence around it."""


class AsRead(NamedTuple):
    """The chunks that are read before a question."""

    chunks: Sequence[int]
    order: Sequence[int] = ()
    """Places of their tokens, laid one behind the other, in the order of reading; none: as they stand."""


@dataclass(frozen=True)
class Sample:
    """One thing to learn: a prefix of chunks, a prompt, and what should follow.

    Attributes:
        chunks: Chunks of the bank in the order they stand in the prefix.
        input_ids: Prompt and target together.
        target: Where the target begins.
        distil: Learn the backbone's own distribution on the target rather than its tokens.
        clean: Learn the distribution that the adapter gave in the beginning when it read these chunks and no others.
        kind: What sort of sample it is, for the log.
        order: Places of the chunks' tokens, laid one behind the other, in the order in which they are read; none: as
            they stand.
        weights: How much each token of the target counts; none: all alike.
        memory: Samples with the same number read one memory; 0: this one reads its own.
    """

    chunks: tuple[int, ...]
    input_ids: tuple[int, ...]
    target: int
    distil: bool = False
    clean: tuple[int, ...] = ()
    kind: str = ""
    order: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    memory: int = 0


@runtime_checkable
class SampleSource(Protocol):
    """Where samples come from; see ``mplus.training.chunk.samples``."""

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples."""
        ...


def encode_sample(
    tokenizer: Any,
    read: AsRead,
    prompt: str | list[dict[str, str]],
    reply: str,
    *,
    distil: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    stressed: Sequence[str] = (),
    told: str = "",
) -> Sample:
    """A sample of a prompt and its reply, ended as the model ends a turn.

    Args:
        tokenizer: Of the model.
        read: What is read before.
        prompt: Text, or messages.
        reply: What should follow.
        distil: See `Sample`.
        tools: Offered beside messages.
        stressed: What the reply is about: the tokens of these, where they stand in it, count `STRESS` times.
        told: What was recalled as text, which stands in the prompt; none: nothing.
    """
    encoded: Prompt = (
        encode_told(tokenizer, prompt, told, tools=tools) if told else encode_prompt(tokenizer, prompt, tools=tools)
    )
    target = [*encode_inert(tokenizer, reply, by_assistant=True), tokenizer.eos_token_id]
    ids = (*encoded.input_ids, *target)
    weights = _weights(tokenizer, reply, len(target), stressed)
    return Sample(tuple(read.chunks), ids, len(encoded.input_ids), distil, order=tuple(read.order), weights=weights)


def _weights(tokenizer: Any, reply: str, size: int, stressed: Sequence[str]) -> tuple[float, ...]:
    """How much each of ``size`` tokens counts; empty where none of ``stressed`` stands in the reply."""
    weights = [1.0] * size
    for text in filter(None, stressed):
        found = re.search(rf"(?<!\w){re.escape(text)}(?!\w)", reply, re.IGNORECASE)
        if found is not None:
            # The space before a word belongs to its first token.
            first = len(encode_inert(tokenizer, reply[: found.start()].rstrip(" "), by_assistant=True))
            last = len(encode_inert(tokenizer, reply[: found.end()], by_assistant=True))
            weights[first:last] = [STRESS] * (last - first)
    return tuple(weights) if STRESS in weights else ()
