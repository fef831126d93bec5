"""Clients that go away: what was begun for them is stopped."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work that is cancelled when the client goes away.

    Raises:
        ClientDisconnect: The client went away.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        await _ended(working, leaving)


class EventStream(StreamingResponse):
    """Server-sent events, made as long as the client is there; the generator is closed in any case.

    Args:
        events: The events.
    """

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        sending, leaving = asyncio.ensure_future(self.stream_response(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                with suppress(OSError):  # the connection broke while something was sent
                    sending.result()
        finally:
            await _ended(sending, leaving)
            await self._events.aclose()


async def _gone(receive: Receive) -> None:
    """Wait until the client goes away; its request has been read before."""
    with suppress(HTTPException):
        while (await receive())["type"] != "http.disconnect":
            pass


async def _ended(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
