"""What a process keeps of texts beside its memories, to save work, such as the latest questions.

Nobody knows which memory such a text was said to, so all of it is dropped whenever something is forgotten or deleted.
"""

from typing import Protocol, runtime_checkable
from weakref import WeakValueDictionary


@runtime_checkable
class Traces(Protocol):
    """An object that keeps texts, or what was made of them, for a while."""

    def drop_traces(self) -> None:
        """Drop what is kept; it is made again when it is needed."""
        ...


_OWNERS: WeakValueDictionary[int, Traces] = WeakValueDictionary()


def dropped_when_forgotten(owner: Traces) -> None:
    """Have ``owner.drop_traces()`` called whenever something is forgotten, for as long as ``owner`` lives."""
    _OWNERS[id(owner)] = owner


def drop_traces() -> None:
    """Drop what is kept beside memories, because something was forgotten."""
    for reference in _OWNERS.valuerefs():
        owner = reference()
        if owner is not None:
            owner.drop_traces()
