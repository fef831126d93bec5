"""OpenTelemetry spans by the GenAI conventions, where its API is installed; contents only where they are asked for."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

OPERATIONS = {
    "write": "update_memory",
    "replace": "update_memory",
    "forget": "delete_memory",
    "search": "search_memory",
}
"""Operations on memories that the conventions have a name for."""


class Span:
    """A span that is being recorded, or nothing.

    Args:
        span: OpenTelemetry's span; None: nothing is recorded.
        contents: Whether contents are recorded.
    """

    def __init__(self, span: Any, *, contents: bool) -> None:
        self._span, self._contents = span, contents

    def note(self, attributes: Mapping[str, Any]) -> None:
        """Record attributes; those that are None are left out."""
        if self._span is not None:
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def content(self, attributes: Mapping[str, Any]) -> None:
        """Record contents, or names of memories, where they are asked for."""
        if self._contents:
            self.note(attributes)


class Telemetry:
    """Makes spans.

    Args:
        contents: Whether spans hold questions, answers and names of memories.
    """

    def __init__(self, *, contents: bool = False) -> None:
        self._contents = contents
        try:
            from opentelemetry import trace
        except ImportError:
            self._tracer: Any = None
        else:
            self._tracer = trace.get_tracer("mplus")

    @contextmanager
    def answer(self, operation: str, model: str, attributes: Mapping[str, Any]) -> Generator[Span]:
        """A span of an answer: ``chat`` or ``text_completion``."""
        about = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "mplus", "gen_ai.request.model": model}
        with self._span(f"{operation} {model}", {**about, **attributes}) as span:
            yield span

    @contextmanager
    def memory(self, operation: str, name: str | None) -> Generator[Span]:
        """A span of an operation on a memory."""
        about = {
            "gen_ai.operation.name": OPERATIONS.get(operation, f"{operation}_memory"),
            "mplus.operation": operation,
        }
        with self._span(f"memory {operation}", {**about, "gen_ai.provider.name": "mplus"}) as span:
            span.content({"mplus.memory": name})
            yield span

    @contextmanager
    def _span(self, name: str, attributes: Mapping[str, Any]) -> Generator[Span]:
        if self._tracer is None:
            yield Span(None, contents=False)
            return
        span = self._tracer.start_span(name)  # not made current: an answer may end in another task than it began in
        told = Span(span, contents=self._contents)
        told.note(attributes)
        try:
            yield told
        except BaseException as error:
            told.note({"error.type": type(error).__qualname__})  # its message may hold contents
            raise
        finally:
            span.end()
