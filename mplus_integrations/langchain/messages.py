"""Converts LangChain messages to chat messages, and answers to LangChain messages."""

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from mplus import Generation, turn_text
from mplus_integrations.answering import Answer
from mplus_integrations.arguments import checked_several
from mplus_integrations.conversations import is_unique
from mplus_integrations.forms import OPEN_CALL
from mplus_integrations.memorized import DOCUMENT, NOTE, Memorized

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
)


# Block types that an earlier answer may have besides text; calls are read from ``tool_calls``.
THOUGHTS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking")


def to_chat(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Convert to chat messages for the tokenizer's template.

    Raises:
        ValueError: There are no messages, or a message is empty, of an unknown type, or has content that is not text.
    """
    if not checked_several(messages, "messages", BaseMessage):
        raise ValueError("messages=[]: expected at least one message to answer.")
    found: list[dict[str, Any]] = []
    for message in messages:
        chat = _to_chat(message)
        if is_summary(message) and found and found[-1]["role"] == "system":
            found[-1]["content"] = f"{found[-1]['content']}\n\n{chat['content']}"
        else:
            found.append(chat)
    return found


def is_summary(message: BaseMessage) -> bool:
    """Whether a message is a summary of earlier turns that LangChain's middleware made; nobody said it."""
    return message.additional_kwargs.get("lc_source") == "summarization"


def written_text(message: BaseMessage) -> str:
    """The text of a message as it is written into memory; empty if it is not: no text, a system message, a summary."""
    has_text = bool(text_of(message).strip()) or (isinstance(message, AIMessage) and bool(message.tool_calls))
    return turn_text(_to_chat(message)) if has_text else ""


def _to_chat(message: BaseMessage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": _role(message), "content": text_of(message)}
    if message.id:
        found["id"] = message.id
    if isinstance(message, AIMessage) and message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if isinstance(message, HumanMessage) and not found["content"].strip():
        raise ValueError(f"HumanMessage(content={message.content!r:.40}): expected text to answer. Leave it out.")
    return found


def _role(message: BaseMessage) -> str:
    if is_summary(message):
        return "system"
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    raise ValueError(f"Message of type {type(message).__name__}: expected a human, AI, system, tool or chat message.")


def text_of(message: BaseMessage) -> str:
    """The text of a message, its text blocks joined.

    Raises:
        ValueError: It holds an image, audio or another block that is not text.
    """
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") in ("text", "text-plain"):
            parts.append(str(block.get("text", "")))
        elif isinstance(message, AIMessage) and block.get("type") in THOUGHTS:
            continue
        else:
            raise ValueError(
                f"A {type(message).__name__} holds a block of type {block.get('type')!r}: this model reads text only."
            )
    return "\n".join(parts)


def to_message(answer: Answer) -> AIMessage:
    """Convert a whole answer to a message."""
    return AIMessage(
        answer.text,
        tool_calls=[tool_call(name=one.name, args=one.arguments or {}, id=name) for name, one in answer.calls],
        invalid_tool_calls=[
            invalid_tool_call(name=one.name or None, args=_as_invalid(one.text), id=name, error=one.error)
            for name, one in answer.invalid_calls
        ],
        usage_metadata=usage(tokens_of(answer.generation)),
        response_metadata=answer.about,
    )


def to_last_chunk(answer: Answer, told: tuple[int, int] = (0, 0)) -> AIMessageChunk:
    """The last chunk of a streamed answer, with the tokens that earlier chunks have not told."""
    calls = [(name, one.name, json.dumps(one.arguments)) for name, one in answer.calls]
    calls += [(name, one.name or None, _as_invalid(one.text)) for name, one in answer.invalid_calls]
    return AIMessageChunk(
        content=answer.rest,
        tool_call_chunks=[
            tool_call_chunk(name=name, args=args, id=number, index=n) for n, (number, name, args) in enumerate(calls)
        ],
        usage_metadata=usage(tokens_of(answer.generation), told),
        response_metadata=answer.about,
        chunk_position="last",
    )


def _as_invalid(text: str) -> str:
    # With its tag, so that a lenient JSON parser on joined chunks does not take an incomplete call for a valid one.
    return f"{OPEN_CALL}\n{text}"


def tokens_of(generation: Generation) -> tuple[int, int]:
    """Tokens of the prompt and of the answer."""
    return generation.prompt_tokens, generation.completion_tokens


def usage(tokens: tuple[int, int], told: tuple[int, int] = (0, 0)) -> UsageMetadata:
    """Tokens of prompt and answer in LangChain's form, without those that earlier chunks have told.

    LangChain adds up the counts of chunks, so a stream that is left early has told what it cost until then.
    """
    prompt, answer = tokens[0] - told[0], tokens[1] - told[1]
    return UsageMetadata(input_tokens=prompt, output_tokens=answer, total_tokens=prompt + answer)


def memorized(item: object) -> Memorized:
    """An item as it is written into memory.

    Raises:
        ValueError: The item is neither text, document nor message.
    """
    if isinstance(item, str):
        return Memorized(item, None, {})
    if isinstance(item, Document):
        source = item.id or item.metadata.get("source")
        name = None if source is None else str(source)
        return Memorized(
            item.page_content, name, dict(item.metadata), is_own=bool(item.id), kind=DOCUMENT if item.id else NOTE
        )
    if isinstance(item, BaseMessage):
        chat = _to_chat(item)
        text, role, is_own = turn_text(chat) or text_of(item), chat["role"], is_unique(item.id or "")
        return Memorized(text, item.id, {"role": role}, is_own, kind=role)
    raise ValueError(f"Cannot memorize {type(item).__name__}: expected text, documents or messages.")
