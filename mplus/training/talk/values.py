"""Lists from which values are drawn, and values made up of syllables, patterns and words."""

import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

INVENTED = 0.25
"""Share of names of people and places that nobody has heard of."""
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
DIGIT_WORDS = "zero one two three four five six seven eight nine".split()
_SIGN = re.compile(rf"\b(?:{'|'.join(DIGIT_WORDS)})\b|[A-Za-z0-9]")


@cache
def lists() -> dict[str, tuple[str, ...]]:
    """Values by type, from `values.txt`."""
    text = (Path(__file__).parent / "values.txt").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.split("\n") if not line.startswith("#"))
    parts = re.split(r"^\[(.+)\]$", text, flags=re.MULTILINE)[1:]
    read = {
        name: tuple(dict.fromkeys(" ".join(value.split()) for value in block.split(",") if value.strip()))
        for name, block in zip(parts[::2], parts[1::2], strict=True)
    }
    read["first name"] = tuple(dict.fromkeys(read["woman's name"] + read["man's name"] + read["any name"]))
    return read


def _part(name: str, rng: random.Random) -> str:
    return rng.choice(lists()[f"part: {name}"])


def from_list(name: str) -> Callable[[str, random.Random], str]:
    """Draws from a list of `values.txt`."""
    return lambda written, rng: rng.choice(lists()[name])


def first_name(written: str, rng: random.Random) -> str:
    """A first name of anybody, at times one that nobody has."""
    if rng.random() < INVENTED:
        return _part("start of a name", rng) + _part("end of a name", rng)
    return rng.choice(lists()["first name"])


def last_name(written: str, rng: random.Random) -> str:
    """A family name, at times one that nobody has."""
    if rng.random() < INVENTED:
        return _part("start of a name", rng) + _part("middle of a name", rng) + _part("end of a name", rng)
    return rng.choice(lists()["last name"])


def full_name(written: str, rng: random.Random) -> str:
    """A first name and a family name."""
    return f"{first_name(written, rng)} {last_name(written, rng)}"


def town(written: str, rng: random.Random) -> str:
    """A town, at times one that does not exist."""
    if rng.random() < INVENTED:
        return _part("start of a name", rng) + _part("middle of a name", rng) + _part("end of a town", rng)
    return rng.choice(lists()["town"])


def street(written: str, rng: random.Random) -> str:
    """A street; a house number stands where it stood."""
    name = f"{_part('name of a street', rng)} {_part('kind of street', rng)}"
    if found := re.match(r"\d+\w?\s", written):
        return pattern(found[0].strip(), rng) + " " + name
    found = re.search(r"\s\d+\w?$", written)
    return name + (" " + pattern(found[0].strip(), rng) if found else "")


def pattern(written: str, rng: random.Random) -> str:
    """Another code, number plate or telephone number of the same shape; numbers that were dictated stay dictated."""
    return _SIGN.sub(lambda found: _another(found[0], found.start() == 0, rng), written)


def _another(sign: str, is_first: bool, rng: random.Random) -> str:
    """Another dictated digit, digit or letter."""
    if len(sign) > 1:
        return rng.choice(DIGIT_WORDS[1:])
    if sign.isdigit():
        return sign if sign == "0" and is_first else rng.choice("123456789" if is_first else "0123456789")
    return rng.choice(LETTERS if sign.isupper() else LETTERS.lower())


def phone(written: str, rng: random.Random) -> str:
    """A telephone number; its country's or area's first two digits stay."""
    found = re.match(r"\+?\d{2}", written)
    if found is None:
        return pattern(written, rng)
    return found[0] + pattern("0" + written[found.end() :], rng)[1:]


def ip_address(written: str, rng: random.Random) -> str:
    """An address in the same network."""
    parts = re.split(r"(\d+)", written)
    numbers = [i for i in range(1, len(parts), 2)]
    for i in numbers[2:4]:
        parts[i] = str(rng.randint(2, 254))
    return "".join(parts)


def of_words(written: str, rng: random.Random) -> str:
    """A path, address, file name or pass phrase with other words and digits in the same places."""
    return re.sub(r"[^\W\d_]+|\d+", lambda found: _another_part(found[0], rng), written)


def _another_part(part: str, rng: random.Random) -> str:
    if part.isdigit():
        return pattern(part, rng)
    if part.lower() in lists()["part: fixed in a path"] or len(part) < 3:
        return part
    word = rng.choice(lists()["word"])
    return word.upper() if part.isupper() else word.capitalize() if part[0].isupper() else word
