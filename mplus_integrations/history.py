"""Histories: earlier turns are written into memory, each once, and the latest also stand in the prompt.

How many stand there is a property of the model (``MPlus.prompt_turns``). The name of a turn is a hash of the
conversation up to it, so the same history is recognised in the next call. Turns of the same conversation that are
no longer in the history (after an edit or a step back) are forgotten; a history that has just begun forgets nothing.
A turn is not written again if it has a ``source``, under which it was written, or an ``id`` that names a source with
its text.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from mplus import Memory, MPlus, prompt_start, question_place, turn_text
from mplus_integrations.whose_memory import Where, all_or_nothing

CONVERSATION = "mplus_conversation"
KEPT_SHARE = 0.75
"""Share of the room that the prompt takes after turns have been moved into memory because they did not fit."""
OURS = frozenset({"source", "id", "stays"})
"""Keys of a message that are not for the model: the name under which it was written, an id that may be such a name,
and whether a memory chose it for the prompt."""

Messages = Sequence[Mapping[str, Any]]


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
    prompt_turns: int | None = None,
    forgets: bool = True,
) -> list[dict[str, Any]]:
    """Write the earlier turns of a history into memory, and choose those that stand in the prompt.

    Args:
        model: The model, which counts tokens and writes.
        memory: The memory for the turns; changed only if turns are written or forgotten. The caller holds its lock.
        messages: The whole history.
        room: Most tokens of the prompt.
        tools: Tools described in the prompt.
        prompt_turns: How many of the latest turns before the question stand in the prompt; None: as many as fit.
        forgets: Whether turns that the conversation no longer has are forgotten.

    Returns:
        The messages of the prompt. One that is in memory too has its name there as ``source``.
    """
    system, turns = parted(messages)
    known = {source.name: source for source in memory.sources()}
    names, asked = turn_names(turns), question_place(turns)
    mine = {name for name, s in known.items() if CONVERSATION in s.metadata and names[:1] == [s.metadata[CONVERSATION]]}
    # The question is not memory while it is asked. A history of nothing else has no turn that could be an edit:
    # somebody who says "Hello" again does not take back what was said after the last one.
    stale = mine - set(names[:asked]) if forgets and asked else set[str]()
    for place, turn in enumerate(turns):
        source = known.get(turn.get("id", ""))
        if source is not None and source.texts == (turn_text(turn),):
            names[place] = source.name
    written = {name for name in names if name in known and name not in stale} | {t.get("source") for t in turns}
    start = _start(turns, asked, prompt_turns)
    if prompt_turns is None:  # what was moved once is not moved back
        start = max([start, *(n + 1 for n in range(asked) if names[n] in mine)])
    start = _fitting(model, memory, system, turns, start, room, tools)
    fresh = [(names[n], turns[n]) for n in range(start) if names[n] not in written and turn_text(turns[n])]
    if stale or fresh:
        with all_or_nothing(memory) as fork:
            for name in sorted(stale):
                fork.forget(name)
            write_turns(model, fork, fresh, {CONVERSATION: turn_names(turns)[0]})
    standing = [{**t, "source": name} if name in written else t for t, name in zip(turns, names, strict=True)][start:]
    return [*system, *(dict(turn) for turn in turns[:start] if turn["role"] == "system"), *standing]


def _start(turns: Messages, asked: int, prompt_turns: int | None) -> int:
    """The first turn that stands in the prompt if all fit; turns that a memory chose for it stay."""
    start = prompt_start(turns, asked, prompt_turns)
    return min([start, *(n for n in range(asked) if turns[n].get("stays"))])


def _fitting(
    model: MPlus,
    memory: Memory,
    system: Messages,
    turns: Messages,
    start: int,
    room: int,
    tools: Sequence[Mapping[str, Any]] | None,
) -> int:
    """The first turn from ``start`` on that stands in the prompt so that the prompt fits."""

    def size(first: int) -> int:
        kept = [*system, *(t for t in turns[:first] if t["role"] == "system"), *turns[first:]]
        return model.count_tokens([{k: v for k, v in t.items() if k not in OURS} for t in kept], tools=tools)

    last = len(turns) - 1
    # If the last turn alone does not fit, no further turn is moved, and the read raises an error.
    if not turns or size(start) <= room or size(last) >= model.prompt_room(memory):
        return start
    # The first start whose rest fits; bisection works because sizes fall with the start.
    found = bisect_left(range(last), True, start, key=lambda first: size(first) <= room * KEPT_SHARE)
    while turns[found]["role"] == "tool" and found < last:
        found += 1  # a tool result stays with its call
    return found


def write_turns(
    model: MPlus, memory: Memory, turns: Sequence[tuple[str, Mapping[str, Any]]], metadata: Mapping[str, Any]
) -> None:
    """Write turns in one go; those without anything to write are left out.

    Args:
        model: The model that writes.
        memory: The memory.
        turns: Their names and messages.
        metadata: Metadata of all of them, beside the role.
    """
    said = [(name, turn_text(turn), {**metadata, "role": turn["role"]}) for name, turn in turns if turn_text(turn)]
    if said:
        names, texts, abouts = zip(*said, strict=True)
        model.write(memory, texts, source=names, metadata=abouts, keep_text=True)


def parted(messages: Messages) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system messages that a history begins with, and its turns."""
    first = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return [dict(message) for message in messages[:first]], [dict(message) for message in messages[first:]]


def of_conversation(messages: Messages) -> Where:
    """A test of sources for a history that shares its memory with others: it excludes their turns."""
    names = set(turn_names(parted(messages)[1]))
    # A turn's name is a hash of the conversation up to it, so no other conversation has the same name.
    return lambda name, metadata: CONVERSATION not in metadata or name in names
