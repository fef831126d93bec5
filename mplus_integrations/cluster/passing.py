"""A request as a value that other processes can answer, and its answer as a stream of ASGI messages."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

QUEUED = 64
"""Messages of an answer that may wait until they are taken."""


@dataclass(frozen=True)
class Passed:
    """A whole HTTP request; it can be pickled.

    Attributes:
        method: The HTTP method, in capitals.
        path: The path, decoded.
        raw_path: The path as it was sent.
        query_string: The part after the question mark, as it was sent.
        headers: Names in lower case and values, in order.
        client: Address and port that it comes from; None: not known.
        scheme: "http" or "https".
        body: All of its body.
    """

    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: tuple[str, int] | None
    scheme: str
    body: bytes

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> "Passed":
        """A request from its scope and its body."""
        client = scope.get("client")
        path: str = scope["path"]
        return cls(
            method=scope["method"],
            path=path,
            raw_path=scope.get("raw_path") or path.encode(),
            query_string=scope.get("query_string", b""),
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            client=None if client is None else (client[0], client[1]),
            scheme=scope.get("scheme", "http"),
            body=body,
        )

    @property
    def scope(self) -> Scope:
        """The scope in which an application answers it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": None,
            "root_path": "",
            "method": self.method,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query_string,
            "headers": list(self.headers),
            "client": self.client,
            "scheme": self.scheme,
            "state": {},
        }


async def answered_by(app: ASGIApp, passed: Passed) -> AsyncGenerator[Message]:
    """The messages of an application's answer; who leaves early is to the application a client that went away.

    Args:
        app: The application.
        passed: The request.

    Raises:
        Exception: What the application raises.
    """
    queue: asyncio.Queue[Message | None] = asyncio.Queue(QUEUED)
    left, taken = asyncio.Event(), False

    async def receive() -> Message:
        nonlocal taken
        if not taken:
            taken = True
            return {"type": "http.request", "body": passed.body, "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if left.is_set():
            raise OSError("The client went away.")
        await queue.put(message)

    async def work() -> None:
        try:
            await app(passed.scope, receive, send)
        finally:
            if not left.is_set():
                await queue.put(None)

    working = asyncio.ensure_future(work())
    try:
        while (message := await queue.get()) is not None:
            yield message
        await working
    finally:
        left.set()
        while not queue.empty():  # whoever waits for a place in the queue goes on
            queue.get_nowait()
        working.add_done_callback(_seen)


def _seen(task: "asyncio.Future[Any]") -> None:
    """Take note of how a task ended that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
