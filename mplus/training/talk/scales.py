"""Values that can be counted with: amounts, clock times, dates, weekdays and months, in the form they were written in.

A value is read as a number and as the form around it, and any other number can be written in the same form:
"half past six" becomes "quarter to nine", "£1,250.00" becomes "£1,975.00", "Tues" becomes "Fri".
"""

import re
from collections.abc import Callable, Sequence
from datetime import date
from fractions import Fraction
from typing import NamedTuple

UNITS: Sequence[str] = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS: Sequence[str] = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS: Sequence[str] = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
WEEKDAYS: Sequence[str] = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS: Sequence[str] = "January February March April May June July August September October November December".split()
YEAR_WITHOUT = 2025
"""The year in which a date without one is counted."""


class Reading(NamedTuple):
    """A value on its scale.

    Attributes:
        number: Where it stands; minutes for a time, days for a date.
        step: The grain in which it was written: 0.01 for a price with cents, 100 for a round number.
        write: Another number in the same form.
    """

    number: Fraction
    step: Fraction
    write: Callable[[Fraction], str]


def number_words(number: int) -> str:
    """A whole number below a million in words, "two hundred and six"."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")
    size, word = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % size
    joined = " and " if rest < 100 else " "
    return f"{number_words(number // size)} {word}" + (joined + number_words(rest) if rest else "")


def _words_number(text: str) -> int | None:
    """A whole number written in words, or None."""
    total = current = 0
    for word in re.split(r"[\s-]+", text.lower().strip()):
        if word in UNITS:
            current += UNITS.index(word)
        elif word in TENS[2:]:
            current += 10 * TENS.index(word)
        elif word == "hundred":
            current = max(current, 1) * 100
        elif word == "thousand":
            total, current = max(current, 1) * 1000, 0
        elif word not in ("and", "a"):
            return None
    return total + current


_NUMBER_WORD = "|".join([*UNITS, *TENS[2:], "hundred", "thousand"])
_SPOKEN = re.compile(
    rf"\b(?:a\s(?=hundred|thousand))?(?:{_NUMBER_WORD})(?:[\s-]+(?:and\s+)?(?:{_NUMBER_WORD}))*\b", re.IGNORECASE
)
_SPACED = re.compile(rf"(?:{'|'.join(TENS[2:])})\s(?:{'|'.join(UNITS[1:10])})\b", re.IGNORECASE)
_DIGITS = re.compile(r"\d{1,3}(?:([,. '])\d{3})+(?!\d)(?:([.,])(\d{1,2}))?(?!\d)|\d+(?:([.,])(\d+))?")


def read_amount(text: str) -> Reading | None:
    """The first number in a text, in digits or words, with all that stands around it as the form."""
    if found := _DIGITS.search(text):
        before, after = text[: found.start()], text[found.end() :]
        thousands, mark = found[1] or "", found[2] or found[4] or "."
        decimals = len(found[3] or found[5] or "")
        plain = found[0].replace(thousands, "") if thousands and decimals == 0 else found[0]
        if thousands and decimals:
            plain = found[0][: -decimals - 1].replace(thousands, "") + "." + found[0][-decimals:]
        number = Fraction(plain.replace(",", "."))

        write = lambda value: before + _digits(value, decimals, thousands, mark) + after
        return Reading(number, _step(number, decimals), write)
    return _spoken_amount(text)


def _digits(value: Fraction, decimals: int, thousands: str, mark: str) -> str:
    whole, part = divmod(round(value * 10**decimals), 10**decimals)
    grouped = f"{whole:,}".replace(",", thousands) if thousands else str(whole)
    return grouped + (f"{mark}{part:0{decimals}}" if decimals else "")


def _spoken_amount(text: str) -> Reading | None:
    """The first number in a text that is written in words."""
    found = _SPOKEN.search(text)
    number = _words_number(found[0]) if found else None
    if found is None or number is None:
        return None
    before, after = text[: found.start()], text[found.end() :]
    words = number_words if "-" in found[0] or not re.search(_SPACED, found[0]) else _spaced_words
    a_hundred = found[0].lower().startswith("a ")
    write = lambda value: (
        before + (re.sub(r"^one ", "a ", words(round(value))) if a_hundred else words(round(value))) + after
    )
    return Reading(Fraction(number), _step(Fraction(number), 0), write)


def _spaced_words(number: int) -> str:
    return number_words(number).replace("-", " ")


def _step(number: Fraction, decimals: int) -> Fraction:
    """The grain in which a number was written."""
    if decimals:
        steps = (Fraction(1), Fraction(1, 2), Fraction(1, 10), Fraction(1, 10**decimals))
        return next(step for step in steps if number % step == 0)
    for step in (1000, 100, 50, 10, 5):
        if number >= 3 * step and number % step == 0:
            return Fraction(step)
    return Fraction(1)


def read_ordinal(text: str) -> Reading | None:
    """A place in a row: "the 3rd", "third"."""
    if found := re.search(r"(\d+)(st|nd|rd|th)\b", text, re.IGNORECASE):
        before, after = text[: found.start()], text[found.end() :]
        return Reading(Fraction(found[1]), Fraction(1), lambda value: before + _ordinal(round(value)) + after)
    found = re.search(rf"\b({'|'.join(ORDINALS[1:])})\b", text, re.IGNORECASE)
    if found is None:
        return None
    before, after = text[: found.start()], text[found.end() :]
    write: Callable[[Fraction], str] = lambda value: before + ORDINALS[min(round(value), 20)] + after
    return Reading(Fraction(ORDINALS.index(found[0].lower())), Fraction(1), write)


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


_CLOCK = re.compile(r"(\d{1,2})([:.h])(\d{2})(\s?[ap]\.?m\b\.?)?", re.IGNORECASE)
_HOUR = re.compile(r"\b(\d{1,2})(\s?[ap]\.?m\b\.?)", re.IGNORECASE)
_ARMY = re.compile(r"\b([01]\d|2[0-3])([0-5]\d)\b")
_QUARTER = re.compile(r"\b(half past|quarter past|quarter to|half)\s(\w+)", re.IGNORECASE)
_BARE = re.compile(r"\b(\d{1,2}|" + "|".join(UNITS[1:13]) + r")\b", re.IGNORECASE)


def read_time(text: str) -> Reading | None:
    """A clock time in minutes after midnight: "17:30", "5.30pm", "6 am", "0615", "half past five", "five o'clock"."""
    if found := _CLOCK.search(text):
        mark, suffix = found[2], found[4] or ""
        padded = found[1].startswith("0") or (not suffix and len(found[1]) == 2 and mark != "h")
        write: Callable[[Fraction], str] = lambda value: _clock(value, mark, suffix, padded)
        return _time(text, found, _minutes(int(found[1]), suffix) + int(found[3]), int(found[3]), write)
    if found := _HOUR.search(text):
        suffix = found[2]

        hour = lambda value: (
            (str(_twelve(value)) if round(value) % 60 == 0 else _clock(value, ":", "", False, True)) + suffix
        )
        return _time(text, found, _minutes(int(found[1]), suffix), 0, hour)
    if found := _QUARTER.search(text):
        return _read_quarter(text, found)
    if found := _ARMY.search(text):
        write: Callable[[Fraction], str] = lambda value: f"{round(value) // 60 % 24:02}{round(value) % 60:02}"
        return _time(text, found, int(found[1]) * 60 + int(found[2]), int(found[2]), write)
    if found := _BARE.search(text):
        spoken = found[1].lower() in UNITS
        hours = UNITS.index(found[1].lower()) if spoken else int(found[1])
        write: Callable[[Fraction], str] = lambda value: (
            UNITS[_twelve(value)] if spoken else str(_twelve(value) if hours <= 12 else round(value) // 60)
        )
        return _time(text, found, hours * 60, 0, write)
    return None


def _time(text: str, found: re.Match[str], minutes: int, past: int, write: Callable[[Fraction], str]) -> Reading:
    step = 60 if past == 0 else 15 if past % 15 == 0 else 5 if past % 5 == 0 else 1
    before, after = text[: found.start()], text[found.end() :]
    return Reading(Fraction(minutes), Fraction(step), lambda value: before + write(value) + after)


def _read_quarter(text: str, found: re.Match[str]) -> Reading | None:
    hours = _words_number(found[2]) if not found[2].isdigit() else int(found[2])
    if not hours or hours > 12:
        return None
    spoken = found[1].lower()
    past = {"half past": 30, "half": 30, "quarter past": 15, "quarter to": -15}[spoken]

    write = lambda value: _quarter(value, found[2].isdigit(), "half" if spoken == "half" else "half past")
    return _time(text, found, hours * 60 + past, 15, write)


def _quarter(value: Fraction, in_digits: bool, half: str) -> str:
    whole = _twelve(value)
    this, following = (str(n) if in_digits else UNITS[n] for n in (whole, whole % 12 + 1))
    return (this, f"quarter past {this}", f"{half} {this}", f"quarter to {following}")[round(value) % 60 // 15]


def _minutes(hours: int, suffix: str) -> int:
    return 60 * (hours % 12 + (12 if "p" in suffix.lower() else 0)) if suffix else 60 * hours


def _twelve(value: Fraction) -> int:
    return (round(value) // 60 - 1) % 12 + 1


def _clock(value: Fraction, mark: str, suffix: str, padded: bool, twelve: bool = False) -> str:
    hours = _twelve(value) if suffix or twelve else round(value) // 60 % 24
    return f"{hours:02}" * padded + f"{hours}" * (not padded) + f"{mark}{round(value) % 60:02}{suffix}"


_NAMED = {name[:3].lower(): i for i, name in enumerate(MONTHS)}
_MONTH = r"(?P<month>(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*)"
_DAY = r"(?P<day>\d{1,2})(?P<th>st|nd|rd|th)?"
_YEAR = r"(?P<rest>,?\s)(?P<year>\d{4})"
_DATES = [
    re.compile(rf"{_DAY}(?P<gap>\s(?:of\s)?){_MONTH}(?:{_YEAR})?", re.IGNORECASE),
    re.compile(rf"{_MONTH}(?P<gap>\s(?:the\s)?){_DAY}(?:{_YEAR})?\b", re.IGNORECASE),
]
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_SLASHED = re.compile(r"(\d{1,2})([/.-])(\d{1,2})(?:\2(\d{4}|\d{2})|\.)?")
_WEEKDAY_BEFORE = re.compile(
    r"\b(mon|tue|tues|wed|weds|thu|thur|thurs|fri|sat|sun)(day|sday|nesday|rsday|urday)?\b", re.IGNORECASE
)


def read_date(text: str) -> Reading | None:
    """A date in days, with or without its year and weekday: "3 March", "Mar 3rd, 2024", "2024-03-03", "3/3"."""
    found = next((match for pattern in _DATES if (match := pattern.search(text))), None)
    if found:
        return _dated(text, found, _named_date(found))
    if found := _ISO.search(text):
        day = date(int(found[1]), int(found[2]), int(found[3]))
        return _dated(text, found, (day, lambda value: value.isoformat()))
    if (found := _SLASHED.search(text)) and max(int(found[1]), int(found[3])) <= 31:
        return _dated(text, found, _slashed_date(found))
    return None


def _named_date(found: re.Match[str]) -> tuple[date, Callable[[date], str]]:
    month, year = found["month"], found["year"]
    day = date(int(year or YEAR_WITHOUT), _NAMED[month[:3].lower()] + 1, int(found["day"]))
    day_first = found.start("day") < found.start("month")

    return day, lambda value: _write_named(value, found, day, day_first)


def _write_named(value: date, found: re.Match[str], old: date, day_first: bool) -> str:
    name = _cut(MONTHS[value.month - 1], MONTHS[old.month - 1], found["month"])
    number = _ordinal(value.day) if found["th"] else str(value.day)
    first, second = (number, name) if day_first else (name, number)
    return first + found["gap"] + second + (f"{found['rest']}{value.year}" if found["year"] else "")


def _slashed_date(found: re.Match[str]) -> tuple[date, Callable[[date], str]]:
    first, mark, second, year = int(found[1]), found[2], int(found[3]), found[4]
    month_first = second > 12
    full_year = int(year) + (2000 if len(year) == 2 else 0) if year else YEAR_WITHOUT
    day = date(full_year, *((first, second) if month_first else (second, first)))
    width = 2 if found[1].startswith("0") or (year and len(found[1]) == 2 and len(found[3]) == 2) else 1
    ending = "." if found[0].endswith(".") else ""

    tail = lambda value: f"{mark}{value.year % 10 ** len(year):0{len(year)}}" if year else ending
    return day, lambda value: mark.join(f"{part:0{width}}" for part in _parts(value, month_first)) + tail(value)


def _parts(value: date, month_first: bool) -> tuple[int, int]:
    return (value.month, value.day) if month_first else (value.day, value.month)


def _dated(text: str, found: re.Match[str], read: tuple[date, Callable[[date], str]]) -> Reading:
    """A date with what stands before it; a weekday there moves with the day."""
    day, write_day = read
    before, after = text[: found.start()], text[found.end() :]
    weekday = _WEEKDAY_BEFORE.search(before)
    number = Fraction(day.toordinal())

    written = read_weekday(weekday[0]) if weekday else None
    if not weekday or not written:
        return Reading(number, Fraction(1), lambda value: before + write_day(date.fromordinal(round(value))) + after)
    start, between = before[: weekday.start()], before[weekday.end() :]
    moved = lambda value: start + written.write(written.number + round(value) - number) + between
    write = lambda value: moved(value) + write_day(date.fromordinal(round(value))) + after
    return Reading(number, Fraction(1), write)


def _cut(name: str, old_name: str, old: str) -> str:
    """A name cut and cased as another was: Tuesday written "Tues" makes Friday "Fri"."""
    if name == old_name:
        return old
    ending = old[len(old_name) :] if old.lower().startswith(old_name.lower()) else ""
    cut = name + ending if len(old) >= len(old_name) else name[:3]
    return cut.lower() if old.islower() else cut.upper() if old.isupper() and len(old) > 1 else cut


def read_weekday(text: str) -> Reading | None:
    """A day of the week: "Tuesday", "tue", "Tuesdays", "on Tuesday evening"."""
    return _named(text, WEEKDAYS, r"\b(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\b")


def read_month(text: str) -> Reading | None:
    """A month: "March", "mar", "early March"."""
    return _named(text, MONTHS, r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b")


def _named(text: str, names: Sequence[str], pattern: str) -> Reading | None:
    found = re.search(pattern, text, re.IGNORECASE)
    if not found:
        return None
    number = next(i for i, name in enumerate(names) if name[:3].lower() == found[0][:3].lower())
    before, after = text[: found.start()], text[found.end() :]
    write: Callable[[Fraction], str] = lambda value: (
        before + _cut(names[round(value) % len(names)], names[number], found[0]) + after
    )
    return Reading(Fraction(number), Fraction(1), write)
