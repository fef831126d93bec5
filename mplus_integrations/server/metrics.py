"""Prometheus metrics. No label holds a name or a content."""

from collections.abc import Callable
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "mplus_requests", "Requests that were answered.", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "mplus_request_seconds", "Time to the last byte.", ["route"], buckets=SECONDS, registry=registry
        )
        self.first_token = Histogram(
            "mplus_first_token_seconds", "Time to the first text of an answer.", buckets=SECONDS, registry=registry
        )
        self.tokens = Counter(
            "mplus_tokens", "Tokens of prompts, of answers, and written.", ["kind"], registry=registry
        )
        self.operations = Counter(
            "mplus_memory_operations", "Operations on memories.", ["operation", "result"], registry=registry
        )
        self.operation_seconds = Histogram(
            "mplus_memory_operation_seconds", "Time of operations.", ["operation"], buckets=SECONDS, registry=registry
        )
        self.cut = Counter("mplus_answers_cut", "Answers whose client went away, or that timed out.", registry=registry)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A value that is asked for when metrics are read."""
        from prometheus_client import Gauge

        Gauge(name, about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All metrics as Prometheus reads them."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)


class NoMetrics:
    """Takes the place of ``Metrics`` where nobody reads them."""

    def __getattr__(self, _: str) -> Any:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        """Nothing is counted."""
        return self
