"""What is memorized: items as they are written, and what memory holds of them already.

Notes, documents and messages of each role have names of their own: where a name is taken by another kind, the kind is
added to it, as in "7 (document)".
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mplus import Memory
from mplus.moments import seconds_of
from mplus_integrations.conversations import GRAPH_MESSAGE, MESSAGE, is_unique
from mplus_integrations.sources import MEMORIZED, NAMED, TURNS, Told

NOTE = "note"
"""The kind of what somebody has named: several texts of one name stand side by side."""
DOCUMENT = "document"
"""The kind of documents that have an id of their own."""


class Memorized(NamedTuple):
    """An item as it is written.

    Attributes:
        text: Its text.
        source: The name of its source, if it has one.
        metadata: Its metadata.
        is_own: Whether that name is the item's id, which nothing else of its kind has: another text under it is an
            edit.
        kind: What it is: a note, a document with an id, or a message, whose kind is its role.
        at: When it was said; None: not known.
    """

    text: str
    source: str | None
    metadata: Mapping[str, Any]
    is_own: bool = False
    kind: str = NOTE
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
        items: The items; of several of a kind under one id the last counts.
        known: The sources of the memory by name.
    """
    last = {(item.source, item.kind): place for place, item in enumerate(items) if item.is_own}
    items = [item for n, item in enumerate(items) if not item.is_own or last[item.source, item.kind] == n]
    versions = _versions(known) if last else {}
    gone, fresh = set[str](), list[Memorized]()
    for item in items:
        held = _is_old(item, known)
        for name in versions.get((item.source or "", item.kind), []) if item.is_own else []:
            if _holds(known[name], item):
                held = True
            else:
                gone.add(name)
        if not held:
            fresh.append(item)
    return Change(gone, _named(fresh, {name: kind_of(name, told) for name, told in known.items() if name not in gone}))


def called(memory: Memory, name: str) -> list[str]:
    """The sources that go by a name: the one that has it, and those whose kind was added to it."""
    return [found for found, told in memory.told().items() if name in (found, told.metadata.get(NAMED))]


def kind_of(name: str, told: Told) -> str:
    """What a source of a name is. Of earlier days only messages are known by their name; documents count as notes."""
    is_message = _is_turn(told) or is_unique(name)
    return told.metadata.get(MEMORIZED) or (told.metadata.get("role") if is_message else None) or NOTE


def _named(items: Sequence[Memorized], kinds: dict[str, str]) -> list[Memorized]:
    """Items under names that are free or of their own kind."""
    found: list[Memorized] = []
    for item in items:
        name, marks = item.source, {} if item.kind == NOTE or item.source is None else {MEMORIZED: item.kind}
        if name is not None and kinds.setdefault(name, item.kind) != item.kind:
            name, marks = f"{name} ({item.kind})", {**marks, NAMED: name}
        found.append(item._replace(source=name, metadata={**item.metadata, **marks}))
    return found


def _versions(known: Mapping[str, Told]) -> dict[tuple[str, str], list[str]]:
    """Names of sources by the id that they are versions of, and their kind.

    A turn is one of its message, and only if no other conversation has that id: a document "1" is none of theirs.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name, told in known.items():
        about = told.metadata
        message = about.get(MESSAGE) or about.get(GRAPH_MESSAGE) or about.get(NAMED) or name
        if not _is_turn(told) or is_unique(message):
            found.setdefault((message, kind_of(name, told)), []).append(name)
    return found


def _is_old(item: Memorized, known: Mapping[str, Told]) -> bool:
    """Whether a document is there as one of earlier days, which is told from a note by nothing but what it says."""
    if item.kind != DOCUMENT or item.source is None or item.source not in known:
        return False
    told = known[item.source]
    return kind_of(item.source, told) == NOTE and _holds(told, item)


def _holds(told: Told, item: Memorized) -> bool:
    is_then = item.at is None or told.latest == seconds_of(item.at, "at")
    about = {key: value for key, value in told.metadata.items() if key not in (MEMORIZED, NAMED)}
    return told.texts == (item.text,) and (_is_turn(told) or (is_then and about == item.metadata))


def _is_turn(told: Told) -> bool:
    return GRAPH_MESSAGE in told.metadata or any(key in told.metadata for key in TURNS)
