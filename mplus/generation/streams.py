"""An answer, piece by piece: ``GenerationStream`` and ``AsyncGenerationStream``."""

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from weakref import finalize

from mplus.generation.passages import ReadPassage
from mplus.generation.row import Generation, Row


class _Answering:
    """Methods of both streams."""

    def __init__(self, row: Row) -> None:
        self._row = row
        finalize(self, row.cancelled.set).atexit = False  # a stream that is dropped stops generating

    def cancel(self) -> None:
        """Stop generating; the answer so far stays available."""
        self._row.cancelled.set()

    @property
    def generation(self) -> Generation:
        """The answer so far; complete once the stream has ended."""
        return self._row.generation()

    def passages(self) -> tuple[ReadPassage, ...]:
        """The sentences that the answer reads, the most relevant first, from its first piece on.

        They are decoded anew at each call. Nothing is found where single tokens are kept, or no ledger.
        """
        return self._row.passages()

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of the prompt, and of the answer so far."""
        return len(self._row.request.input_ids), len(self._row.token_ids)


class GenerationStream(_Answering, Iterator[str]):
    """The pieces of an answer as they become certain; ``generation`` has all details.

    Stop early with ``cancel()`` (from any thread), ``close()``, or by leaving a ``with`` block: generation
    stops within two tokens.
    """

    def __init__(self, row: Row, pieces: Generator[str]) -> None:
        super().__init__(row)
        self._pieces = pieces

    def __iter__(self) -> "GenerationStream":
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def cancel_with(self, cancelled: threading.Event) -> None:
        """Stop when another thread sets ``cancelled``. This stream never sets it."""
        self._row.cancelled_by = cancelled

    def close(self) -> None:
        """Stop generating and free the resources of the read."""
        self.cancel()
        self._pieces.close()

    def __enter__(self) -> "GenerationStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGenerationStream(_Answering, AsyncIterator[str]):
    """``GenerationStream`` for an event loop: ``async for piece in stream``.

    Stop early with ``cancel()``, ``aclose()``, or by leaving an ``async with`` block.
    """

    def __init__(self, row: Row, pieces: "asyncio.Queue[str | None]") -> None:
        super().__init__(row)
        self._pieces, self._ended = pieces, False

    def __aiter__(self) -> "AsyncGenerationStream":
        return self

    async def __anext__(self) -> str:
        if self._ended:
            raise StopAsyncIteration
        piece = await self._pieces.get()
        if piece is not None:
            return piece
        self._ended = True
        await asyncio.to_thread(self._row.complete)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop generating."""
        self.cancel()

    async def __aenter__(self) -> "AsyncGenerationStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
