"""LlamaIndex messages to chat messages, and answers back; no model logic."""

import json
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

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

from mplus import Generation, parse_tool_calls
from mplus_integrations.forms import about
from mplus_integrations.llama_index.latents import Turn

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


def to_chat(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Chat messages for the tokenizer's template.

    Raises:
        ValueError: No messages, something that is no message, an empty question, or content that is not text.
    """
    if not messages:
        raise ValueError("messages=[]: expected at least one message to answer.")
    return [_to_chat(message) for message in messages]


def _to_chat(message: ChatMessage) -> dict[str, Any]:
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
        found["source"] = message.source
    return found


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
    """What a message says, as it is written into memory; empty where it says nothing."""
    chat: dict[str, Any] = {"role": ROLES[message.role], "content": ""}
    if message.blocks:
        chat = _to_chat(message)
    text = chat["content"].strip() and chat["content"]
    if not text and "tool_calls" in chat:
        text = json.dumps([call["function"] for call in chat["tool_calls"]], ensure_ascii=False)
    return f"{chat['role'].capitalize()}: {text}" if text and chat["role"] != "system" else ""


def to_response(generation: Generation, model_name: str, *, tools: bool, parallel: bool) -> ChatResponse:
    """An answer in LlamaIndex's form: calls as blocks, everything else JSON in ``raw``."""
    text, calls = parse_tool_calls(generation.text) if tools else (generation.text, [])
    good = [call for call in calls if call.arguments is not None]
    bad = [call for call in calls if call.arguments is None]
    usage = {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
    }
    raw: dict[str, Any] = {**about(generation, model_name), "usage": usage}
    if bad:
        raw["invalid_tool_calls"] = [{"name": c.name, "text": c.text, "error": c.error} for c in bad]
    blocks: list[Any] = [TextBlock(text=text)] if text or not good else []
    blocks += [
        ToolCallBlock(tool_call_id=f"call_{uuid4().hex[:24]}", tool_name=call.name, tool_kwargs=call.arguments or {})
        for call in (good if parallel else good[:1])
    ]
    message = ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)
    return ChatResponse(message=message, raw=raw, delta="", additional_kwargs=dict(usage))


def to_texts(
    items: str | BaseNode | ChatMessage | Sequence[str | BaseNode | ChatMessage],
) -> list[tuple[str, str | None, dict[str, Any]]]:
    """Texts to write, each with its own source name (if it has one) and metadata.

    Raises:
        ValueError: Something that is neither text, document, node nor message.
    """
    if isinstance(items, str | BaseNode | ChatMessage):
        items = [items]
    return [_to_text(item) for item in items]


def _to_text(item: object) -> tuple[str, str | None, dict[str, Any]]:
    if isinstance(item, str):
        return item, None, {}
    if isinstance(item, BaseNode):
        return item.get_content(metadata_mode=MetadataMode.LLM), item.node_id, dict(item.metadata)
    if isinstance(item, ChatMessage):
        return spoken(item), None, {"role": ROLES[item.role]}
    raise ValueError(f"Cannot memorize {type(item).__name__}: expected text, documents, nodes or messages.")


def as_prompt(prompt: str, formatted: bool) -> Prompt:
    """A prompt of a completion: as it is, or as a user's message."""
    return prompt if formatted else [ChatMessage(role=MessageRole.USER, content=prompt)]


def as_message(text: str) -> ChatMessage:
    """What the assistant said."""
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text=text)])


def to_completion(response: ChatResponse) -> CompletionResponse:
    """An answer in chat as that of a completion."""
    return CompletionResponse(
        text=response.message.content or "",
        raw=response.raw,
        delta=response.delta,
        additional_kwargs=response.additional_kwargs,
    )


def described(tool: BaseTool) -> dict[str, Any]:
    """A tool as the tokenizer's template wants it."""
    metadata = tool.metadata
    function = {"name": metadata.get_name(), "description": metadata.description}
    return {"type": "function", "function": {**function, "parameters": metadata.get_parameters_dict()}}
