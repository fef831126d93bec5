"""Histories longer than the window: the oldest turns are moved into memory, each once.

The name of a turn is a hash of the conversation up to it, so the same history is recognised in the next
call. Turns of the same conversation that are no longer in the history (after an edit or a step back) are
forgotten. A turn with a ``source`` has been written already under that name and is not written again.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mplus import Memory, MPlus
from mplus_integrations.whose_memory import all_or_nothing

CONVERSATION = "mplus_conversation"
KEPT_SHARE = 0.75
"""Share of the room that the prompt takes after turns have been moved into memory."""

Messages = Sequence[Mapping[str, Any]]
Where = Callable[[str, Mapping[str, Any]], bool]


def turn_name(before: str, message: Mapping[str, Any]) -> str:
    """The name of a turn: a hash of the turn and of the name before it, and so of the conversation up to it."""
    said = json.dumps(
        [before.removeprefix("turn-"), message["role"], message["content"], message.get("tool_calls")], sort_keys=True
    )
    return f"turn-{hashlib.sha256(said.encode()).hexdigest()[:24]}"


def turn_names(messages: Messages) -> list[str]:
    """The name of every turn: its ``source``, else the hash of the conversation up to it."""
    names: list[str] = []
    for message in messages:
        names.append(message.get("source") or turn_name(names[-1] if names else "", message))
    return names


def fitted(
    model: MPlus,
    memory: Memory,
    messages: Messages,
    *,
    room: int,
    tools: Sequence[Mapping[str, Any]] | None,
) -> list[dict[str, Any]]:
    """Move the oldest turns of a history into memory until the rest fits the prompt.

    Args:
        model: The model, which counts tokens and writes.
        memory: The memory for the turns; changed only if turns are moved or forgotten. The caller holds its lock.
        messages: The whole history.
        room: Most tokens of the prompt.
        tools: Tools described in the prompt.

    Returns:
        The messages that stay in the prompt.
    """
    system, turns = parted(messages)
    names = turn_names(turns)
    conversations = {s.name: s.metadata[CONVERSATION] for s in memory.sources() if CONVERSATION in s.metadata}
    mine = {name for name, conversation in conversations.items() if names[:1] == [conversation]}
    # The last turn is asked now, so it is in the prompt even if it was moved into memory before.
    stale = mine - set(names[:-1])
    flowed = max((n + 1 for n, name in enumerate(names[:-1]) if name in mine), default=0)

    def size(start: int) -> int:
        return model.count_tokens([*system, *turns[start:]], tools=tools)

    wanted, last = flowed, len(turns) - 1
    # If the last turn alone does not fit, no turn is moved, and the read raises an error.
    if turns and size(flowed) > room and size(last) < model.prompt_room(memory):
        # The first start whose rest fits; bisection works because sizes fall with the start.
        wanted = bisect_left(range(last), True, flowed, key=lambda start: size(start) <= room * KEPT_SHARE)
        while turns[wanted]["role"] == "tool" and wanted < last:
            wanted += 1  # a tool result stays with its call
    flowing = [(n, t) for n, t in zip(names[flowed:wanted], turns[flowed:wanted], strict=True) if "source" not in t]
    if stale or flowing:
        with all_or_nothing(memory) as fork:
            for name in stale:
                fork.forget(name)
            for name, turn in flowing:
                write_turn(model, fork, name, turn, conversation=names[0])
    return [*system, *turns[wanted:]]


def write_turn(model: MPlus, memory: Memory, name: str, turn: Mapping[str, Any], *, conversation: str) -> None:
    """Write a turn that is moved out of the prompt."""
    text = turn["content"] or json.dumps(turn.get("tool_calls") or "")
    metadata = {CONVERSATION: conversation, "role": turn["role"]}
    model.write(memory, f"{turn['role'].capitalize()}: {text}", source=name, metadata=metadata, keep_text=True)


def parted(messages: Messages) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system messages that a history begins with, and its turns."""
    first = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return [dict(message) for message in messages[:first]], [dict(message) for message in messages[first:]]


def of_conversation(messages: Messages) -> Where:
    """A test of sources for a history that shares its memory with others: it excludes their turns."""
    names = set(turn_names(parted(messages)[1]))
    # A turn's name is a hash of the conversation up to it, so no other conversation has the same name.
    return lambda name, metadata: CONVERSATION not in metadata or name in names
