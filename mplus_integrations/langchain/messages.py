"""LangChain messages to chat messages, and answers back; no model logic."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.content import InvalidToolCall
from langchain_core.messages.tool import invalid_tool_call, tool_call

from mplus import Generation, ToolCall
from mplus_integrations.langchain.forms import OPEN_CALL

_ROLES: tuple[tuple[type[BaseMessage], str], ...] = (
    (HumanMessage, "user"),
    (AIMessage, "assistant"),
    (SystemMessage, "system"),
    (ToolMessage, "tool"),
)


# What an earlier answer may hold beside its text; calls are read from ``tool_calls``.
THOUGHTS = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "reasoning", "thinking")


def to_chat(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Chat messages for the tokenizer's template.

    Raises:
        ValueError: A message of an unknown kind, an empty one, or one with content that is not text.
    """
    return [_to_chat(message) for message in messages]


def _to_chat(message: BaseMessage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": _role(message), "content": text_of(message)}
    if isinstance(message, AIMessage) and message.tool_calls:
        found["tool_calls"] = [
            {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if isinstance(message, HumanMessage) and not found["content"].strip():
        raise ValueError(f"HumanMessage(content={message.content!r:.40}): expected text to answer. Leave it out.")
    return found


def _role(message: BaseMessage) -> str:
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


def to_tool_calls(calls: Sequence[ToolCall]) -> tuple[list[LangChainToolCall], list[InvalidToolCall]]:
    """Calls in LangChain's form, and those that are not valid."""
    good: list[LangChainToolCall] = []
    bad: list[InvalidToolCall] = []
    for call in calls:
        number = f"call_{uuid4().hex[:24]}"
        if call.arguments is None:
            # With its tag, so that whoever joins chunks and reads half a JSON leniently never takes it for a call.
            text = f"{OPEN_CALL}\n{call.text}"
            bad.append(invalid_tool_call(name=call.name or None, args=text, id=number, error=call.error))
        else:
            good.append(tool_call(name=call.name, args=call.arguments, id=number))
    return good, bad


def usage(generation: Generation) -> UsageMetadata:
    """Token counts in LangChain's form."""
    return UsageMetadata(
        input_tokens=generation.prompt_tokens,
        output_tokens=generation.completion_tokens,
        total_tokens=generation.prompt_tokens + generation.completion_tokens,
    )


def response_metadata(generation: Generation, model_name: str) -> dict[str, Any]:
    """What an answer says about itself: why it ended, which sources it recalled, how sure it is."""
    return {
        "model_name": model_name,
        "model_provider": "mplus",
        "finish_reason": generation.finish_reason,
        "recalled": [
            {
                "source": recalled.source,
                "share": recalled.share,
                "relevance": recalled.relevance,
                "metadata": dict(recalled.metadata),
            }
            for recalled in generation.recalled
        ],
        "prefix_tokens": generation.prefix_tokens,
        "confidence": generation.confidence,
        "is_calibrated": generation.is_calibrated,
        "abstained": generation.abstained,
    }


def to_texts(
    items: str | Document | BaseMessage | Sequence[str | Document | BaseMessage],
) -> list[tuple[str, str | None, dict[str, Any]]]:
    """Texts to write, each with its own source name (if it has one) and metadata.

    Raises:
        ValueError: Something that is neither text, document nor message.
    """
    if isinstance(items, str | Document | BaseMessage):
        items = [items]
    return [_to_text(item) for item in items]


def _to_text(item: object) -> tuple[str, str | None, dict[str, Any]]:
    if isinstance(item, str):
        return item, None, {}
    if isinstance(item, Document):
        source = item.id or item.metadata.get("source")
        return item.page_content, None if source is None else str(source), dict(item.metadata)
    if isinstance(item, BaseMessage):
        speaker = _role(item).capitalize()
        return f"{speaker}: {text_of(item)}", item.id, {"role": _role(item)}
    raise ValueError(f"Cannot memorize {type(item).__name__}: expected text, documents or messages.")
