"""Endpoints that take JSON that can be kept, and whose answers are JSON whatever a memory holds."""

import base64
import json
import math
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import date, time
from functools import wraps
from typing import Any, cast

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from mplus import UnknownNameError
from mplus_integrations.server.problems import Problem

Handler = Callable[..., Awaitable[Any]]
WITHOUT_EFFECT = frozenset({"api-version"})
"""Names in a query that clients made for Azure send, and that change nothing here."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Begins an escape of JSON that may be half a character."""


class Route(APIRoute):
    """An endpoint whose bodies are read by ``read_json``, and whose dictionaries are answered by ``as_json``.

    Names in a query that it does not take are errors.
    """

    def __init__(self, path: str, endpoint: Handler, **options: Any) -> None:
        super().__init__(path, _answered(endpoint, options.get("status_code") or 200), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        handle = super().get_route_handler()
        known = {field.alias for field in self.dependant.query_params}

        async def strictly(request: Request) -> Response:
            given = [name for name in request.query_params if name not in WITHOUT_EFFECT]
            UnknownNameError.check(given, known, of=f"The query of {self.path}")
            return await handle(_Strict(request.scope, request.receive))

        return strictly


class _Strict(Request):
    async def json(self) -> Any:
        """The body, which may be asked for once more."""
        if not hasattr(self, "_found"):
            self._found = read_json(await self.body())
        return self._found


def _answered(endpoint: Handler, status: int) -> Handler:
    @wraps(endpoint)
    async def answering(*args: Any, **kwargs: Any) -> Any:
        found = await endpoint(*args, **kwargs)
        return Json(found, status) if isinstance(found, dict) else found

    return answering


class Json(Response):
    """A response of JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return as_json(content).encode()


def read_json(body: bytes) -> Any:
    """JSON as it may be kept: text of whole characters, and numbers that are finite.

    What is not would be written into a memory, and no client could read that memory again.

    Raises:
        Problem: It is something else (400).
    """
    try:
        text = body.decode("utf-8-sig")
        found = json.loads(text, parse_constant=_refused, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _unreadable(f"byte {error.start} is no UTF-8") from error
    except UnicodeEncodeError as error:
        raise _unreadable("a surrogate stands without its other half, which is no character") from error
    except RecursionError as error:
        raise _unreadable("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise _unreadable(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except ValueError as error:  # Python reads no longer integers
        raise _unreadable("a number has thousands of digits") from error
    return found


def as_json(value: Any) -> str:
    """JSON of any value that a memory may hold.

    Times are ISO 8601, bytes are base64, numbers that are not finite are null, and half a character, which the name of
    a file may have, stays an escape.
    """
    text = _text(value)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def plain_json(value: Any) -> Any:
    """A value as ``as_json`` tells it, for others to make JSON of; half a character is a question mark."""
    return json.loads(_text(value).encode("utf-8", "replace"))


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):
        return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in cast("list[Any]", value)]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _refused(constant: str) -> Any:
    raise _unreadable(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    if (number := float(digits)) in (float("inf"), float("-inf")):
        raise _unreadable(f"{digits:.40} is too large a number")
    return number


def _unreadable(why: str) -> Problem:
    return Problem(400, "invalid_request", f"The body cannot be read as JSON: {why}.")
