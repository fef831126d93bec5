"""The front of a cluster: finds the memory that a request means, and passes the request to the memory's owner."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mplus_integrations.cluster.meant import MEMORIES, meant_memory
from mplus_integrations.cluster.passing import Passed
from mplus_integrations.server.access import Access
from mplus_integrations.server.door import too_large
from mplus_integrations.server.problems import Problem, body_of, response_of
from mplus_integrations.server.settings import ServeSettings

READS = frozenset({"search", "recalled"})
"""Operations on a memory that change nothing, though they are sent by POST."""
TRIES = 3
"""So often a request that may be made twice is passed on, if its replica is lost."""

Pass = Callable[[str | None, Passed], AsyncGenerator[Message]]
"""Passes a request to the owner of a memory, or to any replica where the memory is None."""


class ReplicaLostError(Exception):
    """The replica that was answering died, or cannot be reached."""


class Front:
    """Answers requests by passing them on.

    Args:
        settings: How to serve: keys, and how large a request may be.
        passed_to: Passes a request on.
    """

    def __init__(self, settings: ServeSettings, passed_to: Pass) -> None:
        self._settings, self._pass = settings, passed_to
        self._access = Access(settings)

    async def answer(self, request: Request) -> Response:
        """The answer of the replica that owns the request's memory.

        A replica that is lost is another one's turn at once if nothing of its answer was sent yet and the request may
        be made twice; else the client is told that what was asked may or may not have been done.
        """
        try:
            passed = Passed.of(request.scope, await self._body(request))
        except Problem as problem:
            return response_of(problem)
        except ClientDisconnect:
            return Response(status_code=400)
        memory = self._memory(request, passed)
        for _ in range(TRIES if may_be_made_twice(passed.method, passed.path) else 1):
            messages = self._pass(memory, passed)
            try:
                return Relayed(await anext(messages), messages)
            except ReplicaLostError:
                await messages.aclose()
            except Problem as problem:
                return response_of(problem)
        return response_of(_lost())

    def _memory(self, request: Request, passed: Passed) -> str | None:
        return meant_memory(
            self._access,
            method=passed.method,
            path=passed.path,
            headers=request.headers,
            address=passed.client[0] if passed.client else "",
            body=passed.body,
        )

    async def _body(self, request: Request) -> bytes:
        """The body; of who is not let in it is not read, since the replica refuses that by the headers."""
        settings = self._settings
        try:
            self._access.caller(request.headers, "")
        except Problem:
            return b""
        most = settings.max_import_bytes if request.url.path.endswith("/import") else settings.max_body_bytes
        parts: list[bytes] = []
        taken = 0
        async for part in request.stream():
            taken += len(part)
            if taken > most:
                raise too_large(most)
            parts.append(part)
        return b"".join(parts)


class Relayed(Response):
    """The answer of a replica, sent on as it comes.

    Args:
        start: Its first message.
        messages: The further ones.
    """

    def __init__(self, start: Message, messages: AsyncGenerator[Message]) -> None:
        super().__init__(status_code=start["status"])
        self.raw_headers = [(bytes(name), bytes(value)) for name, value in start.get("headers", ())]
        self._start, self._messages = start, messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it. A stream of events whose replica is lost ends with an event that says so."""
        async with aclosing(self._messages) as messages:
            await send(self._start)
            try:
                async for message in messages:
                    await send(message)
            except ReplicaLostError:
                if not self.headers.get("content-type", "").startswith("text/event-stream"):
                    raise
                event = f"data: {json.dumps(body_of(_lost()))}\n\n"
                await send({"type": "http.response.body", "body": event.encode(), "more_body": False})


def may_be_made_twice(method: str, path: str) -> bool:
    """Whether a request that is made twice does what it does once.

    Answers do: the turns of a conversation are written under names of their own, and those in memory already stay.
    """
    if method in ("GET", "HEAD"):
        return True
    if method != "POST":
        return False
    if path.startswith(MEMORIES + "/"):
        name, _, operation = path.removeprefix(MEMORIES + "/").partition("/")
        return name != "" and operation in READS
    return path in ("/v1/chat/completions", "/v1/completions")


def _lost() -> Problem:
    detail = (
        "The replica that was answering is gone. What was asked may or may not have been done; look, or write it "
        "under a source's name and ask for that source. Another replica answers now."
    )
    return Problem(503, "replica_lost", detail, retry_after=1)


def replica_header(start: Message, replica: str) -> dict[str, Any]:
    """The first message of an answer, with the id of the replica that made it in ``x-mplus-replica``."""
    return {**start, "headers": [*start.get("headers", ()), (b"x-mplus-replica", replica.encode())]}
