"""Which turns of a memory are those of a history, and which the history has taken back.

Conversations that share a memory may begin alike, so the text alone does not say whether a history is an earlier one
that was edited, or another one. A turn is forgotten only where it is proven to be taken back: its message comes back
under the same id with other content, or the conversation is known by name and comes back without it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mplus import Memory, Source, question_place, turn_text
from mplus_integrations.sources import KINDS, MEMORIZED, NAMED, TURNS, Told
from mplus_integrations.turn_names import Messages, before_all, names_after, names_within, num_handled, turn_names

CONVERSATION = "mplus_conversation"
"""Metadata key of turns: what tells their history from those that begin otherwise."""
THREAD = "mplus_conversation_id"
"""Metadata key of turns: the name of their conversation, if there is one."""
GRAPH_THREAD = "mplus_thread"
"""Metadata key of turns that an agent's middleware wrote: the id of their LangGraph thread."""
GRAPH_MESSAGE = "mplus_thread_message"
"""Metadata key of turns that an agent's middleware wrote: the id of their message, which may not be their name."""
PART = "mplus_part"
"""Metadata key of turns: the part of an application that asked first with them."""
TURN = "mplus_turn"
"""Metadata key of turns that a memory of LlamaIndex's wrote."""
MESSAGE = "mplus_message"
"""Metadata key of turns: the id of their message, if it has one."""
REPLACED = "mplus_replaces"
"""Metadata key of turns that were written when others were taken back: they stand behind later turns in memory."""

Known = Mapping[str, Source]

UUID = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
RUN = re.compile(r"[0-9a-zA-Z]{16,}")
SWITCH = re.compile(r"[0-9](?=[a-zA-Z])|[a-zA-Z](?=[0-9])")


@dataclass(frozen=True)
class Conversation:
    """What a caller says about the conversation of a history.

    Attributes:
        thread: Its name; None: unknown.
        part: The part of an application that asks, such as a node of a graph; what another one is told is no edit.
        says: Ids of all messages that the application keeps of it, of which a history may bring a few; None: unknown.
        is_alone: Whether every history brings all of its turns along, and reads no others of its memory. What it has
            no longer can then be forgotten without loss: a history that still has it brings it again.
        handled: Names of turns that memory has or had, of a conversation whose first turns leave its history, because
            another writer takes them over; those are not written again, also where they were forgotten. None: a
            history says what there is.
    """

    thread: str | None = None
    part: str = ""
    is_alone: bool = False
    says: frozenset[str] | None = None
    handled: set[str] | None = None

    def metadata(self, root: str, message: Mapping[str, Any], *, replaces: bool = False) -> dict[str, Any]:
        """The metadata of a turn whose history begins with ``root``; it may be written in place of others."""
        about = {
            THREAD: self.thread,
            PART: self.part or None,
            MESSAGE: message.get("id"),
            REPLACED: replaces or None,
        }
        return {CONVERSATION: root, **{key: value for key, value in about.items() if value is not None}}


class Compared(NamedTuple):
    """A history beside what is in memory.

    Attributes:
        names: The name of each turn, in memory or to be written under.
        root: What tells it from histories that begin otherwise; empty if there is no turn.
        mine: Names of turns in memory whose history begins with the same turn.
        stale: Names of turns that are to be forgotten.
        num_handled: How many of the first turns are in memory, or were there and were forgotten.
    """

    names: list[str]
    root: str
    mine: set[str]
    stale: set[str]
    num_handled: int


def turns_of(memory: Memory, conversation: str) -> list[str]:
    """Names of the turns in memory that are of a conversation of that name."""
    return turns_in({source.name: source for source in memory.sources()}, conversation)


def turns_in(known: Mapping[str, Told], conversation: str | None) -> list[str]:
    """Names of the turns that are of a conversation of that name, in the order in which they were written."""
    if conversation is None:
        return []
    about = {name: told.metadata for name, told in known.items()}
    return [name for name, data in about.items() if conversation in (data.get(THREAD), data.get(GRAPH_THREAD))]


def compared(turns: Messages, known: Known, of: Conversation) -> Compared:
    """Compare a history with the turns in memory.

    Args:
        turns: The history without its system messages.
        known: The sources of the memory by name.
        of: What is known about its conversation.
    """
    said = turns_in(known, of.thread)
    names, handled = _names(turns, said, of)
    asked = question_place(turns)
    root, of_message, edited = _root(turns, names, of), by_message(known, of.thread), set[str]()
    of_graphs = _by_graph_message(known, of)
    for place, turn in enumerate(turns):
        versions = [known[name] for name in of_message.get(turn.get("id") or "", [])]
        versions = [one for one in versions if one.metadata.get("role", turn["role"]) == turn["role"]]
        same = [source.name for source in versions if source.texts == (turn_text(turn),)]
        if turn["role"] == "tool" or turn.get("tool_calls"):  # shortened in the prompt to save room, not taken back
            same = same or [source.name for source in versions]
        edited |= {source.name for source in versions if source.name not in same}
        if same and names[place] not in known:
            names[place] = same[0]
        if noted := _noted_as(known, of_graphs, turn):
            names[place] = noted
    mine = {name for name, source in known.items() if root and source.metadata.get(CONVERSATION) == root}
    gone = _gone(mine, names[:asked], known, of) if asked else set[str]()
    return Compared(names, root, mine, edited | gone | (_deleted(turns, known, of) - set(names)), handled)


