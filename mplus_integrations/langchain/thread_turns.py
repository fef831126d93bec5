"""Which turns in memory are a thread's own, and which of them a run forgets and writes.

Applications choose the ids of messages and often count them anew in every thread, and other sources may have the same
names. So a turn takes the place of a turn of its own thread, and of nothing else.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

from mplus import Source
from mplus_integrations.conversations import GRAPH_MESSAGE, is_note, is_unique
from mplus_integrations.langchain.runs import Run


class Change(NamedTuple):
    """What changes in memory.

    Attributes:
        gone: Names of the turns that are forgotten.
        fresh: The name under which each new message is written, by its id.
    """

    gone: set[str]
    fresh: dict[str, str]


class ThreadTurns:
    """The turns in a memory that a run knows by the ids of their messages.

    A turn has the id of its message as its name where that is free, else a hash. Without a thread an id proves that a
    message is an earlier one only if no other conversation has it: "msg-1" with another text is another message.

    Args:
        run: The run.
        known: The sources of the memory by name.
    """

    def __init__(self, run: Run, known: Mapping[str, Source]) -> None:
        self.run, self.known = run, known
        self._names: dict[str, list[str]] = {}
        for name, source in known.items():
            if run.knows(source):
                self._names.setdefault(message_of(source), []).append(name)

    def changed(self, said: Mapping[str, str], gone: set[str]) -> Change:
        """What changes where messages are said and turns are taken back.

        Args:
            said: Texts by the ids of their messages.
            gone: Names of turns that are taken back.
        """
        edited = {name for m, text in said.items() for name in self._proven(m) if text not in self.known[name].texts}
        noted = {message for message in said if is_unique(message) and self._is_note(message)}
        gone = gone | edited | {message for message in noted if self.known[message].texts != (said[message],)}
        fresh = {m: self._name(m, text, gone) for m, text in said.items() if not self._holds(m, text, gone)}
        return Change(gone, fresh)

    def of_messages(self, messages: Collection[str]) -> set[str]:
        """Names of turns of these messages that the run or an earlier one of its graph has written."""
        names = {name for message in messages for name in self._proven(message)}
        return {name for name in names if self.run.has_written(self.known[name])}

    def of_others(self, messages: Collection[str]) -> set[str]:
        """Names of turns of all other messages that the run or an earlier one of its graph has written."""
        written = {name: source for name, source in self.known.items() if self.run.has_written(source)}
        return {name for name, source in written.items() if message_of(source) not in messages}

    def _proven(self, message: str) -> list[str]:
        """Names of the turns that are earlier versions of a message."""
        return self._names.get(message, []) if self.run.thread is not None or is_unique(message) else []

    def _holds(self, message: str, text: str, gone: Collection[str]) -> bool:
        """Whether memory has a message already, as a turn or as a note that ``memorize`` has made of it."""
        if any(text in self.known[name].texts and name not in gone for name in self._names.get(message, [])):
            return True
        return self._is_note(message) and self.known[message].texts == (text,)

    def _is_note(self, message: str) -> bool:
        """Whether ``memorize`` has made a note of a message."""
        noted = self.known.get(message)
        return noted is not None and is_note(noted) and GRAPH_MESSAGE not in noted.metadata

    def _name(self, message: str, text: str, gone: Collection[str]) -> str:
        if message not in self.known or message in gone:
            return message
        said = json.dumps([self.run.thread, self.run.graph, message, text])
        return f"turn-{hashlib.sha256(said.encode()).hexdigest()[:24]}"


def message_of(source: Source) -> str:
    """The id of the message of a turn; turns of earlier versions have it as their name."""
    return str(source.metadata.get(GRAPH_MESSAGE, source.name))
