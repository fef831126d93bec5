"""The names under which turns stand in memory, and which of them a part of a conversation has.

The name of a turn follows from that of the turn before it. So a history that begins in the middle of its conversation
goes on from the turn in memory after which most of its turns have names that are known, whoever wrote them. A turn
that is no longer there although one after it is, was forgotten.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]

LOOK_AHEAD = 8
"""So many turns may be forgotten, or have no text, before the first that memory has."""


def turn_name(before: str, message: Mapping[str, Any]) -> str:
    """The name of a turn: a hash of the turn and of the name before it, and so of the conversation up to it."""
    said = json.dumps(
        [before.removeprefix("turn-"), message["role"], message["content"], message.get("tool_calls")], sort_keys=True
    )
    return f"turn-{hashlib.sha256(said.encode()).hexdigest()[:24]}"


def before_all(thread: str | None) -> str:
    """What stands for the name before the first turn of a conversation."""
    return "" if thread is None else f"thread {thread}"


def turn_names(messages: Messages, thread: str | None = None) -> list[str]:
    """The name of every turn: its ``source``, else the hash of the conversation's name and of all turns up to it."""
    return names_after(before_all(thread), messages)


def names_after(before: str, turns: Messages) -> list[str]:
    """The names of turns that follow one of this name; a ``source`` counts before the hash."""
    names: list[str] = []
    for turn in turns:
        before = turn.get("source") or turn_name(before, turn)
        names.append(before)
    return names


def names_within(turns: Messages, known: Collection[str], befores: Sequence[str], otherwise: str) -> list[str]:
    """The names of turns that may begin in the middle of their conversation.

    Args:
        turns: The turns, without those of another conversation.
        known: Names of turns that memory has or had.
        befores: Names that they may follow; where several do as well, the first counts.
        otherwise: The name that they follow where none of them is known.
    """
    best, most = names_after(otherwise, turns), 0
    for before in befores:
        if not _leads_to(before, turns[:LOOK_AHEAD], known):
            continue
        names = names_after(before, turns)
        if (count := sum(name in known for name in names)) > most:
            best, most = names, count
        if most >= len(turns) - 1:  # all but the question
            break
    return best


def num_handled(names: Sequence[str], known: Collection[str]) -> int:
    """How many of the first turns memory has or had: all up to the last one that is known."""
    return max((place + 1 for place, name in enumerate(names) if name in known), default=0)


def _leads_to(before: str, turns: Messages, known: Collection[str]) -> bool:
    """Whether one of these turns is known, if they follow one of this name."""
    for turn in turns:
        before = turn_name(before, turn)
        if before in known:
            return True
    return False
