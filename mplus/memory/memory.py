"""``Memory``: what belongs to one conversation or one corpus, and is passed to the model."""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from mplus.config import MemoryConfig
from mplus.errors import LedgerMissingError, MemoryLimitError, MemoryMismatchError
from mplus.forks import renewed_after_fork
from mplus.given import check_kind, refused
from mplus.ids import Id, id_text
from mplus.memory.clock import MemoryClock
from mplus.memory.forgetting import within_age_limits, without_expired, without_source
from mplus.memory.ledger import LedgerEntry, Redaction, WrittenText
from mplus.memory.periods import Period, within
from mplus.memory.saving import load, save
from mplus.memory.snapshots import MemoryDiff, Snapshot, difference, latest_base
from mplus.memory.sources import Source, listed
from mplus.memory.state import MemoryState, chained
from mplus.memory.stats import MemoryStats, measured
from mplus.memory.waiting import WAIT_SECONDS, Told, Waiting, told
from mplus.moments import Moment, seconds_of
from mplus.progress import Progress, followed
from mplus.storage.address import folder_of, place_of, zip_of
from mplus.storage.encryption import MemoryKey
from mplus.storage.manifest import MAX_SNAPSHOTS
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


class Memory:
    """The memory of one conversation or one corpus.

    A value that the model reads and writes but does not own: make one with ``MPlus.new_memory``, pass it
    to ``write`` and ``generate``, and save, fork or throw it away. Reading and writing from several
    threads is safe: a write is seen whole or not at all.
    """

    def __init__(self, config: MemoryConfig, initial: MemoryState, *, model_fingerprint: str, seed: int = 0) -> None:
        self.config = config
        self.model_fingerprint = model_fingerprint
        self.seed = seed
        self._initial = initial
        self._state = initial
        self._snapshots: tuple[Snapshot, ...] = ()
        self._clock: MemoryClock | None = None
        self._saved_clock: MemoryClock | None = None
        self._waiting: Waiting | None = None
        self.after_fork()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Begin with a lock of this process."""
        self._lock = threading.RLock()
        if self._waiting is not None:
            self._waiting.is_running = False  # the thread that wrote them is the parent's

    # --- state ------------------------------------------------------------------------------------

    @property
    def state(self) -> MemoryState:
        """The present state: an immutable value that later writes do not touch.

        Tokens past the age limit are never in it, and texts that waited are.
        """
        self._settle()
        self._expire()
        return self._state

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Snapshots that ``rollback`` takes, in the order in which they were made."""
        self._settle()
        self._expire()
        return self._snapshots

    @contextmanager
    def writing(self) -> Generator[None]:
        """A lock to hold while a new state is computed from the present one and committed."""
        with self._lock:
            self._settle()
            yield

    @contextmanager
    def adding(self) -> Generator[None]:
        """A lock to hold while texts are added that may wait; after an error none has been added.

        ``told`` does not write those that wait, other looks at the memory do.
        """
        with self._lock:
            before, waiting = (self._state, self._snapshots), self._waiting
            texts = [] if waiting is None else [*waiting.texts]
            try:
                yield
            except BaseException:
                self.restore(*before)
                self._waiting = None if waiting is None else replace(waiting, texts=texts)
                raise

    def wait(self, texts: Sequence[WrittenText], write: Callable[[LedgerEntry], None], *, most: int) -> None:
        """Have texts wait until something of the memory is asked for, or ``most`` text tokens wait."""
        with self._lock:
            if self._waiting is not None and abs(self.now() - self._waiting.time) > WAIT_SECONDS:
                self._settle()
            if self._waiting is None:
                self._waiting = Waiting(write, self.now())
            waiting, before = self._waiting, [*self._waiting.texts]
            waiting.texts += texts
            try:
                if waiting.num_tokens >= most:
                    self._settle()
            except BaseException:
                waiting.texts = before
                raise

    def _settle(self) -> None:
        """Write what waits; another thread that does so already is waited for."""
        if self._waiting is not None:
            with self._lock:
                self._write_waiting()

    def _write_waiting(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.is_running:
            waiting.done()
            self._waiting = None

    def told(self) -> dict[str, Told]:
        """Metadata and kept texts of every source by name, those that wait to be written included."""
        with self._lock:
            self._expire()
            return told(self._state, () if self._waiting is None else self._waiting.texts)

    def commit(self, state: MemoryState) -> None:
        """Make ``state`` the present one."""
        with self._lock:
            self._state = state

    def restore(self, state: MemoryState, snapshots: tuple[Snapshot, ...]) -> None:
        """Replace the present state and history, as loading does."""
        with self._lock:
            self._state, self._snapshots = state, snapshots

    def _expire(self) -> None:
        if not self.config.has_age_limit:
            return
        with self._lock:
            now, before = self.now(), self._state
            self._state = within_age_limits(self._state, self.config, now)
            if self._state is not before:
                drop_traces()
            states = [within_age_limits(s.state, self.config, now) for s in self._snapshots]
            if any(state is not s.state for state, s in zip(states, self._snapshots, strict=True)):
                shared = [state.sharing_rooms(self._state) for state in states]
                self._snapshots = tuple(replace(s, state=t) for s, t in zip(self._snapshots, shared, strict=True))

    def now(self) -> float:
        """The present time, by which texts of this memory get older: Unix time, unless its clock has jumped."""
        now = time.time()
        limit = self.config.age_limit_seconds
        if limit is None:
            return now
        with self._lock:
            self._clock = (self._clock or MemoryClock(now)).at(now, limit)
            return self._clock.time

    @property
    def clock(self) -> MemoryClock | None:
        """The clock as of the last look; None if the memory has no age limit in seconds, or nothing looked yet."""
        return self._clock

    def keep_clock(self, clock: MemoryClock | None) -> None:
        """Go by a clock that was saved, or remember that it has been saved."""
        with self._lock:
            self._clock = self._saved_clock = clock

    @property
    def has_unsaved_jump(self) -> bool:
        """Whether the machine's clock has jumped since the memory was saved or loaded, which the next save keeps."""
        _ = self.state
        before, now = self._saved_clock, self._clock
        return before is not None and now is not None and before.behind != now.behind

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
            fork.restore(self.state, self._snapshots)
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
            state, snapshots, clock = fork.state, fork.snapshots, fork.clock
        with self.writing():
            self.restore(state, snapshots)
            self._clock = clock
            self.config, self._initial = fork.config, fork._initial

    def reset(self) -> None:
        """Make the memory empty again: nothing written, no snapshots."""
        with self._lock:
            self._waiting = None
            self.restore(self._initial.cooled(), ())
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
            if len(self._snapshots) >= MAX_SNAPSHOTS:
                raise MemoryLimitError(
                    f"snapshot({label!r:.40}): this memory has {len(self._snapshots):,} snapshots, which is the most. "
                    "Discard some: memory.discard(memory.snapshots[0].id)."
                )
            taken = Snapshot(self.state, label)
            self._snapshots = (*self._snapshots, taken)
        return taken.id

    def rollback(self, snapshot: str) -> None:
        """Return to the state of a snapshot. All snapshots stay, later ones too, so this can be undone.

        Sources forgotten since then do not come back, because forgetting removes them from snapshots too.

        Raises:
            ValueError: There is no snapshot of that id.
        """
        with self._lock:
            self._state = self._snapshot(snapshot).state

    def discard(self, snapshot: str) -> None:
        """Drop a snapshot and the tensors that only this snapshot holds.

        Raises:
            ValueError: There is no snapshot of that id.
        """
        with self._lock:
            dropped = self._snapshot(snapshot)
            self._snapshots = tuple(s for s in self._snapshots if s is not dropped)

    def diff(self, before: "str | Memory") -> MemoryDiff:
        """The sources that were added, removed and changed since ``before``.

        Args:
            before: Id of a snapshot of this memory, or another memory, such as a fork.

        Raises:
            ValueError: There is no snapshot of that id.
        """
        earlier = before.state if isinstance(before, Memory) else self._snapshot(before).state
        return difference(earlier, self.state)

    def _snapshot(self, name: str) -> Snapshot:
        for snapshot in self.snapshots:
            if snapshot.id == name:
                return snapshot
        known = ", ".join(f"{s.id!r} ({s.label})" if s.label else repr(s.id) for s in self._snapshots[-4:]) or "none"
        raise ValueError(f"snapshot={name!r}: this memory has no such snapshot; its latest are: {known}.")

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
            before, redaction = self.state, Redaction(source)
            if rebuild is None:
                state = without_source(before, self.config, redaction)
                snapshots = tuple(
                    replace(s, state=without_source(s.state, self.config, redaction)) for s in self._snapshots
                )
            else:
                with followed(progress, "writing again", "tok") as told:
                    state, snapshots = self._rebuilt(redaction, rebuild, told)
            if state is not before or any(
                s.state is not t.state for s, t in zip(snapshots, self._snapshots, strict=True)
            ):
                # What was made of a forgotten text may be held for any state, so all begin with nothing.
                state = state.cooled()
                snapshots = tuple(replace(s, state=s.state.sharing_rooms(state)) for s in snapshots)
            self.restore(state, snapshots)
        drop_traces()
        removed = [s.memory_tokens + s.tail_tokens for s in listed(before) if s.name == source]
        return sum(removed)

    def _rebuilt(
        self, redaction: Redaction, model: Replays, progress: Progress | None
    ) -> tuple[MemoryState, tuple[Snapshot, ...]]:
        """The present state and all snapshots, rebuilt as if the source had never been written."""

        def is_clean(state: MemoryState) -> bool:
            return state.replayable and state.source_number(redaction.source) is None

        bases = [self._initial.cooled(), *(s.state for s in self._snapshots if is_clean(s.state))]
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
                again = model.replay(self, again, entry)
                done += entry.num_tokens
                if progress is not None:
                    progress(done, total)
            bases.append(again)
            return again

        # Shorter ledgers first: each state is a base for later states that continue it.
        taken = sorted(self._snapshots, key=lambda s: len(s.state.ledger or ()))
        again = {s.id: replace(s, state=clean(s.state)) for s in taken}
        return clean(self._state), tuple(again[s.id] for s in self._snapshots)

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
            state = replace(self.state, pinned=self._state.pinned - {id_text(source, "source")})
            self.commit(without_expired(state, self.config) if self.config.has_age_limit else state)

    def note_recalled(self, births: tuple[torch.Tensor, ...]) -> None:
        """Raise the recall frequency of long-term tokens that a read used.

        ``births`` holds, per track, how many tokens had been written when each recalled token was. That number
        never changes, so a write or a consolidation in between does not matter.
        """
        gain = self.config.recall_frequency_gain
        if not gain or not any(map(len, births)):
            return
        with self._lock:
            tracks = list(self._state.tracks)
            for number, (track, recalled) in enumerate(zip(tracks, births, strict=True)):
                known = track.long_term.provenance
                born = self._state.written_tokens - known.ages
                frequencies = known.recall_frequencies + gain * torch.isin(born, recalled)
                provenance = known.changed(recall_frequencies=frequencies)
                tracks[number] = replace(track, long_term=replace(track.long_term, provenance=provenance))
            self._state = replace(self._state, tracks=tuple(tracks))

    def drop_latents(self) -> None:
        """Drop keys and values that were made of token ids, also those of snapshots; reads make them again.

        Forks share them until something is forgotten. Does nothing for ``long_term_keep="latents"``, whose keys and
        values are all there is.
        """
        for state in (self.state, *(snapshot.state for snapshot in self._snapshots)):
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