def _names(turns: Messages, said: Sequence[str], of: Conversation) -> tuple[list[str], int]:
    """The names of turns, and how many of the first ones memory has or had."""
    first, had = before_all(of.thread), of.handled or set[str]()
    known = {*said, *had}
    if of.handled is not None:
        names = names_within(turns, known, [first, *reversed(said), *had], said[-1] if said else first)
        return names, num_handled(names, known)
    names = names_after(first, turns)
    if said and names and names[0] not in known:  # cut off at its beginning
        names = names_within(turns, known, list(reversed(said)), first)
    return names, 0


def _root(turns: Messages, names: Sequence[str], of: Conversation) -> str:
    """What tells a history that begins with these turns from others: the id of the first one's message, else its name.

    The id stays when the message is edited. The last few turns of a history begin with another one.
    """
    message = turns[0].get("id") if turns and not turns[0].get("source") else None
    if message and (of.thread is not None or is_unique(message)):
        return turn_names([{"role": "id", "content": message}], of.thread)[0]
    return names[0] if names else ""


def _gone(mine: set[str], names: Sequence[str], known: Known, of: Conversation) -> set[str]:
    """Turns that the conversation has no longer; none where nothing says that it is the same conversation.

    The question is not memory while it is asked. Nobody asks for what is gone where the history is nothing but a
    question: somebody who says "Hello" again does not take back what was said after the last one.
    """
    said = set(names)
    if of.is_alone:
        return mine - said
    if of.thread is None:
        return set()
    places = {name: place for place, name in enumerate(known)}
    # What has a later turn that is still there was left out to save room.
    later = (name for name in mine & set(names[1:]) if not known[name].metadata.get(REPLACED))
    last = max((places[name] for name in later), default=-1)
    gone = {name for name in mine - said if places[name] > last}
    return {name for name in gone if known[name].metadata.get(PART, "") == of.part}


def _deleted(turns: Messages, known: Known, of: Conversation) -> set[str]:
    """Turns whose messages the application has deleted; none where the history is not the one that it keeps."""
    here = {turn["id"] for turn in turns if turn.get("id")}
    if of.thread is None or of.says is None or not here or not here <= of.says:
        return set()
    about = {name: source.metadata for name, source in known.items() if source.metadata.get(THREAD) == of.thread}
    return {
        name
        for name, data in about.items()
        if data.get(PART, "") == of.part and MESSAGE in data and data[MESSAGE] not in of.says
    }


def by_message(known: Mapping[str, Told], thread: str | None) -> dict[str, list[str]]:
    """Names of turns of a conversation by the id of their message, as far as it tells them from those of others."""
    found: dict[str, list[str]] = {}
    for name, source in known.items():
        is_noted = is_note(source)
        message = source.metadata.get(NAMED, name) if is_noted else source.metadata.get(MESSAGE)
        if message is None or (source.metadata.get(THREAD) != thread and not is_noted):
            continue
        if (thread is not None and not is_noted) or is_unique(message):
            found.setdefault(message, []).append(name)
    return found


def _by_graph_message(known: Known, of: Conversation) -> dict[str, list[Source]]:
    """Turns that an agent's middleware wrote by the id of their message; those of the conversation come first.

    With them are messages that were memorized under another name than their id, since that was taken.
    """
    found: dict[str, list[Source]] = {}
    for source in known.values():
        if (message := source.metadata.get(GRAPH_MESSAGE) or source.metadata.get(NAMED)) is not None:
            found.setdefault(message, []).append(source)
    return {
        message: sorted(several, key=lambda source: source.metadata.get(GRAPH_THREAD) != of.thread)
        for message, several in found.items()
    }


def is_note(source: Told) -> bool:
    """Whether a source is a message that was memorized, or a turn of an agent without a thread."""
    about = source.metadata
    is_message = "role" in about and about.get(MEMORIZED, about["role"]) == about["role"]
    return is_message and not any(key in about for key in (*KINDS, *TURNS))


def is_unique(message_id: str) -> bool:
    """Whether no other conversation has this id: it holds a UUID, or 16 letters and digits in a row, well mixed.

    Ids such as "3" or "message-3" are counted anew in every conversation.
    """
    runs = RUN.findall(message_id)
    return UUID.search(message_id) is not None or any(len(SWITCH.findall(run)) >= 4 for run in runs)


def _noted_as(known: Known, of_graphs: Mapping[str, list[Source]], turn: Mapping[str, Any]) -> str | None:
    """The source with the text of a turn that its id names, as ``memorize`` and an agent's middleware write it."""
    message = turn.get("id") or ""
    found = [*of_graphs.get(message, []), *([known[message]] if message in known else [])]
    return next((source.name for source in found if source.texts == (turn_text(turn),)), None)
