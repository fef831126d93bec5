"""Histories longer than the window: the oldest turns flow into memory, each once.

A turn is known by a hash of everything said up to it, so the same history is recognised when it comes
back. Turns of the same conversation that the history no longer has (it was edited or went back) are
forgotten. A turn that says under ``source`` where it has been written already is not written again.
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
"""What stays in the prompt after turns have flowed, as a share of the room there is."""

Messages = Sequence[Mapping[str, Any]]
Where = Callable[[str, Mapping[str, Any]], bool]


def turn_name(before: str, message: Mapping[str, Any]) -> str:
    """The name of a turn: a hash of it and of all before it, which the name before it stands for."""
    said = json.dumps(
        [before.removeprefix("turn-"), message["role"], message["content"], message.get("tool_calls")], sort_keys=True
    )
    return f"turn-{hashlib.sha256(said.encode()).hexdigest()[:24]}"


def turn_names(messages: Messages) -> list[str]:
    """A name for every turn, given or made of all that was said up to it."""
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
    """Let the oldest turns of a history flow into memory as far as needed.

    Args:
        model: For counting and writing.
        memory: Takes the turns; changed only where something flows or is rolled back. The caller keeps others
            from writing into it meanwhile.
        messages: The whole history.
        room: Tokens the prompt may have.
        tools: Told to the model beside the messages.

    Returns:
        What stands in the prompt.
    """
    system, turns = parted(messages)
    names = turn_names(turns)
    conversations = {s.name: s.metadata[CONVERSATION] for s in memory.sources() if CONVERSATION in s.metadata}
    mine = {name for name, conversation in conversations.items() if names[:1] == [conversation]}
    # The last turn is asked now, so it stands in the prompt even where it had flowed before.
    stale = mine - set(names[:-1])
    flowed = max((n + 1 for n, name in enumerate(names[:-1]) if name in mine), default=0)

    def size(start: int) -> int:
        return model.count_tokens([*system, *turns[start:]], tools=tools)

    wanted, last = flowed, len(turns) - 1
    # Where no prompt can hold the question itself nothing flows, and the read will say so.
    if turns and size(flowed) > room and size(last) < model.prompt_room(memory):
        # The first start from which the rest fits: sizes fall with the start.
        wanted = bisect_left(range(last), True, flowed, key=lambda start: size(start) <= room * KEPT_SHARE)
        while turns[wanted]["role"] == "tool" and wanted < last:
            wanted += 1  # a result never loses its call
    flowing = [(n, t) for n, t in zip(names[flowed:wanted], turns[flowed:wanted], strict=True) if "source" not in t]
    if stale or flowing:
        with all_or_nothing(memory) as fork:
            for name in stale:
                fork.forget(name)
            for name, turn in flowing:
                write_turn(model, fork, name, turn, conversation=names[0])
    return [*system, *turns[wanted:]]


def write_turn(model: MPlus, memory: Memory, name: str, turn: Mapping[str, Any], *, conversation: str) -> None:
    """Write a turn that flowed out of the prompt."""
    text = turn["content"] or json.dumps(turn.get("tool_calls") or "")
    metadata = {CONVERSATION: conversation, "role": turn["role"]}
    model.write(memory, f"{turn['role'].capitalize()}: {text}", source=name, metadata=metadata, keep_text=True)


def parted(messages: Messages) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system messages that a history begins with, and its turns."""
    first = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return [dict(message) for message in messages[:first]], [dict(message) for message in messages[first:]]


def of_conversation(messages: Messages) -> Where:
    """What a history may read that shares its memory with others: everything but their turns."""
    names = set(turn_names(parted(messages)[1]))
    # A turn's name says everything that was said before it, so no other history has one of these.
    return lambda name, metadata: CONVERSATION not in metadata or name in names
