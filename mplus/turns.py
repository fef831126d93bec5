"""Turns of a conversation: the text that is written of each, and which of them also stand in the prompt."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def turn_text(message: Mapping[str, Any]) -> str:
    """The text of a turn as it is written into memory, the same from whoever writes it.

    Args:
        message: A chat message ``{"role", "content"}``, perhaps with ``tool_calls``.

    Returns:
        "User: …" with its content, else with its tool calls as JSON. Empty if there is nothing to write: a message
        without either, or a system message, which instructs and is never said.
    """
    role, text = str(message["role"]), str(message.get("content") or "")
    calls = message.get("tool_calls") or ()
    if not text.strip():
        text = json.dumps([call["function"] for call in calls], ensure_ascii=False) if calls else ""
    return f"{role.capitalize()}: {text}" if text and role != "system" else ""


def question_place(turns: Sequence[Mapping[str, Any]]) -> int:
    """Index of the turn that is to be answered: the last user message, which its tool calls and results follow.

    Without a user message it is the last turn.
    """
    asked = [n for n, turn in enumerate(turns) if turn["role"] == "user"]
    return asked[-1] if asked else max(len(turns) - 1, 0)


def prompt_start(turns: Sequence[Mapping[str, Any]], end: int, prompt_turns: int | None) -> int:
    """Index of the first turn that stands in the prompt; earlier ones are read from memory.

    Args:
        turns: A conversation without its system messages.
        end: Index of the question, or the number of turns if it is still to come. It and all after it stand in the
            prompt in any case.
        prompt_turns: How many turns before it stand there too (``MPlus.prompt_turns``); None: all.
    """
    start = 0 if prompt_turns is None else max(end - prompt_turns, 0)
    while start < end and turns[start]["role"] == "tool":
        start += 1  # a result is of no use without its call
    return start
