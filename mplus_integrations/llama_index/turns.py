"""The names under which an ``MPlusMemory`` writes its turns, and which names in memory are its own."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from mplus_integrations.conversations import THREAD, TURN, by_message, turns_in
from mplus_integrations.llama_index.messages import ROLES, Turn, as_chat, id_of, spoken
from mplus_integrations.sources import Told
from mplus_integrations.turn_names import before_all, names_within, num_handled, turn_name


def as_turn(
    message: ChatMessage, text: str, before: str, written: Mapping[str, tuple[str, ...]], *, is_new: bool
) -> Turn:
    """A message under the name that it has in memory, else one that follows from all that was said.

    Args:
        message: The message.
        text: Its text, as it is written.
        before: The name of the turn before it.
        written: Texts in memory by name.
        is_new: Whether it is said now, even if it was said before.
    """
    name = message.source if isinstance(message, Turn) else ""
    if is_new or written.get(name) != (text,):
        name = turn_name(before, {"role": ROLES[message.role], "content": text})
        name = free_name(name, written) if is_new else name
    return _called(name, message)


def _called(name: str, message: ChatMessage) -> Turn:
    turn = Turn(role=message.role, blocks=list(message.blocks), source=name)
    turn.additional_kwargs = dict(message.additional_kwargs)
    return turn


def as_left(
    messages: Sequence[ChatMessage],
    known: Mapping[str, Told],
    conversation_id: str,
    *,
    after: str | None,
    handled: Collection[str],
) -> tuple[list[Turn], list[Turn]]:
    """Messages that have left the prompt of a conversation, and those of them that were never in memory.

    An engine may have written some of them already, when it read the conversation as memory.

    Args:
        messages: The messages.
        known: The sources of the memory by name.
        conversation_id: The conversation.
        after: The name of the message that left before them; None: unknown, as after a restart.
        handled: Names of turns that memory has or had.
    """
    said = turns_in(known, conversation_id)
    later = said[said.index(after) + 1 :] if after in said else said
    befores = [*reversed(later), *handled, before_all(conversation_id)] if after is None else [after, *reversed(later)]
    otherwise = after or (said[-1] if said else before_all(conversation_id))
    chat = [{**as_chat(message), "source": None} for message in messages]  # as an engine names them
    names = names_within(chat, {*later, *handled}, befores, otherwise)
    turns = [_called(name, message) for name, message in zip(names, messages, strict=True)]
    return turns, turns[num_handled(names, {*later, *handled}) :]


def free_name(name: str, taken: Mapping[str, Any]) -> str:
    """The name, with a number if it is taken: a message that is said again is written again."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def of_conversation(known: Mapping[str, Told], conversation_id: str | None) -> set[str]:
    """Names of the turns in memory that are a conversation's by its name; none where it has no name."""
    if conversation_id is None:
        return set()
    about = {name: told.metadata for name, told in known.items()}
    return {name for name, data in about.items() if TURN in data and data.get(THREAD) == conversation_id}


def earlier_place(message: ChatMessage, history: Sequence[Turn]) -> int | None:
    """Where a history has an earlier version of a message; None: nowhere.

    A question and its answer may share an id, and are none of each other.
    """
    name, text = message.additional_kwargs.get("id"), spoken(message)
    source = message.source if isinstance(message, Turn) else ""
    for place, turn in enumerate(history):
        is_same = (source and turn.source == source) or (name and turn.additional_kwargs.get("id") == name)
        if is_same and turn.role == message.role and spoken(turn) != text:
            return place
    return None


def earlier_versions(turns: Sequence[Turn], known: Mapping[str, Told], conversation_id: str | None) -> set[str]:
    """Names of earlier versions of turns, which an earlier process may have written."""
    if not any(map(id_of, turns)):
        return set()
    versions = by_message(known, conversation_id)
    found = {(name, ROLES[turn.role]) for turn in turns for name in versions.get(id_of(turn) or "", [])}
    return {name for name, role in found if known[name].metadata.get("role") == role} - {t.source for t in turns}


def forgettable(turns: Sequence[Turn]) -> set[str]:
    """Names of turns that no other conversation may have said too."""
    return {turn.source for turn in turns if not turn.is_shared}
