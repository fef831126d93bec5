"""Moments: when something was said, given as a date, a time, ISO 8601 text or Unix seconds.

A time without a zone is in UTC, so that the same call means the same everywhere.
"""

import calendar
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

Moment = datetime | date | str | float
"""A time. A date, or a text that is one, stands for the whole day."""
Moments = Moment | Sequence[Moment | None] | None
"""The time of all texts, or one for each; None for what is said now."""

EXPECTED = "a datetime, a date, ISO 8601 text such as '2024-03-03T10:00:00+00:00', or Unix seconds"
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
EARLIEST = calendar.timegm((1, 1, 1, 0, 0, 0))
LATEST = calendar.timegm((9999, 12, 31, 23, 59, 59)) + 0.999999
DAY = timedelta(days=1) - timedelta(microseconds=1)


def seconds_of(given: Any, name: str, *, end: bool = False) -> float:
    """A moment as Unix seconds.

    Args:
        given: The moment.
        name: What it is given as, for messages.
        end: Whether a date stands for the end of its day; else for the beginning.

    Raises:
        ValueError: It is no moment.
    """
    if isinstance(given, bool) or not isinstance(given, datetime | date | str | int | float):
        raise ValueError(f"{name}={given!r:.60} ({type(given).__name__}): expected {EXPECTED}.")
    if isinstance(given, int | float):
        if not EARLIEST <= given <= LATEST:  # nor is NaN
            raise ValueError(
                f"{name}={given!r:.40}: expected seconds from the year 1 to 9999. Divide milliseconds by 1,000."
            )
        return float(given)
    moment, whole_day = _moment(given, name)
    try:
        if end and whole_day:
            moment += DAY
        # Not ``timestamp``, which some systems refuse for years before 1970.
        return calendar.timegm(moment.utctimetuple()) + moment.microsecond / 1e6
    except OverflowError as error:
        raise ValueError(f"{name}={given!r:.60}: in UTC it is not within the years 1 to 9999.") from error


def _moment(given: datetime | date | str, name: str) -> tuple[datetime, bool]:
    """A time with a zone, and whether it stands for its day."""
    if isinstance(given, str):
        text = given.strip()
        try:
            given = date.fromisoformat(text)
        except ValueError:
            try:
                given = datetime.fromisoformat(text)
            except ValueError as error:
                raise ValueError(f"{name}={given!r:.60}: expected {EXPECTED}.") from error
    if not isinstance(given, datetime):
        return datetime(given.year, given.month, given.day, tzinfo=UTC), True
    return (given.replace(tzinfo=UTC) if given.tzinfo is None else given), False


def heading_of(given: Moment, name: str = "at") -> str:
    """What a reader sees of a moment, such as "On 3 March 2024:"; the day is that of its own zone, else of UTC.

    Raises:
        ValueError: It is no moment.
    """
    if isinstance(given, int | float):
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds_of(given, name))
    else:
        moment, _ = _moment(given, name)
    return f"On {moment.day} {MONTHS[moment.month - 1]} {moment.year}:"


def as_text(seconds: float) -> str:
    """Unix seconds as ISO 8601 text in UTC."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="auto" if moment.microsecond else "seconds")
