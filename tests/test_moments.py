"""Moments in every form, as seconds and as a reader sees them."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from mplus.moments import as_text, heading_of, seconds_of

NOON = datetime(2024, 3, 3, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "given",
    [
        NOON,
        NOON.replace(tzinfo=None),
        NOON.astimezone(timezone(timedelta(hours=-7))),
        NOON.timestamp(),
        int(NOON.timestamp()),
        "2024-03-03T12:00:00Z",
        "2024-03-03T14:00:00+02:00",
        "2024-03-03 12:00",
    ],
)
def test_every_form_is_the_same_moment(given: Any) -> None:
    assert seconds_of(given, "at") == NOON.timestamp()
    assert as_text(seconds_of(given, "at")) == "2024-03-03T12:00:00+00:00"
    assert heading_of(given) == "On 3 March 2024:"


@pytest.mark.parametrize("day", [date(2024, 3, 3), "2024-03-03", "20240303", "2024-W09-7"])
def test_a_date_is_its_whole_day(day: Any) -> None:
    begin, end = seconds_of(day, "since"), seconds_of(day, "until", end=True)
    assert as_text(begin) == "2024-03-03T00:00:00+00:00"
    assert 86_399 < end - begin < 86_400
    assert heading_of(day) == "On 3 March 2024:"


def test_the_reader_sees_the_day_of_the_place_where_it_was_said() -> None:
    assert heading_of("2024-03-03T23:30:00-05:00") == "On 3 March 2024:"
    assert heading_of(datetime(1923, 12, 31)) == "On 31 December 1923:"
    assert as_text(seconds_of("1923-12-31T00:00:00.5", "at")) == "1923-12-31T00:00:00.500000+00:00"


@pytest.mark.parametrize(
    "given",
    [
        *(True, None, [], {}, "", "soon", "2024-13-01", float("nan"), float("inf"), 1.7e12, -1e11, 10**400),
        *("0001-01-01T00:00+05:00", "9999-12-31T23:00-05:00"),
    ],
)
def test_what_is_no_moment_is_refused_by_the_name_it_was_given_as(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^since="):
        seconds_of(given, "since")


def test_milliseconds_are_told_apart() -> None:
    with pytest.raises(ValueError, match=r"Divide milliseconds by 1,000"):
        seconds_of(1_709_467_200_000, "at")


def test_the_first_and_the_last_year_come_back() -> None:
    for text in ("0001-01-01T00:00:00+00:00", "9999-12-31T12:00:00+00:00"):
        seconds = seconds_of(text, "at")
        assert as_text(seconds_of(seconds, "at")) == text
