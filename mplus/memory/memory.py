"""``Memory``: what belongs to one conversation or one corpus, and is passed to the model."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from mplus.config import MemoryConfig
from mplus.errors import MemoryMismatchError
from mplus.given import check_kind, refused
from mplus.ids import Id, id_text
from mplus.memory.forgetting import without_expired
from mplus.memory.history import History, Replay
from mplus.memory.ledger import LedgerEntry, Redaction
from mplus.memory.live_state import LiveState
from mplus.memory.periods import Period, within
from mplus.memory.recall_frequencies import recalled
from mplus.memory.saving import load, save
from mplus.memory.snapshots import MemoryDiff, difference
from mplus.memory.sources import Source, listed
from mplus.memory.state import MemoryState, chained
from mplus.memory.stats import MemoryStats, measured
from mplus.moments import Moment, seconds_of
from mplus.progress import Progress, followed
from mplus.storage.address import folder_of, place_of, zip_of
from mplus.storage.encryption import MemoryKey
from mplus.traces import drop_traces


@runtime_checkable
class MemoryMaker(Protocol):
    """The part of a model that loading needs: it makes a new memory of a given layout."""

    def new_memory(self, *, seed: int = 0, config: MemoryConfig | None = None) -> "Memory":
        """A memory in which nothing has been written."""
        ...


@runtime_checkable
class Replays(Protocol):
    """The part of a model that forgetting with a rebuild needs."""

    def replay(self, memory: "Memory", state: MemoryState, entry: LedgerEntry) -> MemoryState:
        """The state after an entry of a ledger has been written once more."""
        ...


class Memory(LiveState):
    """The memory of one conversation or one corpus.

    A value that the model reads and writes but does not own: make one with ``MPlus.new_memory``, pass it
    to ``write`` and ``generate``, and save, fork or throw it away. Reading and writing from several
    threads is safe: a write is seen whole or not at all.

    Attributes:
        state: What it holds at present: an immutable value that later writes do not touch.
        snapshots: Snapshots that ``rollback`` takes, in the order in which they were made.
    """

    def __init__(self, config: MemoryConfig, initial: MemoryState, *, model_fingerprint: str, seed: int = 0) -> None:
        self.model_fingerprint = model_fingerprint
        self.seed = seed
        self.stored_as: Path | None = None
        """Where the store that opened or loaded it keeps it; requests to all such copies take turns as to one."""
        super().__init__(config, initial)

    def generator(self, state: MemoryState) -> torch.Generator:
        """The random generator of the write after ``state``, seeded by the memory's seed and the number of chunks."""
        generator = torch.Generator()
        return generator.manual_seed((self.seed * 1_000_003 + state.num_chunks * 7_919 + 1) % 2**63)

    @property
    def fingerprint(self) -> str:
        """A hash that changes exactly when the result of a read can change, of one without ``since`` or ``as_of``."""
        state = self.state
        return chained(state.digest, state.tail.input_ids)

    # --- whole-memory operations ------------------------------------------------------------------

    def fork(self) -> "Memory":
        """An independent memory with the same content and history; both share tensors until one of them changes."""
        fork = Memory(self.config, self._initial, model_fingerprint=self.model_fingerprint, seed=self.seed)
        with self._lock:
            fork._history = self._present()
            fork._clock, fork._saved_clock = self._clock, self._saved_clock
        return fork

    def as_of(self, time: Moment) -> "Memory":
        """What the memory held at a time, as a memory of its own without snapshots; this one is not changed.

        A text counts from when it was said (``write(..., at=…)``), else from when it was written. In the chunk layout
        reads, searches and sources are those of a memory into which nothing later was ever written. Short texts that
        were written at several times, without ``at``, and joined to one chunk count from the last of them. What was
        forgotten since does not come back; snapshots keep what was dropped otherwise.

        Args:
            time: A datetime, a date (its whole day), ISO 8601 text or Unix seconds; without a zone, in UTC.

        Raises:
            ValueError: ``time`` is no moment.
        """
        period, fork = Period(until=seconds_of(time, "as_of", end=True)), self.fork()
        fork.restore(within(fork.state, self.config, period, purged=True), ())
        return fork

    def __copy__(self) -> "Memory":
        return self.fork()

    def __deepcopy__(self, memo: dict[int, object]) -> "Memory":
        return self.fork()

    def __getstate__(self) -> object:
        raise ValueError(
            "A Memory is not pickled: its file is its portable form. Use memory.export(file) and Memory.load(file, "
            "model), or a MemoryStore."
        )

    def is_unchanged_since(self, fork: "Memory") -> bool:
        """Whether state and history are still those that ``fork`` was made from."""
        check_memory(fork, "fork")
        return self.state is fork.state and self.snapshots is fork.snapshots

    def adopt(self, fork: "Memory") -> None:
        """Take over all changes of a fork at once, its history and its way of recall included.

        Raises:
            MemoryMismatchError: The fork has another model, layout or seed.
        """
        check_memory(fork, "fork")
        alike = self.config.model_copy(update={"recall": fork.config.recall})
        ours, theirs = (self.model_fingerprint, alike, self.seed), (fork.model_fingerprint, fork.config, fork.seed)
        if ours != theirs:
            raise MemoryMismatchError(
                f"adopt: {fork!r} has another model, layout or seed than this memory. Pass what fork() made."
            )
        with fork.writing():
            history, clock = fork._present(), fork.clock
        with self.writing():
            self._history, self._clock = history, clock
            self.config, self._initial = fork.config, fork._initial

    def reset(self) -> None:
        """Make the memory empty again: nothing written, no snapshots."""
        with self._lock:
            self._waiting = None
            self._history = History(self._initial.cooled())
        drop_traces()

    # --- history ----------------------------------------------------------------------------------

    def snapshot(self, label: str = "") -> str:
        """Keep the present state for ``rollback``; it is saved with the memory and shares unchanged tensors with it.

        Args:
            label: Anything that helps to recognise it in ``snapshots``.

        Returns:
            Its id, for ``rollback`` and ``diff``.

        Raises:
            MemoryLimitError: The memory has too many snapshots.
            ValueError: ``label`` is no text.
        """
        check_kind("label", label, str, "text")
        with self._lock:
            self._history = self._present().with_snapshot(label)
            return self._history.snapshots[-1].id

    def rollback(self, snapshot: str) -> None:
        """Return to the state of a snapshot. All snapshots stay, later ones too, so this can be undone.

        Sources forgotten since then do not come back, because forgetting removes them from snapshots too.

        Raises:
            ValueError: There is no snapshot of that id.
        """
        with self._lock:
            history = self._present()
            self._history = replace(history, state=history.snapshot(snapshot).state)

    def discard(self, snapshot: str) -> None:
        """Drop a snapshot and the tensors that only this snapshot holds.

        Raises:
            ValueError: There is no snapshot of that id.
        """
        with self._lock:
            self._history = self._present().without_snapshot(snapshot)

    def diff(self, before: "str | Memory") -> MemoryDiff:
        """The sources that were added, removed and changed since ``before``.

        Args:
            before: Id of a snapshot of this memory, or another memory, such as a fork.

        Raises:
            ValueError: There is no snapshot of that id.
        """
        earlier = before.state if isinstance(before, Memory) else self._present().snapshot(before).state
        return difference(earlier, self.state)

    # --- forgetting and keeping -------------------------------------------------------------------

    def forget(self, source: Id, *, rebuild: Replays | None = None, progress: bool | Progress | None = None) -> int:
        """Remove a source from every pool, tier and snapshot, for good; from disk with the next save.

        In the chunk layout reads of the memory then equal those of a memory that never had the source (chunks
        already moved to long-term memory keep its stored precision). In the token layout later chunks attended to
        earlier ones when they were written, so they may hold traces of the source: ``rebuild`` removes those.

        Args:
            source: Name of the source; numbers and UUIDs count as their text.
            rebuild: The model. All texts written since the last snapshot before the source are then written again
                without it, so that every read equals, bit for bit, that of a memory that never had the source.
                This takes as long as writing those texts did.
            progress: True shows a bar; a callback receives the text tokens written again so far and in total.

        Returns:
            How many memory tokens were removed (in the token layout, the mean over layers); 0 if there is
            no such source.

        Raises:
            ValueError: ``rebuild`` is not a model, or the name is of another type.
            LedgerMissingError: ``rebuild`` is given, but the memory keeps no ledger.
            MemoryMismatchError: ``rebuild`` is another model than the memory's own.
        """
        source = id_text(source, "source")
        if rebuild is not None and not isinstance(rebuild, Replays):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"rebuild={rebuild!r:.60}: expected the model that writes this memory, as in "
                f"forget({source!r}, rebuild=model)."
            )
        with self._lock:
            if rebuild is None and not self._has_source(source):
                return 0  # nothing is asked for, so what waits goes on waiting
            before, redaction = self._present(), Redaction(source)
            if rebuild is None:
                self._history = before.without_source(self.config, redaction)
            else:
                replay: Replay = lambda state, entry: rebuild.replay(self, state, entry)
                with followed(progress, "writing again", "tok") as told:
                    empty = self._initial.cooled()
                    self._history = before.rebuilt(redaction, replay, empty=empty, progress=told)
        drop_traces()
        return sum(s.memory_tokens + s.tail_tokens for s in listed(before.state) if s.name == source)

    def pin(self, source: Id) -> None:
        """Keep a source regardless of age limits, capacity and disuse, until ``unpin``; ``forget`` still removes it.

        Raises:
            ValueError: There is no such source, or the memory keeps no long-term memory.
        """
        with self._lock:
            state, source = self.state, id_text(source, "source")
            if state.source_number(source) is None:
                known = ", ".join(repr(s.name) for s in state.sources if not s.forgotten) or "none"
                raise ValueError(f"pin({source!r:.60}): this memory has no such source; it has: {known:.200}.")
            if not self.config.long_term_capacity:
                raise ValueError(
                    f"pin({source!r}): long_term_capacity=0 keeps nothing that leaves short-term memory. Use a memory "
                    "with a capacity."
                )
            self.commit(replace(state, pinned=state.pinned | {source}))

    def unpin(self, source: Id) -> None:
        """Undo ``pin``: the source can be forgotten again, and its tokens past the age limit are removed at once."""
        with self._lock:
            state = replace(self.state, pinned=self._history.state.pinned - {id_text(source, "source")})
            self.commit(without_expired(state, self.config) if self.config.has_age_limit else state)

    def note_recalled(self, births: tuple[torch.Tensor, ...]) -> None:
        """Raise the recall frequency of long-term tokens that a read used.

        ``births`` holds, per track, how many tokens had been written when each recalled token was. That number
        never changes, so a write or a consolidation in between does not matter.
        """
        gain = self.config.recall_frequency_gain
        if gain and any(map(len, births)):
            with self._lock:
                self.commit(recalled(self._history.state, births, gain))

    def drop_latents(self) -> None:
        """Drop keys and values that were made of token ids, also those of snapshots; reads make them again.

        Forks share them until something is forgotten. Does nothing for ``long_term_keep="latents"``, whose keys and
        values are all there is.
        """
        history = self._present()
        for state in (history.state, *(snapshot.state for snapshot in history.snapshots)):
            for track in state.tracks:
                if track.warm is not None:
                    track.warm.drop()

    # --- on disk ----------------------------------------------------------------------------------

    def save(self, place: str | Path, *, key: MemoryKey | None = None) -> None:
        """Save into a folder: atomic, and only what changed since the last save there.

        Args:
            place: A folder, or an ``fsspec`` url such as "s3://bucket/alice".
            key: Key to encrypt with; needs the ``cryptography`` package.

        Raises:
            MemorySaveError: The folder cannot be written or the disk is full; an earlier save is intact.
            MemoryLockedError: Another save into the same folder took too long.
            MemoryConflictError: Another writer saved behind the same url meanwhile; what it saved is intact.
        """
        save(self, folder_of(place), key=key)

    def export(self, place: str | Path, *, key: MemoryKey | None = None) -> None:
        """Write everything into one portable file; ``Memory.load`` opens it.

        Args:
            place: A file such as "alice.mplus", or an ``fsspec`` url.
            key: Key to encrypt with.

        Raises:
            MemorySaveError: The file cannot be written, or the disk is full; an earlier file is intact.
            ValueError: ``place`` is a folder.
        """
        save(self, zip_of(place), key=key)

    @classmethod
    def load(cls, place: str | Path, model: MemoryMaker, *, key: MemoryKey | None = None) -> "Memory":
        """Open a saved memory; its long-term tokens stay on disk until they are recalled.

        Args:
            place: A folder, a portable file, or an ``fsspec`` url of either.
            model: The model that wrote it.
            key: The key that it was encrypted with.

        Raises:
            MemoryNotFoundError: Nothing is saved there.
            CorruptMemoryError: The save is truncated, altered, or of a newer format.
            MemoryKeyError: It is encrypted with another key, or one is needed.
            MemoryMismatchError: It was made by another model.
            MemoryReadError: The place cannot be reached.
        """
        check_maker(model)
        return load(place_of(place), model.new_memory, key=key)

    # --- what is in it ----------------------------------------------------------------------------

    def sources(
        self, *, since: Moment | None = None, until: Moment | None = None, as_of: Moment | None = None
    ) -> list[Source]:
        """Every source that was written and not forgotten, in the order of first writing.

        Args:
            since: Only what was said from then on.
            until: Only what was said up to then.
            as_of: The same, as ``Memory.as_of`` describes.

        Raises:
            ValueError: One is no moment.
        """
        period, state = Period.of(since, until, as_of), self.state
        return listed(state if period is None else within(state, self.config, period))

    def stats(self) -> MemoryStats:
        """Tokens per pool and layer, bytes, ages, number of sources."""
        return measured(self.state)

    @property
    def nbytes(self) -> int:
        """Bytes of all pools, on whatever tier."""
        return self.stats().nbytes

    def __repr__(self) -> str:
        stats = self.stats()
        sources = "source" if stats.num_sources == 1 else "sources"
        sizes = ", ".join(
            f"{name} {max(getattr(stats, name).tokens, default=0):,}" for name in ("short_term", "pending", "long_term")
        )
        return (
            f"Memory({stats.text_tokens:,} text tokens from {stats.num_sources} {sources}; "
            f"tokens per layer: {sizes}; {stats.nbytes / 2**20:.1f} MiB)"
        )


def check_memory(memory: object, name: str = "memory") -> None:
    """Check that an argument is a memory.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(memory, Memory):
        raise refused(name, memory, "a Memory, such as model.new_memory() makes")


def check_maker(model: object) -> None:
    """Check that an argument is a model.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(model, MemoryMaker):
        raise refused("model", model, "the model that reads and writes the memory, as MPlus.from_pretrained gives it")
