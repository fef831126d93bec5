"""Sources of a memory: what kind each is, which names are free, and which items have text to write."""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID

from mplus import Memory
from mplus.moments import seconds_of

logger = logging.getLogger(__name__)
Item = TypeVar("Item")

DOCUMENT = "mplus_document"
"""Metadata key of sources that are documents of a LangChain vector store."""
KINDS = {
    DOCUMENT: "a document of a vector store",
    "mplus_node": "a node of an index",
    "mplus_item": "an item of a LangGraph store",
    "mplus_conversation": "a turn of a conversation",
    "mplus_thread": "a turn of a thread",
    "mplus_turn": "a turn of a conversation",
}
"""What a source is, by the metadata key that marks it; without one it is a note."""
TURNS = ("mplus_conversation", "mplus_thread", "mplus_turn")
MEMORIZED = "mplus_memorized"
"""Metadata key of documents and messages that were memorized under their ids; its value is their kind."""
NAMED = "mplus_named"
"""Metadata key of notes whose name was taken by another kind: the name that they were given."""
MARK = "mplus_"
"""Begins the metadata keys that say what a source is; a user's metadata has none of them."""
NODE = "mplus_node"
"""Metadata key of sources that are nodes of a LlamaIndex index; its value names their document."""
TIMES = ("timestamp", "created_at")
"""Keys under which messages have the time at which they were said."""
LEAST_MILLISECONDS = 1e11
"""A noted number from here on is in milliseconds: in seconds it would be the year 5138."""
HEADING = re.compile(r" {0,3}#{1,6}([ \t].*)?|<h([1-6])\b[^>]*>.*</h\2>\s*", re.IGNORECASE)
UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*")


class Told(Protocol):
    """What a memory was told under a name."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Its metadata."""
        ...

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that were kept."""
        ...

    @property
    def latest(self) -> float | None:
        """Unix time at which its latest text was said."""
        ...


def without_marks(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A user's part of the metadata of a source."""
    return {key: value for key, value in metadata.items() if not key.startswith(MARK)}


def refuse_marks(metadata: Mapping[str, Any], of: str) -> None:
    """Refuse metadata that would make a source of another kind of it, such as a turn of somebody's conversation.

    Raises:
        ValueError: A key begins with "mplus_".
    """
    for key in metadata:
        if isinstance(key, str) and key.startswith(MARK):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"Metadata {key!r:.60} of {of}: keys that begin with {MARK!r} say what a source is, and are not "
                "taken from outside. Leave it out, or give it another name."
            )


def is_blank(text: str) -> bool:
    """Whether a text has no visible character: spaces, control characters and marks without width are none."""
    return all(one.isspace() or unicodedata.category(one) in ("Cc", "Cf") for one in text)


def is_heading(text: str) -> bool:
    """Whether a text is nothing but headings, as Markdown and HTML have them."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 2 and UNDERLINE.fullmatch(lines[1]):
        return True
    return bool(lines) and all(HEADING.fullmatch(line) for line in lines)


def headings_of(memory: Memory) -> set[str]:
    """Names of documents and nodes that are a heading alone: it announces an answer and is none."""
    return {
        source.name
        for source in memory.sources()
        if source.texts
        and (DOCUMENT in source.metadata or NODE in source.metadata)
        and is_heading("\n".join(source.texts))
    }


def time_of(item: object) -> Any:
    """When a message was said, by what its framework or a provider noted with it; None: nothing is known.

    Numbers that are too large for seconds are milliseconds; what is no time at all counts as unknown, and the log says
    so.
    """
    for place in ("additional_kwargs", "response_metadata"):
        about = getattr(item, place, None)
        if isinstance(about, Mapping):
            noted = cast("Mapping[str, Any]", about)
            found = next((noted[key] for key in TIMES if noted.get(key) is not None), None)
            if found is not None:
                return _as_time(found)
    return None


def _as_time(noted: Any) -> Any:
    is_number = isinstance(noted, int | float) and not isinstance(noted, bool)
    given = noted / 1000 if is_number and abs(noted) >= LEAST_MILLISECONDS else noted
    try:
        seconds_of(given, "timestamp")
    except ValueError as error:
        logger.warning("A message is written without its time: %s", error)
        return None
    return given


def named(name: object) -> str | None:
    """An id or a source as text; None and empty ids stay None.

    Raises:
        ValueError: It is neither text nor a number.
    """
    if name is None or name == "":
        return None
    if isinstance(name, bool) or not isinstance(name, str | int | UUID):
        raise ValueError(f"name {name!r:.60} is {type(name).__name__}: expected text, a number or a UUID.")
    return str(name)


def checked_name(name: object, what: str) -> str:
    """A name by which something is found, as text.

    Raises:
        ValueError: It is neither text, a number nor a UUID, or empty.
    """
    found = named(name)
    if found is None:
        raise ValueError(f"{what}={name!r}: expected text, a number or a UUID.")
    return found


def refuse_others(memory: Memory, names: Iterable[str], kind: str | None = None) -> None:
    """Refuse names that are taken by sources of another kind, which would be replaced or mixed up.

    Args:
        memory: The memory.
        names: Names to write under.
        kind: Metadata key of what is written; None: notes, beside which turns may stand.

    Raises:
        ValueError: A name is taken.
    """
    wanted = set(names)
    for name, told in memory.told().items():
        if name not in wanted:
            continue
        found = next((key for key in KINDS if key in told.metadata), None)
        if found != kind and not (kind is None and found in TURNS):
            what = "a note" if found is None else KINDS[found]
            raise ValueError(
                f"{name!r:.80} names {what} in this memory: expected a name that is free. Forget that first, or "
                "write under another name or into another memory."
            )


def without_blanks(items: Mapping[str, Item], text_of: Callable[[Item], str]) -> dict[str, Item]:
    """The items that have text; the log names the others.

    Raises:
        ValueError: None of several has text.
    """
    kept = {name: item for name, item in items.items() if not is_blank(text_of(item))}
    blank = [name for name in items if name not in kept]
    if blank and not kept:
        raise ValueError(f"{len(blank)} texts without a visible character ({', '.join(blank[:5])}): nothing to write.")
    if blank:
        logger.warning("Left out, because there is no text in them: %s", ", ".join(blank))
    return kept
