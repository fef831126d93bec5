"""Types of slots: how a value of each is read and drawn."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from mplus.training.talk import scales, values
from mplus.training.talk.scales import Reading


@dataclass(frozen=True)
class SlotType:
    """How values of a type are drawn.

    Attributes:
        draw: From the written value; for a type on a scale, None.
        read: The written value on its scale, or None if it is not of this form.
        near: Another number of the same size as one that was written.
        example: Values as a writer may write them.
    """

    draw: Callable[[str, random.Random], str] | None = None
    read: Callable[[str], Reading | None] | None = None
    near: Callable[[Reading, random.Random], Fraction] | None = None
    example: str = ""


def _near_amount(reading: Reading, rng: random.Random) -> Fraction:
    """Between half and twice as much, as round as it was written; a small count stays small."""
    number, step = reading.number, reading.step
    if 1 < number < 13 and step == 1:
        return Fraction(rng.randint(2, 14))
    low, high = number / 2 / step, number * 2 / step
    return step * rng.randint(max(1, round(low)), max(2, round(high)))


def _near_percentage(reading: Reading, rng: random.Random) -> Fraction:
    return reading.step * rng.randint(1, max(2, round(98 / reading.step)))


def _near_age(reading: Reading, rng: random.Random) -> Fraction:
    bounds = next(b for b in ((2, 12), (13, 19), (20, 64), (65, 98)) if reading.number <= b[1] or b[1] == 98)
    return Fraction(rng.randint(*bounds))


def _near_year(reading: Reading, rng: random.Random) -> Fraction:
    reach = 12 if reading.number > 1980 else 40
    return reading.number + rng.randint(-reach, min(reach, max(0, 2026 - int(reading.number)) or reach))


def _near_time(reading: Reading, rng: random.Random) -> Fraction:
    """A time within five hours, of the same half of the day, as round as it was written."""
    number, step = reading.number, reading.step
    noon = 720 * (number // 720)
    low, high = max(noon + (60 if number < 720 else 0), number - 300), min(noon + 719, number + 300)
    return step * rng.randint(math.ceil(low / step), math.floor(high / step))


def _near_ordinal(reading: Reading, rng: random.Random) -> Fraction:
    return Fraction(rng.randint(2, 20))


def _near_date(reading: Reading, rng: random.Random) -> Fraction:
    return reading.number + rng.randint(-150, 150)


def _within(size: int) -> Callable[[Reading, random.Random], Fraction]:
    return lambda reading, rng: Fraction(rng.randrange(size))


def _listed(name: str) -> SlotType:
    return SlotType(draw=values.from_list(name), example=", ".join(values.lists()[name][:60:20]))


def _amount(example: str) -> SlotType:
    return SlotType(read=scales.read_amount, near=_near_amount, example=example)


_IN_CODE = ("any name", "first name", "last name", "town")
_OF_LISTS = {name: _listed(name) for name in values.lists() if name not in _IN_CODE and not name.startswith("part: ")}
TYPES: Mapping[str, SlotType] = _OF_LISTS | {
    "first name": SlotType(draw=values.first_name, example="Tomas, Hana, Kofi (anybody)"),
    "last name": SlotType(draw=values.last_name, example="Okafor, Lindqvist"),
    "full name": SlotType(draw=values.full_name, example="Hana Okafor"),
    "town": SlotType(draw=values.town, example="Graz, Port Maren"),
    "street": SlotType(draw=values.street, example="Mill Lane, 14 Mill Lane, Mill Lane 14b"),
    "count": _amount("3, seven, 1,400, forty-two (two or more)"),
    "number": _amount("3.5, 48 200, 250 (measures with their unit: 12kg, 9 metres)"),
    "price": _amount("£4.50, 20 euros, $1,200, forty quid, 90 cedis"),
    "duration": _amount("3 weeks, forty minutes, 2 years (two or more)"),
    "percentage": SlotType(read=scales.read_amount, near=_near_percentage, example="12%, 4.5 percent, thirty per cent"),
    "age": SlotType(read=scales.read_amount, near=_near_age, example="34, six"),
    "year": SlotType(read=scales.read_amount, near=_near_year, example="1974, 2021"),
    "ordinal": SlotType(read=scales.read_ordinal, near=_near_ordinal, example="3rd, the 14th, fifth"),
    "time": SlotType(read=scales.read_time, near=_near_time, example="17:30, 5.30pm, 6 am, half past five, 0615"),
    "date": SlotType(read=scales.read_date, near=_near_date, example="3 March, Mar 3rd 2024, Fri 7 June, 2024-03-03"),
    "weekday": SlotType(read=scales.read_weekday, near=_within(7), example="Tuesday, tue, Tuesdays"),
    "month": SlotType(read=scales.read_month, near=_within(12), example="March, mar"),
    "phone": SlotType(draw=values.phone, example="0151 555 2310, +44 7700 900123, four seven one nine"),
    "code": SlotType(draw=values.pattern, example="4719, B7-220K, four seven one nine, WX14 KLO"),
    "password": SlotType(draw=values.of_words, example="purple-heron-44"),
    "path": SlotType(draw=values.of_words, example="/srv/backup/heron_2024.tar.gz, notes.md, parse_heron"),
    "url": SlotType(draw=values.of_words, example="https://heron.example.org/docs/setup"),
    "email": SlotType(draw=values.of_words, example="hana.heron@posteo.example"),
    "ip": SlotType(draw=values.ip_address, example="10.0.14.7, 192.168.2.0/24"),
}  # fmt: skip
