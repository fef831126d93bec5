"""Converts LlamaIndex messages to chat messages, and answers to LlamaIndex responses."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    CompletionResponse,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.tools import BaseTool
from pydantic import PrivateAttr

from mplus import turn_text
from mplus_integrations.answering import Answer, Piece
from mplus_integrations.conversations import is_unique
from mplus_integrations.latents import Latents
from mplus_integrations.memorized import DOCUMENT, Memorized

Prompt = str | Sequence[ChatMessage]

ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


class Remembers(Protocol):
    """An object that knows its latents. Finding them may load a model, so it is done as late as possible."""

    @property
    def latents(self) -> Latents:
        """The memory that the object refers to."""
        ...


class Turn(ChatMessage):
    """A message that has been written into latent memory.

    LlamaIndex passes only messages to an LLM. So messages from an ``MPlusMemory`` carry the name under which they
    have been written, and refer to the latents to read with them.
    """

    source: str = ""
    """The name under which it was written."""
    is_shared: bool = False
    """Whether it was in memory before, so that another conversation may have said it too."""

    _given_by: Remembers | None = PrivateAttr(default=None)
    _stays: bool = PrivateAttr(default=False)

    @property
    def latents(self) -> Latents | None:
        """The latents to read with the message; None if it was restored from JSON."""
        return None if self._given_by is None else self._given_by.latents

    def given_by(self, memory: Remembers, *, stays: bool = False) -> "Turn":
        """A copy that refers to ``memory``'s latents and that callers may change.

        Args:
            memory: The memory that gives it.
            stays: Whether the memory chose it for the prompt.
        """
        turn = Turn(role=self.role, blocks=[b.model_copy() for b in self.blocks], source=self.source)
        turn.is_shared = self.is_shared
        turn.additional_kwargs = dict(self.additional_kwargs)
        turn._given_by, turn._stays = memory, stays
        return turn

    @classmethod
    def marker(cls, memory: Remembers) -> "Turn":
        """A message without text, which says only which latents to read; the LLM leaves it out of the prompt."""
        return Turn(role=MessageRole.SYSTEM, blocks=[]).given_by(memory)

    @property
    def is_marker(self) -> bool:
        """Whether it is only a marker."""
        return self.role == MessageRole.SYSTEM and not self.source and not self.blocks

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that refers to the same latents, as LlamaIndex makes of the messages of a template."""
        memo = {} if memo is None else memo
        memo[id(self._given_by)] = self._given_by
        return super().__deepcopy__(memo)

    def format_vars(self, **kwargs: Any) -> Self:
        """The message with a template's variables filled in; it still refers to its latents."""
        turn = super().format_vars(**kwargs)
        turn._given_by, turn._stays = self._given_by, self._stays
        return turn


def to_chat(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Convert to chat messages for the tokenizer's template.

    Raises:
        ValueError: There are no messages, an item is not a message, the question is empty, or content is not text.
    """
    if not messages:
        raise ValueError("messages=[]: expected at least one message to answer.")
    found = [as_chat(message) for message in messages if not (isinstance(message, Turn) and message.is_marker)]
    if not found:
        raise ValueError("messages: expected at least one message with text to answer.")
    return found


def as_chat(message: ChatMessage) -> dict[str, Any]:
    """Convert a message for the tokenizer's template.

    Raises:
        ValueError: It is none, a question is empty, or content is not text.
    """
    if not isinstance(message, ChatMessage):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"Message of type {type(message).__name__}: expected a llama_index ChatMessage.")
    found: dict[str, Any] = {"role": ROLES[message.role], "content": text_of(message)}
    calls = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
    if calls:
        found["tool_calls"] = [
            {"type": "function", "function": {"name": call.tool_name, "arguments": _arguments(call)}} for call in calls
        ]
    if found["role"] == "user" and not found["content"].strip():
        raise ValueError(f"ChatMessage(role='user', content={message.content!r:.40}): expected text. Leave it out.")
    if isinstance(message, Turn) and message.source:
        found["source"], found["stays"] = message.source, message._stays
    if name := id_of(message):
        found["id"] = name
    return found


def id_of(message: ChatMessage) -> str | None:
    """The id of a message, as LlamaIndex's stores and agents note it; None: it has none."""
    name = message.additional_kwargs.get("id")
    return name if isinstance(name, str) and name else None


def _arguments(call: ToolCallBlock) -> dict[str, Any]:
    if isinstance(call.tool_kwargs, dict):
        return call.tool_kwargs
    try:
        found = json.loads(call.tool_kwargs or "{}")
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"ToolCallBlock {call.tool_name!r} has tool_kwargs {call.tool_kwargs!r:.80}: expected a dict, or its JSON."
        )
    return found


