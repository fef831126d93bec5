"""Log lines, as JSON or text: what happened, never what was said, and no names of memories."""

import json
import logging
import sys
import time
import traceback
from typing import Any, Literal

LOGGER = logging.getLogger("mplus.serve")
OURS = ("mplus.serve", "uvicorn", "uvicorn.error")
"""Loggers whose messages hold no contents."""


class Line(logging.Formatter):
    """One line for each record; of an exception its type and places, since its message may hold contents.

    Of what a library logs its logger and place, for the same reason.

    Args:
        form: "json" or "text".
    """

    def __init__(self, form: Literal["json", "text"]) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        about: dict[str, Any] = {"event": record.getMessage(), **getattr(record, "about", {})}
        if record.name not in OURS:
            about = {"event": "library", "logger": record.name, "place": f"{record.pathname}:{record.lineno}"}
        if record.exc_info and record.exc_info[1] is not None:
            about |= where_of(record.exc_info[1])
        if self._form == "json":
            return json.dumps({"time": at, "level": record.levelname.lower(), **about}, ensure_ascii=False, default=str)
        event = about.pop("event")
        return " ".join([at, record.levelname, str(event), *(f"{name}={value}" for name, value in about.items())])


def where_of(error: BaseException) -> dict[str, Any]:
    """The type of an error and where it arose."""
    places = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__qualname__, "where": [f"{p.filename}:{p.lineno} {p.name}" for p in places[-8:]]}


class StandardError(logging.Handler):
    """Writes to what is standard error at that moment: a notebook or a test may have put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads it any more
            self.handleError(record)


def set_up_logs(form: Literal["json", "text"]) -> None:
    """Write the log lines of the server to standard error."""
    handler = StandardError()
    handler.setFormatter(Line(form))
    logging.getLogger().handlers = [handler]  # before mcp gives it one that writes text
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name != "uvicorn.error" else []
        logger.setLevel(logging.INFO)
        logger.propagate = name == "uvicorn.error"
    logging.getLogger("uvicorn.access").disabled = True  # its lines hold paths, and so names of memories


def log(event: str, *, level: int = logging.INFO, **about: Any) -> None:
    """Log an event with details."""
    LOGGER.log(level, event, extra={"about": about})
