"""Snapshots of a memory, the difference between two states, and the best snapshot to rebuild a state from.

States are immutable and share equal parts, so a snapshot takes no room until the memory changes.
"""

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from mplus.memory.ledger import Ledger, begins
from mplus.memory.state import MemoryState


@dataclass(frozen=True)
class Snapshot:
    """A state of a memory that it can be rolled back to."""

    state: MemoryState = field(repr=False)
    label: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    created: float = field(default_factory=time.time)
    """Unix time."""


class MemoryDiff(NamedTuple):
    """How the sources of one memory differ from those of another, by name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    """Sources that are in both, with different text."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def difference(before: MemoryState, after: MemoryState) -> MemoryDiff:
    """The sources that ``after`` has added, removed and changed compared with ``before``."""
    old, new = (
        {s.name: (s.first_written, s.text_tokens) for s in state.sources if not s.forgotten}
        for state in (before, after)
    )
    return MemoryDiff(
        tuple(name for name in new if name not in old),
        tuple(name for name in old if name not in new),
        tuple(name for name in new if name in old and new[name] != old[name]),
    )


def latest_base(bases: Iterable[MemoryState], ledger: Ledger, pinned: frozenset[str]) -> MemoryState:
    """Of the known states, the one after which the fewest entries of ``ledger`` have to be written again.

    The first, empty state always qualifies.

    Args:
        bases: Known states, the empty one first.
        ledger: The entries that the rebuilt state has to contain.
        pinned: Sources that age limits, capacity and disuse do not remove.
    """
    best, *others = bases
    for base in others:
        known = base.ledger
        if known is None or not base.replayable or base.pinned != pinned or not begins(known, ledger):
            continue
        if len(known) > len(best.ledger or ()):
            best = base
    return best
