"""Requests of OpenAI's clients, as they come over the wire. Unknown names are errors, and null is the default."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mplus.given import NO_SWITCH, Whole
from mplus_integrations.settings import PromptTurns

WITHOUT_EFFECT = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "reasoning_effort", "verbosity",
)  # fmt: skip
"""Fields that clients send to every server, and that change nothing here."""
ROLES = {"developer": "system"}
"""Roles that this model knows by another name."""
When = str | Annotated[float, Field(strict=True)] | None
"""A time: ISO 8601 text, where a date is its whole day, or Unix seconds."""


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None


class FunctionOfCall(BaseModel):
    """A function that an earlier answer called."""

    model_config = ConfigDict(extra="ignore")

    name: str
    arguments: str = "{}"
    """Its arguments as JSON."""


class CallOfTool(BaseModel):
    """A call in an earlier answer."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionOfCall


class Message(BaseModel):
    """A message. Clients send earlier answers back with fields of their own, which are ignored."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: list[CallOfTool] | None = None

    def to_chat(self, place: int) -> dict[str, Any]:
        """The message as a tokenizer's template takes it.

        Raises:
            ValueError: It is empty, has content that is not text, or calls that are not JSON.
        """
        found: dict[str, Any] = {"role": ROLES.get(self.role, self.role), "content": self._text(place)}
        if self.tool_calls:
            calls = [{"name": c.function.name, "arguments": _arguments(place, c.function)} for c in self.tool_calls]
            found["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        if self.role == "user" and not found["content"].strip():
            raise ValueError(f"messages.{place}: expected text to answer. Leave an empty message out.")
        return found

    def _text(self, place: int) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        for part in self.content:
            if part.type not in ("text", "input_text", "refusal"):
                raise ValueError(f"messages.{place} holds a part of type {part.type!r}: this model reads text only.")
        return "\n".join(part.text or "" for part in self.content)


def to_chat(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as a tokenizer's template takes them."""
    return [message.to_chat(place) for place, message in enumerate(messages)]


def _arguments(place: int, function: FunctionOfCall) -> Mapping[str, Any]:
    try:
        found = json.loads(function.arguments or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"messages.{place}: arguments of the call of {function.name!r:.40}: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"messages.{place}: arguments of the call of {function.name!r:.40}: expected an object.")
    return found


class StreamOptions(BaseModel):
    """What a stream also has."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Asking(BaseModel):
    """Fields of both kinds of requests for an answer."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """A name of the model, as /v1/models lists it."""
    max_tokens: Annotated[int, Field(ge=1), NO_SWITCH] | None = None
    temperature: Annotated[float, Field(ge=0, le=2), NO_SWITCH] | None = None
    """0, the default here, always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1), NO_SWITCH] | None = None
    stop: str | list[str] | None = None
    seed: Whole | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), NO_SWITCH] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2), NO_SWITCH] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100), NO_SWITCH]] | None = None
    n: Annotated[int, Field(ge=1, le=1), NO_SWITCH] | None = None
    """One answer to a request."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    memory: str | None = None
    """Name of the memory; by default that of the key or of the header X-MPlus-Memory."""
    shared: list[str] | None = None
    """Memories to read beside it; by default those that the server shares."""
    where: dict[str, Any] | None = None
    """Metadata that a source must have to be read."""
    since: When = None
    """Read only what was said from then on: ISO 8601, where a date is its whole day, or Unix seconds."""
    until: When = None
    """Read only what was said up to then."""
    as_of: When = None
    """Answer as the memory was then: nothing that was said later is read."""
    passages: bool | None = None
    """Whether ``mplus.passages`` tells the sentences that are read; a stream then tells them, and the sources, at its
    beginning."""
    top_k: Annotated[int, Field(ge=0), NO_SWITCH] | None = None
    repetition_penalty: Annotated[float, Field(gt=0), NO_SWITCH] | None = None
    gate: Literal["auto", "always", "never"] | None = None
    """Whether memory is read: as the model's gate decides, always, or never."""
    abstain_below: Annotated[float, Field(ge=0, le=1), NO_SWITCH] | None = None
    abstain_reply: str | None = None
    decline_threshold: Annotated[float, Field(ge=0, le=1), NO_SWITCH] | None = None
    """Least probability with which an answer from memory declines; by default the model's."""

    def settings(self) -> dict[str, Any]:
        """The settings of the answer."""
        names = (
            "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed", "gate",
            "abstain_below", "abstain_reply", "decline_threshold", "where", "since", "until", "as_of",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def biases(self) -> dict[int, float]:
        """``logit_bias`` by token id.

        Raises:
            ValueError: A key is not a token id.
        """
        try:
            return {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        except ValueError as error:
            raise ValueError(f"logit_bias: expected token ids as keys ({error}).") from error


class ChatRequest(Asking):
    """A request of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1), NO_SWITCH] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), NO_SWITCH] | None = None
    modalities: list[Literal["text"]] | None = None
    prompt_turns: PromptTurns | None = None
    """How many of the latest turns before the question also stand in the prompt; earlier ones are read from memory."""

    def settings(self) -> dict[str, Any]:
        """The settings of the answer.

        Raises:
            ValueError: Two limits that differ.
        """
        most = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(most) > 1:
            both = f"max_tokens={self.max_tokens} beside max_completion_tokens={self.max_completion_tokens}"
            raise ValueError(f"{both}: expected one of them, or both alike.")
        form = self.response_format
        return {
            **super().settings(),
            "max_tokens": next(iter(most), None),
            "tools": self.tools or None,
            "tool_choice": self.tool_choice if self.tools or self.tool_choice not in ("auto", "none") else None,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": None if form is None or form.get("type") == "text" else form,
            "prompt_turns": self.prompt_turns,
        }

    def noted(self) -> int | None:
        """How many of the likeliest tokens are noted beside each token; None: no log probabilities are asked for.

        Raises:
            ValueError: ``top_logprobs`` without ``logprobs``.
        """
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs} without logprobs: expected logprobs=true too.")
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Asking):
    """A request of /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    """Text to continue, or a list of one text."""
    logprobs: Annotated[int, Field(ge=0, le=5), NO_SWITCH] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1), NO_SWITCH] | None = None
    suffix: Literal[""] | None = None

    def text(self) -> str:
        """The text to continue."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def noted(self) -> int | None:
        """How many of the likeliest tokens are noted beside each token; None: no log probabilities are asked for."""
        return self.logprobs
