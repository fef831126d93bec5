"""``Scheduler``: many requests at once over one model, in batches that they join and leave between tokens."""

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from queue import SimpleQueue
from typing import Unpack
from weakref import WeakKeyDictionary

from mplus.errors import QueueFullError, SchedulerClosedError
from mplus.generation.engine import Engine
from mplus.generation.requests import GenerationOptions, PromptLike, Requests
from mplus.generation.row import Generation, Row
from mplus.generation.streams import AsyncGenerationStream, GenerationStream
from mplus.memory.memory import Memory


class Scheduler:
    """Serves requests of many users with one model.

        scheduler = model.serve()
        answer = scheduler.generate(memory, prompt, max_new_tokens=64)
        answer = await scheduler.agenerate(memory, prompt)

    Takes what ``MPlus.generate`` and ``MPlus.stream`` take, from any thread or event loop. Requests wait
    their turn (no memory's requests come before another's time after time), join the running batch
    between tokens, and leave it when they are done. An error, a timeout or a cancellation ends its own request only.
    """

    def __init__(self, requests: Requests, engine: Engine, *, max_running: int, max_waiting: int) -> None:
        """Use ``MPlus.serve``.

        Raises:
            ValueError: A limit is below its least.
        """
        if max_running < 1:
            raise ValueError(f"max_running={max_running}: expected at least 1 request that is being answered.")
        if max_waiting < 0:
            raise ValueError(f"max_waiting={max_waiting}: expected 0 or more requests that may wait.")
        self.max_running, self.max_waiting = max_running, max_waiting
        self._requests, self._engine = requests, engine
        self._guard = threading.Lock()
        self._queue = FairQueue()
        self._running: list[Ticket] = []
        self._worker: threading.Thread | None = None
        self._closed = False

    @property
    def running(self) -> int:
        """Requests that are being answered now."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    # --- asking -----------------------------------------------------------------------------------

    def generate(self, memory: Memory, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Generation:
        """Answer a prompt beside other requests; arguments of ``MPlus.generate``.

        Raises:
            QueueFullError: As many requests as may wait are waiting already.
            SchedulerClosedError: After ``close``.
            ValueError: A setting out of range, or a malformed prompt.
            PromptTooLongError: The prompt does not fit the model's window beside its memory.
            MemoryMismatchError: The memory belongs to another model.
        """
        with self.stream(memory, prompt, **options) as stream:
            for _ in stream:
                pass
        return stream.generation

    def stream(self, memory: Memory, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> GenerationStream:
        """Like ``generate``, piece by piece; the request is under way when this returns."""
        row = self._requests.row(memory, prompt, **options)
        pieces: SimpleQueue[str | None] = SimpleQueue()
        self._submit(Ticket(row, pieces.put))

        def arriving() -> Generator[str]:
            while (piece := pieces.get()) is not None:
                yield piece
            row.complete()

        return GenerationStream(row, arriving())

    async def agenerate(self, memory: Memory, prompt: PromptLike, **options: Unpack[GenerationOptions]) -> Generation:
        """``generate`` without blocking the event loop; cancelling the task cancels the request."""
        async with await self.astream(memory, prompt, **options) as stream:
            async for _ in stream:
                pass
        return stream.generation

    async def astream(
        self, memory: Memory, prompt: PromptLike, **options: Unpack[GenerationOptions]
    ) -> AsyncGenerationStream:
        """``stream`` without blocking the event loop: ``async for piece in await scheduler.astream(…)``."""
        loop = asyncio.get_running_loop()
        row = await asyncio.to_thread(self._requests.row, memory, prompt, **options)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def deliver(piece: str | None) -> None:
            try:
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
            except RuntimeError:  # the loop is closed: the answer has no reader
                row.cancelled.set()

        self._submit(Ticket(row, deliver))
        return AsyncGenerationStream(row, pieces)

    def close(self) -> None:
        """Cancel everything, wait until it has stopped, and take no more requests."""
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

    # --- answering --------------------------------------------------------------------------------

    def _submit(self, ticket: "Ticket") -> None:
        with self._guard:
            if self._closed:
                raise SchedulerClosedError("This scheduler has been closed. Make another with model.serve().")
            if len(self._queue) >= self.max_waiting + max(self.max_running - len(self._running), 0):
                raise QueueFullError(
                    f"{len(self._running)} requests are being answered and {len(self._queue)} are waiting, as many as "
                    f"may (max_running={self.max_running}, max_waiting={self.max_waiting}). Ask again later, or "
                    "serve with a larger max_waiting."
                )
            self._queue.push(ticket)
            if self._worker is None:
                # It ends when nothing is left to do: an idle scheduler holds no thread, and needs no closing.
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
        by_row = {id(ticket.row): ticket for ticket in self._running}
        try:
            self._engine.add([ticket.row for ticket in joining])
            for piece in self._engine.step():
                by_row[id(piece.row)].deliver(piece.text)
        except Exception as error:  # whatever it is, no request may wait for ever
            for ticket in self._running:
                ticket.row.error = ticket.row.error or error
        finished = [ticket for ticket in self._running if ticket.row.is_finished]
        with self._guard:
            self._running = [ticket for ticket in self._running if not ticket.row.is_finished]
        for ticket in finished:
            ticket.deliver(None)


@dataclass(frozen=True)
class Ticket:
    """A request on its way: its row, and who hears of it."""

    row: Row
    deliver: Callable[[str | None], None]
    """Takes text as it becomes certain, and None at the end."""


class FairQueue:
    """Requests in the order of their turns.

    A memory has one request per turn: its next one comes after everybody else's of the same turn, so
    many requests of one memory wait for each other, and no request waits for ever.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Ticket]] = []
        self._turn = 0
        self._arrivals = 0
        self._last_turns: WeakKeyDictionary[Memory, int] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for _, _, ticket in self._heap)

    def push(self, ticket: Ticket) -> None:
        """Let a request wait for its memory's next turn."""
        turn = max(self._turn, self._last_turns.get(ticket.row.memory, -1) + 1)
        self._last_turns[ticket.row.memory] = turn
        self._arrivals += 1
        heappush(self._heap, (turn, self._arrivals, ticket))

    def pop(self) -> Ticket:
        """The request whose turn it is."""
        self._turn, _, ticket = heappop(self._heap)
        return ticket

    def drop_ended(self) -> list[Ticket]:
        """Requests that were cancelled or came too late while they waited."""
        dropped = [entry for entry in self._heap if entry[2].row.has_ended()]
        if dropped:
            self._heap = [entry for entry in self._heap if not entry[2].row.is_finished]
            heapify(self._heap)
        return [ticket for _, _, ticket in dropped]
