"""Tools with which an agent remembers, recalls and forgets."""

from itertools import count
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel

from mplus_integrations.langchain.chat_model import MPlusChat
from mplus_integrations.langchain.configs import as_mapping, asked_in


def current_key(chat: MPlusChat, context: Any = None) -> str | None:
    """The memory that the running graph names, by its context or its config; None: the chat's only one."""
    if chat.memory is not None:
        return None
    given = as_mapping(context)
    asked = asked_in(None, {}, metadata=given, store=chat.store, memory_key=chat.memory_key, by_thread=True)
    found = asked.get("memory_key")
    return chat.memory_key if found is None else str(found)


def memory_tools(chat: MPlusChat) -> list[BaseTool]:
    """Tools ``remember``, ``recall`` and ``forget`` for an agent, on the memory of the present user or thread."""
    notes = Notes(chat)
    with_arguments = ((notes.remember, Remembered), (notes.recall, Recalled), (notes.forget, Forgotten))
    return [StructuredTool.from_function(function, args_schema=schema) for function, schema in with_arguments]


class Remembered(BaseModel):
    """Arguments of ``remember``."""

    text: str
    source: str | None = None


class Recalled(BaseModel):
    """Arguments of ``recall``."""

    query: str


class Forgotten(BaseModel):
    """Arguments of ``forget``."""

    source: str


class Notes:
    """What the tools do. Methods and named arguments, unlike functions within one, go to another process as they are.

    Args:
        chat: Its memories are used.
    """

    def __init__(self, chat: MPlusChat) -> None:
        self.chat = chat

    def remember(self, text: str, source: str | None = None) -> str:
        """Remember a text for later. The source is a short name for it, if it should have one."""
        key = current_key(self.chat)
        with self.chat.opened(key) as memory:
            name = _free_name(source or "note", set(memory.told()), is_given=bool(source))
        self.chat.memorize(text, source=name, memory_key=key)
        return f"Remembered as {name}."

    def recall(self, query: str) -> str:
        """Find what is remembered about something."""
        with self.chat.opened(current_key(self.chat)) as memory:
            found = self.chat.loaded.search(memory, query, limit=3)
        return "\n".join(f"{s.source}: {' '.join(s.texts)}".strip() for s in found) or "Nothing is remembered."

    def forget(self, source: str) -> str:
        """Forget everything remembered under a source name."""
        gone = self.chat.forget(source, memory_key=current_key(self.chat))
        return f"Forgot {source}." if gone else f"Nothing is remembered as {source}."


def _free_name(wanted: str, taken: set[str], *, is_given: bool) -> str:
    """A name for a note of its own: the wanted one if it is free, else with a number."""
    if is_given and wanted not in taken:
        return wanted
    return next(name for n in count(2 if is_given else 1) if (name := f"{wanted}-{n}") not in taken)