def text_of(message: ChatMessage) -> str:
    """The text of a message, its text blocks joined.

    Raises:
        ValueError: It holds an image, audio or another block that is not text.
    """
    return "\n".join(_texts(message.blocks, message.role))


def _texts(blocks: Iterable[Any], role: MessageRole) -> list[str]:
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, CitableBlock):
            texts += [block.title, *_texts(block.content, role)]
        elif isinstance(block, CitationBlock):
            texts += _texts([block.cited_content], role)
        elif not isinstance(block, ToolCallBlock | ThinkingBlock | CachePoint):
            kind = getattr(block, "block_type", type(block).__name__)
            raise ValueError(f"A {role.value} message holds a block of type {kind!r}: this model reads text only.")
    return texts


def spoken(message: ChatMessage) -> str:
    """The text of a message as it is written into memory: its content, else its calls; may be empty."""
    return turn_text(as_chat(message)) if message.blocks else ""


def to_response(answer: Answer, *, is_last_chunk: bool) -> ChatResponse:
    """Convert a whole answer: calls become blocks, all other details JSON in ``raw``."""
    usage = usage_of((answer.generation.prompt_tokens, answer.generation.completion_tokens))
    raw: dict[str, Any] = {**answer.about, "usage": usage}
    if answer.invalid_calls:
        raw["invalid_tool_calls"] = [
            {"name": call.name, "text": call.text, "error": call.error} for _, call in answer.invalid_calls
        ]
    blocks: list[Any] = [TextBlock(text=answer.text)] if answer.text or not answer.calls else []
    blocks += [
        ToolCallBlock(tool_call_id=name, tool_name=call.name, tool_kwargs=call.arguments or {})
        for name, call in answer.calls
    ]
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
    delta = answer.rest if is_last_chunk else None
    return ChatResponse(message=message, raw=raw, delta=delta, additional_kwargs=dict(usage))


def usage_of(tokens: tuple[int, int]) -> dict[str, int]:
    """Tokens of prompt and answer as LlamaIndex counts them."""
    prompt, answer = tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def to_piece(shown: str, piece: Piece) -> ChatResponse:
    """The answer up to a piece. Each says what it has cost until then, so that a stream that is left early does too."""
    usage = usage_of(piece.tokens)
    return ChatResponse(
        message=as_message(shown), delta=str(piece), raw={"usage": usage}, additional_kwargs=dict(usage)
    )


def memorized(item: object) -> Memorized:
    """An item as it is written into memory.

    Raises:
        ValueError: The item is neither text, document, node nor message.
    """
    if isinstance(item, str):
        return Memorized(item, None, {})
    if isinstance(item, BaseNode):
        text = item.get_content(metadata_mode=MetadataMode.NONE)
        return Memorized(text, item.node_id, dict(item.metadata), is_own=True, kind=DOCUMENT)
    if isinstance(item, ChatMessage):
        name = id_of(item)
        role = ROLES[item.role]
        return Memorized(spoken(item), name, {"role": role}, is_unique(name or ""), kind=role)
    raise ValueError(f"Cannot memorize {type(item).__name__}: expected text, documents, nodes or messages.")


def as_prompt(prompt: str, formatted: bool) -> Prompt:
    """The prompt of a completion: unchanged, or as a user's message."""
    return prompt if formatted else [ChatMessage(role=MessageRole.USER, content=prompt)]


def as_message(text: str) -> ChatMessage:
    """A text as an assistant's message."""
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text)])


def to_completion(response: ChatResponse) -> CompletionResponse:
    """Convert a chat response to a completion response."""
    return CompletionResponse(
        text=response.message.content or "",
        raw=response.raw,
        delta=response.delta,
        additional_kwargs=response.additional_kwargs,
    )


def described(tool: BaseTool) -> dict[str, Any]:
    """The description of a tool for the tokenizer's template."""
    metadata = tool.metadata
    function = {"name": metadata.get_name(), "description": metadata.description}
    return {"type": "function", "function": {**function, "parameters": _parameters(tool)}}


def _parameters(tool: BaseTool) -> dict[str, Any]:
    """The schema of a tool's arguments. That of a recursive class is a reference, which LlamaIndex leaves out."""
    if tool.metadata.fn_schema is not None:
        schema = tool.metadata.fn_schema.model_json_schema()
        if "$ref" in schema:
            return {**schema["$defs"][schema["$ref"].removeprefix("#/$defs/")], "$defs": schema["$defs"]}
    return tool.metadata.get_parameters_dict()
