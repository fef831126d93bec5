"""History: states that can be gone back to, what changed between two, and writing one again.

States are immutable and share what is the same, so a snapshot costs nothing until the memory moves on.
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
    """In both, but with other text."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def difference(before: MemoryState, after: MemoryState) -> MemoryDiff:
    """What has to happen to ``before`` to have the sources of ``after``."""
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
    """The state from which the least of ``ledger`` has yet to be written; the first is always one.

    Args:
        bases: Known states, the empty one first.
        ledger: What is to have been written.
        pinned: Sources that retention is to have spared.
    """
    best, *others = bases
    for base in others:
        known = base.ledger
        if known is None or not base.replayable or base.pinned != pinned or not begins(known, ledger):
            continue
        if len(known) > len(best.ledger or ()):
            best = base
    return best
