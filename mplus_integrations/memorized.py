"""What is memorized: items as they are written, and what memory holds of them already."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mplus.moments import seconds_of
from mplus_integrations.conversations import GRAPH_MESSAGE, MESSAGE, is_unique
from mplus_integrations.sources import TURNS, Told


class Memorized(NamedTuple):
    """An item as it is written.

    Attributes:
        text: Its text.
        source: The name of its source, if it has one.
        metadata: Its metadata.
        is_own: Whether that name is the item's id, which nothing else has: another text under it is an edit.
        at: When it was said; None: not known.
    """

    text: str
    source: str | None
    metadata: Mapping[str, Any]
    is_own: bool = False
    at: Any = None


class Change(NamedTuple):
    """What changes in memory.

    Attributes:
        gone: Names of sources that are forgotten.
        fresh: What is written.
    """

    gone: set[str]
    fresh: list[Memorized]


def changed(items: Sequence[Memorized], known: Mapping[str, Told]) -> Change:
    """What changes where items are memorized: one under an id of its own takes the place of what it said before.

    Args:
        items: The items; of several under one id the last counts.
        known: The sources of the memory by name.
    """
    last = {item.source: place for place, item in enumerate(items) if item.is_own}
    items = [item for place, item in enumerate(items) if not item.is_own or last[item.source] == place]
    versions = _versions(known) if last else {}
    gone, held = set[str](), set[str]()
    for item in items:
        for name in versions.get(item.source or "", []) if item.is_own else []:
            if _holds(known[name], item):
                held.add(item.source or "")
            else:
                gone.add(name)
    return Change(gone, [item for item in items if not item.is_own or item.source not in held])


def _versions(known: Mapping[str, Told]) -> dict[str, list[str]]:
    """Names of sources by the id that they are versions of.

    A turn is one of its message, and only if no other conversation has that id: a document "1" is none of theirs.
    """
    found: dict[str, list[str]] = {}
    for name, told in known.items():
        message = told.metadata.get(MESSAGE) or told.metadata.get(GRAPH_MESSAGE) or name
        if not _is_turn(told) or is_unique(message):
            found.setdefault(message, []).append(name)
    return found


def _holds(told: Told, item: Memorized) -> bool:
    is_then = item.at is None or told.latest == seconds_of(item.at, "at")
    return told.texts == (item.text,) and (_is_turn(told) or (is_then and told.metadata == item.metadata))


def _is_turn(told: Told) -> bool:
    return GRAPH_MESSAGE in told.metadata or any(key in told.metadata for key in TURNS)
