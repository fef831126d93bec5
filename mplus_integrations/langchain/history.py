"""Histories longer than the window: the oldest turns flow into memory, each once.

A turn is known by a hash of everything said up to it, so the same history is recognised when it comes
back. Turns of the same conversation that the history no longer has (it was edited or went back) are
forgotten.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mplus import Memory, MPlus

CONVERSATION, TURN = "mplus_conversation", "mplus_turn"
KEPT_SHARE = 0.75
"""What stays in the prompt after turns have flowed, as a share of the room there is."""

Messages = Sequence[Mapping[str, Any]]


def turn_names(messages: Messages) -> list[str]:
    """A name for every turn: a hash of it and of all before it."""
    names: list[str] = []
    before = ""
    for message in messages:
        said = json.dumps([before, message["role"], message["content"], message.get("tool_calls")], sort_keys=True)
        before = hashlib.sha256(said.encode()).hexdigest()[:24]
        names.append(f"turn-{before}")
    return names


def fitted(
    model: MPlus, memory: Memory, messages: Messages, *, room: int, tools: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]]:
    """The messages that stand in the prompt; what does not fit any more has been written into memory.

    Args:
        model: For counting and writing.
        memory: Takes the turns; changed only where something flows or is rolled back.
        messages: The whole history.
        room: Tokens the prompt may have.
        tools: Told to the model beside the messages.
    """
    first = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, turns = [dict(m) for m in messages[:first]], [dict(m) for m in messages[first:]]
    if not turns:
        return system
    names = turn_names(turns)
    with memory.writing():
        mine = {s.name for s in memory.sources() if s.metadata.get(CONVERSATION) == names[0]}
        stale = mine - set(names)
        flowed = 0
        while flowed < len(turns) - 1 and names[flowed] in mine:
            flowed += 1
        fits = model.count_tokens([*system, *turns[flowed:]], tools=tools) <= room
        wanted = flowed
        while not fits and wanted < len(turns) - 1:
            wanted += 1
            if turns[wanted]["role"] != "tool":  # a result never loses its call
                rest = model.count_tokens([*system, *turns[wanted:]], tools=tools)
                fits = rest <= room * KEPT_SHARE
        if stale or wanted > flowed:
            fork = memory.fork()
            for name in stale:
                fork.forget(name)
            for name, turn in zip(names[flowed:wanted], turns[flowed:wanted], strict=True):
                text = turn["content"] or json.dumps(turn.get("tool_calls"))
                if text.strip():
                    model.write(
                        fork,
                        f"{turn['role'].capitalize()}: {text}",
                        source=name,
                        metadata={CONVERSATION: names[0], TURN: name, "role": turn["role"]},
                    )
            memory.commit(fork.state)
    return [*system, *turns[wanted:]]
