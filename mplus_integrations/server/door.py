"""The door of the web server: who may enter, how large a request may be, and what is counted and logged."""

import time
from collections.abc import Mapping
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mplus_integrations.server.logs import log
from mplus_integrations.server.page import PREFIX as PAGE_PREFIX
from mplus_integrations.server.problems import Problem, log_hidden, problem_of, response_of
from mplus_integrations.server.service import Service

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/"})
"""Paths that need no key: they tell nothing of any memory."""
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
CLIENT_LEFT = 499
"""The status that is counted where the client went away before there was an answer."""


class Door:
    """Middleware around all endpoints. It notes the caller in ``request.state.caller``.

    Args:
        app: The endpoints.
        service: Settings, keys, rates and metrics.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(send)
        try:
            most = self._let_in(scope, Headers(scope=scope))
            await self._app(scope, limited(receive, most), visit.send)
        except ClientDisconnect:
            visit.status = visit.status or CLIENT_LEFT
        except Exception as error:
            await self._refuse(error, scope, receive, visit)
        finally:
            self._note(scope, visit)

    def _let_in(self, scope: Scope, headers: Mapping[str, str]) -> int:
        """Check a request before anything of it is read; returns how many bytes it may have."""
        settings, path = self._service.settings, scope["path"]
        self._check_origin(headers)
        if path in OPEN_PATHS or path.startswith(PAGE_PREFIX):
            return settings.max_body_bytes
        address = (scope.get("client") or ("", 0))[0]
        caller = self._service.access.caller(headers, address)
        scope.setdefault("state", {})["caller"] = caller
        self._service.rates.take(caller.id)
        most = settings.max_import_bytes if path.endswith("/import") else settings.max_body_bytes
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > most:
            raise too_large(most)
        return most

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse web pages of elsewhere, which a browser lets send a request with the user's address or by a name."""
        settings, host = self._service.settings, headers.get("host", "")
        called = urlsplit(f"//{host}").hostname or ""
        known = LOCAL_HOSTS | {settings.host} | set(settings.hosts)
        if (settings.hosts or not settings.needs_key) and called not in known:
            raise Problem(403, "host_unknown", f"Host {called!r:.80} is not a name of this server. Name it in hosts.")
        origin = headers.get("origin")
        if origin is not None and origin not in settings.origins and urlsplit(origin).netloc != host:
            raise Problem(403, "origin_forbidden", f"Pages of {origin!r:.80} may not call. Name it in origins.")

    async def _refuse(self, error: Exception, scope: Scope, receive: Receive, visit: "Visit") -> None:
        problem = problem_of(error, retry_after=self._service.admission.retry_seconds)
        log_hidden(problem, error, id=visit.id)
        if visit.status is None:
            await response_of(problem)(scope, receive, visit.send)

    def _note(self, scope: Scope, visit: "Visit") -> None:
        route, status = getattr(scope.get("route"), "path", "other"), visit.status or 0
        seconds = time.monotonic() - visit.started
        self._service.metrics.requests.labels(scope["method"], route, str(status)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        if route in ("/healthz", "/readyz", "/metrics"):
            return
        caller = scope.get("state", {}).get("caller")
        log(
            "request",
            id=visit.id,
            method=scope["method"],
            route=route,
            status=status,
            seconds=round(seconds, 4),
            caller=None if caller is None else caller.id,
        )


class Visit:
    """One request on its way through the door.

    Args:
        send: Where its response goes.
    """

    def __init__(self, send: Send) -> None:
        self.id, self.started = uuid4().hex[:16], time.monotonic()
        self.status: int | None = None
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a part of the response, and note its status."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self.id.encode()), (b"x-content-type-options", b"nosniff")]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)


def too_large(most: int) -> Problem:
    """The problem of a request that is too large."""
    return Problem(413, "too_large", f"A request may have {most:,} bytes. Send less at a time.")


def limited(receive: Receive, most: int) -> Receive:
    """``receive`` that lets no more than so many bytes in."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise too_large(most)
        return message

    return counted
