"""``History``: the present state of a memory and the snapshots that it can be rolled back to."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from mplus.config import MemoryConfig
from mplus.errors import LedgerMissingError, MemoryLimitError
from mplus.memory.forgetting import within_age_limits, without_source
from mplus.memory.ledger import LedgerEntry, Redaction
from mplus.memory.snapshots import Snapshot, latest_base
from mplus.memory.state import MemoryState
from mplus.progress import Progress
from mplus.storage.manifest import MAX_SNAPSHOTS

Replay = Callable[[MemoryState, LedgerEntry], MemoryState]
"""Gives the state after an entry of a ledger has been written into a state once more."""


@dataclass(frozen=True)
class History:
    """A value: what changes a history gives another one, which shares all that is equal.

    Attributes:
        state: The present state.
        snapshots: In the order in which they were made.
    """

    state: MemoryState
    snapshots: tuple[Snapshot, ...] = ()

    def snapshot(self, name: str) -> Snapshot:
        """The snapshot of an id.

        Raises:
            ValueError: There is none.
        """
        for snapshot in self.snapshots:
            if snapshot.id == name:
                return snapshot
        known = ", ".join(f"{s.id!r} ({s.label})" if s.label else repr(s.id) for s in self.snapshots[-4:]) or "none"
        raise ValueError(f"snapshot={name!r}: this memory has no such snapshot; its latest are: {known}.")

    def with_snapshot(self, label: str) -> "History":
        """With a snapshot of the present state, as the last one.

        Raises:
            MemoryLimitError: There are too many snapshots.
        """
        if len(self.snapshots) >= MAX_SNAPSHOTS:
            raise MemoryLimitError(
                f"snapshot({label!r:.40}): this memory has {len(self.snapshots):,} snapshots, which is the most. "
                "Discard some: memory.discard(memory.snapshots[0].id)."
            )
        return replace(self, snapshots=(*self.snapshots, Snapshot(self.state, label)))

    def without_snapshot(self, name: str) -> "History":
        """Without the snapshot of an id.

        Raises:
            ValueError: There is none.
        """
        dropped = self.snapshot(name)
        return replace(self, snapshots=tuple(s for s in self.snapshots if s is not dropped))

    def within_age_limits(self, config: MemoryConfig, now: float) -> "History":
        """Without tokens that are past the age limit at ``now``; states and snapshots that have none stay the same."""
        state, snapshots = within_age_limits(self.state, config, now), self.snapshots
        states = [within_age_limits(s.state, config, now) for s in snapshots]
        if any(younger is not s.state for younger, s in zip(states, snapshots, strict=True)):
            shared = [younger.sharing_rooms(state) for younger in states]
            snapshots = tuple(replace(s, state=t) for s, t in zip(snapshots, shared, strict=True))
        return History(state, snapshots)

    def without_source(self, config: MemoryConfig, redaction: Redaction) -> "History":
        """Without any token of a source; later chunks stay as they were written."""
        state = without_source(self.state, config, redaction)
        snapshots = [replace(s, state=without_source(s.state, config, redaction)) for s in self.snapshots]
        return self._forgotten(state, tuple(snapshots))

    def rebuilt(
        self, redaction: Redaction, replay: Replay, *, empty: MemoryState, progress: Progress | None
    ) -> "History":
        """As if a source had never been written.

        Args:
            redaction: Takes the source out of ledgers.
            replay: Writes entries of ledgers again.
            empty: The state of the memory before anything was written.
            progress: Receives the text tokens written again so far and in total.

        Raises:
            LedgerMissingError: A state has the source, and no ledger.
        """

        def is_clean(state: MemoryState) -> bool:
            return state.replayable and state.source_number(redaction.source) is None

        bases = [empty, *(s.state for s in self.snapshots if is_clean(s.state))]
        done = 0

        def clean(state: MemoryState) -> MemoryState:
            nonlocal done
            if is_clean(state):
                return state
            if state.ledger is None:
                raise LedgerMissingError(
                    f"forget({redaction.source!r}, rebuild=…): what was written into this memory was not kept, so it "
                    "cannot be written again. Forget without rebuild, or make memories with MemoryConfig(ledger=True)."
                )
            ledger, pinned = redaction(state.ledger), state.pinned - {redaction.source}
            again = latest_base([replace(bases[0], pinned=pinned), *bases[1:]], ledger, pinned)
            left = ledger[len(again.ledger or ()) :]
            total = done + sum(entry.num_tokens for entry in left)
            for entry in left:
                again = replay(again, entry)
                done += entry.num_tokens
                if progress is not None:
                    progress(done, total)
            bases.append(again)
            return again

        # Shorter ledgers first: each state is a base for later states that continue it.
        taken = sorted(self.snapshots, key=lambda s: len(s.state.ledger or ()))
        again = {s.id: replace(s, state=clean(s.state)) for s in taken}
        return self._forgotten(clean(self.state), tuple(again[s.id] for s in self.snapshots))

    def _forgotten(self, state: MemoryState, snapshots: tuple[Snapshot, ...]) -> "History":
        """What is left. What was made of a forgotten text may be held for any state, so all begin with nothing."""
        states = zip(snapshots, self.snapshots, strict=True)
        if state is self.state and all(left.state is before.state for left, before in states):
            return self
        state = state.cooled()
        return History(state, tuple(replace(s, state=s.state.sharing_rooms(state)) for s in snapshots))
