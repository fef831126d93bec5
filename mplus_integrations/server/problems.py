"""What goes wrong, as an HTTP answer: problem+json (RFC 9457), with the ``error`` member that OpenAI's clients read."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

import mplus
from mplus_integrations.server.logs import log, where_of

RETRY_SECONDS = 1


class Problem(HTTPException):
    """A request that cannot be answered.

    Args:
        status: HTTP status.
        code: A word for programs.
        detail: What is wrong, what was expected, and the fix.
        retry_after: Seconds after which to try again.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        again = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, detail, {**(headers or {}), **again} or None)
        self.code = code


STATUSES: Sequence[tuple[type[Exception], int, str]] = (
    (mplus.QueueFullError, 429, "queue_full"),
    (mplus.SchedulerClosedError, 503, "stopping"),
    (mplus.MemoryLockedError, 409, "memory_in_use"),
    (mplus.MemoryConflictError, 409, "memory_conflict"),
    (mplus.MemoryMismatchError, 409, "memory_of_another_model"),
    (mplus.LedgerMissingError, 409, "ledger_missing"),
    (mplus.MemoryLimitError, 413, "memory_limit"),
    (mplus.MemorySaveError, 507, "not_saved"),
    (mplus.MemoryReadError, 503, "not_reachable"),
    (mplus.MemoryKeyError, 503, "memory_key"),
    (mplus.CorruptMemoryError, 503, "memory_damaged"),
    (mplus.EmbedderError, 503, "embedder_failed"),
    (mplus.PromptTooLongError, 400, "context_length_exceeded"),
    (ValueError, 400, "invalid_request"),
)
"""The first that an error is one of counts."""
HIDDEN: Mapping[str, str] = {
    "internal": "Something went wrong in the server; its log says where.",
    "keys_unreadable": "The server's file of keys cannot be read. Whoever runs the server restores it.",
    "not_saved": "The change could not be saved. What was saved before is intact.",
    "not_reachable": "The memory cannot be reached now; it may be intact. Ask again later.",
    "memory_key": "The memory is encrypted, and the server has no key that opens it. Whoever runs it restores the key.",
    "memory_damaged": "The memory is damaged. Whoever runs the server restores it from a copy, or delete it.",
    "embedder_failed": "The embedder of the server failed, and nothing was changed. Ask again once it works.",
}
"""What clients are told of trouble of the server itself; its message may name folders, urls and what others said."""
AGAIN = frozenset({"queue_full", "stopping", "memory_in_use", "memory_conflict", "not_reachable"})
"""What may work a little later."""


def problem_of(error: Exception, *, retry_after: int = RETRY_SECONDS) -> Problem:
    """An error as a problem; one that nobody expected is a 500 that tells nothing of its cause."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, ValidationError):  # of settings of an answer
        return invalid(error.errors(include_url=False, include_context=False))
    if isinstance(error, mplus.MemoryNotFoundError):
        # Its message names the folder and other memories, which the caller may not know of.
        return Problem(404, "memory_not_found", "There is no such memory. /v1/memories lists those of the key.")
    for kind, status, code in STATUSES:
        if isinstance(error, kind):
            detail = HIDDEN.get(code, str(error))
            return Problem(status, code, detail, retry_after=retry_after if code in AGAIN else None)
    return Problem(500, "internal", HIDDEN["internal"])


def log_hidden(problem: Problem, error: Exception, **about: Any) -> None:
    """Log where an error arose whose message clients are not told."""
    if problem.code in HIDDEN:
        log("error", level=logging.ERROR, code=problem.code, **about, **where_of(error))


def no_memory(name: str) -> Problem:
    """The problem of a memory that there is not; names no other."""
    return Problem(404, "memory_not_found", f"There is no memory called {name!r}. Write into it, and there is.")


def _of_http(error: HTTPException) -> Problem:
    headers, code = error.headers, error.status_code
    if code == 404:
        return Problem(404, "not_found", "There is nothing at this path. /openapi.json lists what there is.")
    if code == 405:
        allowed = (headers or {}).get("Allow", "another method")
        return Problem(405, "method_not_allowed", f"This path takes {allowed}.", headers=headers)
    return Problem(code, "http", str(error.detail), headers=headers)


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """What is wrong with the first field of a request that is."""
    first = errors[0]
    if first["loc"] == ("body",) and isinstance(first["input"], bytes):
        return Problem(
            415, "not_json", "The body is not said to be JSON: expected the header Content-Type: application/json."
        )
    # A value that may be of several types has an error for each of them.
    same = [error for error in errors if error["input"] is first["input"] and error["loc"][:-1] == first["loc"][:-1]]
    place = first["loc"] if len(same) == 1 else first["loc"][:-1]
    where = ".".join(map(str, place[1:] if place[:1] in (("body",), ("query",)) else place))
    if first["type"] == "extra_forbidden":
        return Problem(
            400, "invalid_request", f"{where}: there is no such field. /openapi.json lists those that there are."
        )
    given = f"={first['input']!r:.40}" if where and isinstance(first["input"], str | int | float) else ""
    messages = [str(error["msg"]).replace("Value error, ", "") for error in same]
    message = ", or ".join([messages[0], *(one.removeprefix("Input should be ") for one in messages[1:])])
    return Problem(400, "invalid_request", f"{where}{given}: {message}" if where else message)


def body_of(problem: Problem) -> dict[str, Any]:
    """A problem as JSON."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(problem.status_code)
    kind = kind or ("server_error" if problem.status_code >= 500 else "invalid_request_error")
    return {
        "type": "about:blank",
        "title": HTTPStatus(problem.status_code).phrase,
        "status": problem.status_code,
        "detail": problem.detail,
        "code": problem.code,
        "error": {"message": problem.detail, "type": kind, "param": None, "code": problem.code},
    }


def response_of(problem: Problem) -> JSONResponse:
    """A problem as a response."""
    headers = dict(problem.headers or {})
    if problem.status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body_of(problem), problem.status_code, headers=headers, media_type="application/problem+json")
