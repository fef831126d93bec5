"""Histories longer than the window: the oldest turns flow into memory, each once.

A turn is known by a hash of everything said up to it, so the same history is recognised when it comes
back. Turns of the same conversation that the history no longer has (it was edited or went back) are
forgotten.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from mplus import Memory, MPlus

CONVERSATION = "mplus_conversation"
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
        # The last turn is asked now, so it stands in the prompt even where it had flowed before.
        stale = mine - set(names[:-1])
        flowed = max((n + 1 for n, name in enumerate(names[:-1]) if name in mine), default=0)

        def size(start: int) -> int:
            return model.count_tokens([*system, *turns[start:]], tools=tools)

        wanted, last = flowed, len(turns) - 1
        if size(flowed) > room:
            if size(last) >= model.prompt_room(memory):
                return [*system, *turns[flowed:]]  # no prompt can hold the question itself: the read will say so
            # The first start from which the rest fits: sizes fall with the start.
            wanted = bisect_left(range(last), True, flowed, key=lambda start: size(start) <= room * KEPT_SHARE)
            while turns[wanted]["role"] == "tool" and wanted < last:
                wanted += 1  # a result never loses its call
        if stale or wanted > flowed:
            fork = memory.fork()
            for name in stale:
                fork.forget(name)
            for name, turn in zip(names[flowed:wanted], turns[flowed:wanted], strict=True):
                text = turn["content"] or json.dumps(turn.get("tool_calls") or "")
                model.write(
                    fork,
                    f"{turn['role'].capitalize()}: {text}",
                    source=name,
                    metadata={CONVERSATION: names[0], "role": turn["role"]},
                    keep_text=True,
                )
            memory.adopt(fork)
    return [*system, *turns[wanted:]]
