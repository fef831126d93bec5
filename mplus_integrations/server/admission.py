"""A bounded queue and a limit of rate: who is let in, and when to try again."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager

from mplus import QueueFullError
from mplus_integrations.server.problems import Problem

MOST_CALLERS = 10_000
"""Callers whose rate is kept; the one who called least recently is dropped first."""


class Admission:
    """Counts the requests inside; used from the event loop alone.

    Args:
        most: Most requests inside at the same time.
        abreast: How many of them are worked on at the same time.
    """

    def __init__(self, most: int, abreast: int) -> None:
        self.most, self.abreast = most, abreast
        self.inside = 0
        self._seconds = 1.0

    @contextmanager
    def place(self) -> Generator[None]:
        """A place for a request until it is answered.

        Raises:
            QueueFullError: All places are taken.
        """
        if self.inside >= self.most:
            raise QueueFullError(f"{self.inside} requests are being answered or wait, which is the limit. Ask later.")
        self.inside += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)

    @property
    def retry_seconds(self) -> int:
        """When a place is likely to be free, in whole seconds, 1 to 60."""
        rounds = max(self.inside, 1) / self.abreast
        return min(max(math.ceil(self._seconds * min(rounds, 1.0)), 1), 60)


class Rates:
    """Lets each caller make so many requests in a minute, in any distribution.

    Args:
        per_minute: Most requests; None: no limit.
        clock: Seconds that only grow.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Count a request.

        Raises:
            Problem: The caller has made too many (429).
        """
        if self._per_minute is None:
            return
        now, most = self._clock(), float(self._per_minute)
        left, since = self._left.pop(caller, (most, now))
        left = min(left + (now - since) * most / 60, most)
        self._left[caller] = (left - 1 if left >= 1 else left, now)
        while len(self._left) > MOST_CALLERS:
            self._left.popitem(last=False)
        if left < 1:
            seconds = math.ceil((1 - left) * 60 / most)
            detail = f"More than {self._per_minute} requests in a minute. Try again in {seconds} s."
            raise Problem(429, "rate_limit", detail, retry_after=seconds)
