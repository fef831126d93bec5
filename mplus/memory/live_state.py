"""``LiveState``: the present state of a memory, which threads share, texts wait for, and time changes."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mplus.config import MemoryConfig
from mplus.forks import ProcessLock, renewed_after_fork
from mplus.memory.clock import MemoryClock
from mplus.memory.history import History
from mplus.memory.ledger import LedgerEntry, WrittenText
from mplus.memory.snapshots import Snapshot
from mplus.memory.state import MemoryState
from mplus.memory.waiting import WAIT_SECONDS, Told, Waiting, told
from mplus.traces import drop_traces


class LiveState:
    """What the model, stores and adapters use of a ``Memory``: its states, behind a lock.

    States are immutable. A change computes a new one under ``writing`` and commits it, so that other threads see it
    whole or not at all.
    """

    def __init__(self, config: MemoryConfig, initial: MemoryState) -> None:
        self.config = config
        self._initial = initial
        self._history = History(initial)
        self._clock: MemoryClock | None = None
        self._saved_clock: MemoryClock | None = None
        self._waiting: Waiting | None = None
        self._lock = ProcessLock()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Have what waits written by this process."""
        if self._waiting is not None:
            self._waiting.is_running = False  # the thread that wrote them is the parent's

    # --- states -----------------------------------------------------------------------------------

    @property
    def state(self) -> MemoryState:
        """The present state: an immutable value that later writes do not touch.

        Tokens past the age limit are never in it, and texts that waited are.
        """
        return self._present().state

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Snapshots that ``rollback`` takes, in the order in which they were made."""
        return self._present().snapshots

    def _present(self) -> History:
        """State and snapshots, with what waited and without what is past the age limit."""
        self._settle()
        self._expire()
        return self._history

    @contextmanager
    def writing(self) -> Generator[None]:
        """A lock to hold while a new state is computed from the present one and committed."""
        with self._lock:
            self._settle()
            yield

    def commit(self, state: MemoryState) -> None:
        """Make ``state`` the present one."""
        with self._lock:
            self._history = replace(self._history, state=state)

    def restore(self, state: MemoryState, snapshots: tuple[Snapshot, ...]) -> None:
        """Replace the present state and history, as loading does."""
        with self._lock:
            self._history = History(state, snapshots)

    # --- texts that wait --------------------------------------------------------------------------

    @contextmanager
    def adding(self) -> Generator[None]:
        """A lock to hold while texts are added that may wait; after an error none has been added.

        ``told`` does not write those that wait, other looks at the memory do.
        """
        with self._lock:
            before, waiting = self._history, self._waiting
            texts = [] if waiting is None else [*waiting.texts]
            try:
                yield
            except BaseException:
                self._history = before
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

    def told(self) -> dict[str, Told]:
        """Metadata and kept texts of every source by name, those that wait to be written included."""
        with self._lock:
            self._expire()
            return told(self._history.state, () if self._waiting is None else self._waiting.texts)

    def written_and_waiting(self) -> tuple[MemoryState, list[str]]:
        """The state without what waits, and the sources of what waits in the order in which they were given."""
        with self._lock:
            self._expire()
            waiting = () if self._waiting is None else self._waiting.texts
            return self._history.state, [text.source for text in waiting]

    def _has_source(self, source: str) -> bool:
        """Whether the state, a snapshot or what waits has a source."""
        state, waiting = self.written_and_waiting()
        states = (state, *(snapshot.state for snapshot in self._history.snapshots))
        return source in waiting or any(one.source_number(source) is not None for one in states)

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

    # --- time -------------------------------------------------------------------------------------

    def _expire(self) -> None:
        if not self.config.has_age_limit:
            return
        with self._lock:
            before = self._history
            self._history = before.within_age_limits(self.config, self.now())
            if self._history.state is not before.state:
                drop_traces()

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
