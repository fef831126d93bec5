"""``Scheduler``: answers many requests with one model, in batches that requests join and leave between tokens."""

import asyncio
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from queue import SimpleQueue
from typing import Unpack

from mplus.errors import QueueFullError, SchedulerClosedError
from mplus.forks import ProcessLock, renewed_after_fork
from mplus.generation.engine import Engine
from mplus.generation.memories_read import MemoryLike
from mplus.generation.prompt import PromptLike
from mplus.generation.requests import GenerationOptions, Requests
from mplus.generation.row import Generation, Row
from mplus.generation.streams import AsyncGenerationStream, GenerationStream
from mplus.given import whole_number
from mplus.memory.memory import Memory
from mplus.thread_teams import gives_back_team


class Scheduler:
    """Serves requests of many users with one model.

        scheduler = model.serve()
        answer = scheduler.generate(memory, prompt, max_new_tokens=64)
        answer = await scheduler.agenerate(memory, prompt)

    Takes the arguments of ``MPlus.generate`` and ``MPlus.stream``, from any thread or event loop. Requests wait in a
    fair queue (one request of each memory per round), join the running batch between tokens, and leave it when
    they are done. An error, a timeout or a cancellation ends only its own request.
    """

    def __init__(self, requests: Requests, engine: Engine, *, max_running: int, max_waiting: int) -> None:
        """Use ``MPlus.serve``.

        Raises:
            ValueError: ``max_running`` is below 1, or ``max_waiting`` below 0.
        """
        self.max_running = whole_number("max_running", max_running, least=1)
        self.max_waiting = whole_number("max_waiting", max_waiting, least=0)
        self._requests, self._closed = requests, False
        self._guard = ProcessLock()
        self._begin(engine)
        renewed_after_fork(self)

    def _begin(self, engine: Engine) -> None:
        self._engine, self._process = engine, os.getpid()
        self._queue = FairQueue()
        self._running: list[Ticket] = []
        self._worker: threading.Thread | None = None

    def after_fork(self) -> None:
        """Begin with an empty queue: what was asked of the parent process is answered there."""
        orphans, parent = (*self._queue, *self._running), self._process
        self._begin(self._engine.anew())
        for ticket in orphans:
            ticket.row.error = SchedulerClosedError(
                f"This was asked in process {parent}, of which this is a forked child. Ask again after the fork."
            )
            with suppress(Exception):  # its reader may have gone
                ticket.deliver(None)

    def __getstate__(self) -> object:
        raise ValueError(
            "A Scheduler is neither pickled nor copied: threads and their requests belong to one process. Call "
            "model.serve() in the other one."
        )

    @property
    def running(self) -> int:
        """Number of requests that are being answered."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    # --- asking -----------------------------------------------------------------------------------

    def generate(self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Generation:
        """Answer a prompt beside other requests; arguments of ``MPlus.generate``.

        Raises:
            QueueFullError: The queue has ``max_waiting`` requests already.
            SchedulerClosedError: The scheduler has been closed.
            ValueError: A setting is out of range, or the prompt is malformed.
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: The memory belongs to another model.
        """
        with self.stream(memory, prompt, **options) as stream:
            for _ in stream:
                pass
        return stream.generation

    def stream(self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> GenerationStream:
        """Like ``generate``, piece by piece; the request is already queued when this returns."""
        row = self._row(memory, prompt, **options)
        pieces: SimpleQueue[str | None] = SimpleQueue()
        self._submit(Ticket(row, pieces.put))

        def arriving() -> Generator[str]:
            while (piece := pieces.get()) is not None:
                yield piece
            row.complete()

        return GenerationStream(row, arriving())

    async def agenerate(
        self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]
    ) -> Generation:
        """``generate`` without blocking the event loop; cancelling the task cancels the request."""
        async with await self.astream(memory, prompt, **options) as stream:
            async for _ in stream:
                pass
        return stream.generation

    async def astream(
        self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]
    ) -> AsyncGenerationStream:
        """``stream`` without blocking the event loop: ``async for piece in await scheduler.astream(…)``."""
        loop = asyncio.get_running_loop()
        row = await asyncio.to_thread(self._row, memory, prompt, **options)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def deliver(piece: str | None) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop is closed: the answer has no reader
                row.cancelled.set()

        self._submit(Ticket(row, deliver))
        return AsyncGenerationStream(row, pieces)

    def close(self) -> None:
        """Cancel all requests, wait until they have stopped, and take no more."""
        with self._guard:
            self._closed = True
            for ticket in (*self._queue, *self._running):
                ticket.row.cancelled.set()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "Scheduler":
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    @gives_back_team
    def _row(self, memory: MemoryLike, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Row:
        """The row of a request; its thread then waits for the one that answers."""
        return self._requests.row(memory, prompt, **options)

    # --- answering --------------------------------------------------------------------------------

    def _submit(self, ticket: "Ticket") -> None:
        with self._guard:
            if self._closed:
                raise SchedulerClosedError("This scheduler has been closed. Make another with model.serve().")
            if len(self._queue) >= self.max_waiting + max(self.max_running - len(self._running), 0):
                raise QueueFullError(
                    f"{len(self._running)} requests are being answered and {len(self._queue)} are waiting, which is "
                    f"the limit (max_running={self.max_running}, max_waiting={self.max_waiting}). Ask again later, or "
                    "serve with a larger max_waiting."
                )
            self._queue.push(ticket)
            if self._worker is None:
                # The thread ends when there is nothing to do: an idle scheduler has no thread and needs no ``close``.
                self._worker = threading.Thread(target=self._work, name="mplus-scheduler", daemon=True)
                self._worker.start()

    def _work(self) -> None:
        while True:
            with self._guard:
                dropped = self._queue.drop_ended()
                joining: list[Ticket] = []
                while len(self._queue) and len(self._running) + len(joining) < self.max_running:
                    joining.append(self._queue.pop())
                self._running += joining
                idle = not self._running
                if idle:
                    self._worker = None
            for ticket in dropped:
                ticket.deliver(None)
            if idle:
                return
            self._step(joining)

    def _step(self, joining: "list[Ticket]") -> None:
        by_row = {ticket.row: ticket for ticket in self._running}
        try:
            self._engine.add([ticket.row for ticket in joining])
            for piece in self._engine.step():
                by_row[piece.row].deliver(piece.text)
        except Exception as error:  # any error must reach the waiting callers
            for ticket in self._running:
                ticket.row.error = ticket.row.error or error
        finished = [ticket for ticket in self._running if ticket.row.is_finished]
        with self._guard:
            self._running = [ticket for ticket in self._running if not ticket.row.is_finished]
        for ticket in finished:
            ticket.deliver(None)


@dataclass(frozen=True)
class Ticket:
    """A request: its row, and the callback that receives its text."""

    row: Row
    deliver: Callable[[str | None], None]
    """Called with text as it becomes certain, and with None at the end."""


class FairQueue:
    """A queue that serves memories in rounds.

    Each memory has at most one request per round, so many requests of one memory delay each other and not the
    requests of other memories. The copies that a store loads of one memory count as one.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Ticket]] = []
        self._turn = 0
        self._arrivals = 0
        self._last_turns = dict[Memory | Path, int]()
        """By memory, or its place in a store, where the last turn that was given is not over."""

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for _, _, ticket in self._heap)

    def push(self, ticket: Ticket) -> None:
        """Add a request to its memory's next round."""
        memory = ticket.row.memories[0]
        whose = memory.stored_as or memory
        turn = max(self._turn, self._last_turns.get(whose, -1) + 1)
        self._last_turns[whose] = turn
        self._arrivals += 1
        heappush(self._heap, (turn, self._arrivals, ticket))

    def pop(self) -> Ticket:
        """Remove and return the next request."""
        turn, _, ticket = heappop(self._heap)
        if not self._heap:
            self._last_turns.clear()
        elif turn != self._turn:
            self._last_turns = {whose: last for whose, last in self._last_turns.items() if last >= turn}
        self._turn = turn
        return ticket

    def drop_ended(self) -> list[Ticket]:
        """Remove and return the requests that were cancelled or timed out in the queue."""
        dropped = [entry for entry in self._heap if entry[2].row.has_ended()]
        if dropped:
            self._heap = [entry for entry in self._heap if not entry[2].row.is_finished]
            heapify(self._heap)
        return [ticket for _, _, ticket in dropped]
