"""Personal facts as people tell them to an assistant, with questions whose answers are known.

Everything is generated from a seed. Two splits draw names and values from disjoint lists, so that what is
learnt from one cannot be remembered for the other. How facts are worded stands in ``facts.toml``.
"""

import random
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mplus.evaluation import vocabulary

Split = Literal["train", "dev"]
INVENTED = 0.6
"""Share of names and values in the train split that are made up."""
WORDINGS: dict[str, dict[str, str | list[str]]] = tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
)
"""By kind of fact, what it fills the fields of ``Fact`` with; one of several is drawn."""


@dataclass(frozen=True)
class Fact:
    """One thing a person said, and how it may be asked for.

    Attributes:
        kind: What it is about; two facts of one kind and subject cannot both hold.
        statement: As the person says it.
        question: As the person asks for it.
        answer: The part that must stand in a right answer.
        reply: A good answer, as a sentence.
        update: How a later change is said, with the new value in place.
    """

    kind: str
    statement: str
    question: str
    answer: str
    reply: str
    update: str


Draw = Callable[[Sequence[str]], str]
Drawn = tuple[str, dict[str, str]]
"""A kind of fact, as in ``facts.toml``, and the values it is about."""


def _draw(rng: random.Random, split: Split, values: Sequence[str]) -> str:
    """One of a list's part for the split: every fourth entry belongs to dev."""
    mine = [v for i, v in enumerate(values) if (i % 4 == 3) == (split == "dev")]
    value = rng.choice(mine or list(values))
    if split == "train" and values not in (vocabulary.EVENTS, vocabulary.PETS) and rng.random() < INVENTED:
        # A model can learn lists of names by heart; names it has never seen it has to read.
        article = "the " if value.startswith("the ") else ""
        invented = " ".join(_invented(rng) for _ in value.removeprefix(article).split()[:2])
        return invented if value[0].isupper() else article + invented.lower()
    return value


def _invented(rng: random.Random) -> str:
    """A made-up name."""
    syllables = [rng.choice(vocabulary.SYLLABLES) for _ in range(rng.choice([2, 2, 3]))]
    return "".join(syllables).capitalize() + rng.choice(("", "", "n", "r", "s", "th"))


def make_fact(rng: random.Random, split: Split) -> Fact:
    """One random fact."""
    kind, values = rng.choice(MAKERS)(rng, partial(_draw, rng, split))
    worded = {
        name: (rng.choice(texts) if isinstance(texts, list) else texts).format(**values)
        for name, texts in WORDINGS[kind].items()
    }
    return Fact(kind.format(**values), **worded)


def _person(rng: random.Random, draw: Draw) -> Drawn:
    return "name", {"name": f"{draw(vocabulary.FIRST_NAMES)} {draw(vocabulary.LAST_NAMES)}"}


def _home(rng: random.Random, draw: Draw) -> Drawn:
    return "home", {"city": draw(vocabulary.CITIES)}


def _born(rng: random.Random, draw: Draw) -> Drawn:
    values = {"city": draw(vocabulary.CITIES), "year": str(rng.randint(1940, 2006))}
    return "birth year" if rng.random() < 0.5 else "birth place", values


def _pet(rng: random.Random, draw: Draw) -> Drawn:
    return "{pet} name", {"pet": draw(vocabulary.PETS), "name": draw(vocabulary.PET_NAMES)}


def _favourite(rng: random.Random, draw: Draw) -> Drawn:
    thing = rng.choice(list(vocabulary.FAVOURITES))
    value = draw(vocabulary.FAVOURITES[thing])
    return "favourite {thing}", {"thing": thing, "value": value, "spelled": rng.choice(["favourite", "favorite"])}


def _job(rng: random.Random, draw: Draw) -> Drawn:
    return "job", _with_article(draw(vocabulary.JOBS))


def _with_article(job: str) -> dict[str, str]:
    return {"job": job, "a_job": f"{'an' if job[0] in 'aeiou' else 'a'} {job}"}


def _allergy(rng: random.Random, draw: Draw) -> Drawn:
    return "allergy", {"food": draw(vocabulary.FOODS)}


def _code(rng: random.Random, draw: Draw) -> Drawn:
    thing = rng.choice(["bicycle lock", "front door", "alarm system", "suitcase", "gym locker", "safe", "phone"])
    code = "".join(rng.choice("0123456789") for _ in range(rng.choice([4, 4, 6])))
    return "{thing} code", {"thing": thing, "code": code}


def _password(rng: random.Random, draw: Draw) -> Drawn:
    word = f"{draw(vocabulary.WORDS)}{draw(vocabulary.WORDS)}{rng.randint(10, 99)}"
    return "{thing} password", {"word": word, "thing": rng.choice(["wifi", "laptop", "guest wifi", "bank", "library"])}


def _appointment(rng: random.Random, draw: Draw) -> Drawn:
    event, day = draw(vocabulary.EVENTS), rng.choice(vocabulary.DAYS)
    when = f"{rng.randint(1, 12)}:{rng.choice(['00', '15', '30', '45'])}"
    said = rng.choice([f"My {event} is on {day} at {when}.", f"I have a {event} on {day} at {when}."])
    kind = "{event} day" if rng.random() < 0.5 else "{event} time"
    return kind, {"event": event, "day": day, "when": when, "said": said}


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(vocabulary.MONTHS)}"


def _travel(rng: random.Random, draw: Draw) -> Drawn:
    values = {"city": draw(vocabulary.CITIES), "date": _date(rng), "how": rng.choice(["flight", "train", "bus"])}
    return "{how} to {city}", values


def _relative(rng: random.Random, draw: Draw) -> Drawn:
    values = {"who": rng.choice(vocabulary.RELATIVES), "name": draw(vocabulary.FIRST_NAMES)}
    kind = rng.choice(["{who} name", "{who} {name} home", "{who} {name} job"])
    if kind == "{who} {name} home":
        values["city"] = draw(vocabulary.CITIES)
    elif kind == "{who} {name} job":
        values |= _with_article(draw(vocabulary.JOBS))
    return kind, values


def _birthday(rng: random.Random, draw: Draw) -> Drawn:
    who, name = rng.choice(vocabulary.RELATIVES), draw(vocabulary.FIRST_NAMES)
    return "{name} birthday", {"who": who, "name": name, "date": _date(rng)}


def _parking(rng: random.Random, draw: Draw) -> Drawn:
    values = {"place": rng.choice(vocabulary.PLACES), "level": str(rng.randint(1, 9)), "car": draw(vocabulary.CARS)}
    return "parking" if rng.random() < 0.5 else "car", values


def _hidden(rng: random.Random, draw: Draw) -> Drawn:
    return "{thing} place", {"thing": rng.choice(vocabulary.OBJECTS), "spot": draw(vocabulary.SPOTS)}


def _skill(rng: random.Random, draw: Draw) -> Drawn:
    if rng.random() < 0.5:
        return "instrument", {"value": draw(vocabulary.INSTRUMENTS)}
    return "language", {"value": draw(vocabulary.LANGUAGES)}


def _number(rng: random.Random, draw: Draw) -> Drawn:
    values = {
        "shoe size": str(rng.randint(35, 47)),
        "house number": str(rng.randint(1, 240)),
        "room number": str(rng.randint(100, 999)),
        "seat": f"{rng.randint(1, 40)}{rng.choice('ABCDEF')}",
        "customer number": str(rng.randint(10000, 99999)),
        "phone number": f"{rng.randint(200, 999)}-{rng.randint(1000, 9999)}",
        "licence plate": f"{rng.choice('KLMNPR')}{rng.choice('ABCDE')} {rng.randint(100, 999)}",
    }
    thing = rng.choice(list(values))
    return "{thing}", {"thing": thing, "value": values[thing]}


MAKERS = [
    maker
    for maker, times in {
        _person: 1,
        _home: 1,
        _born: 1,
        _pet: 2,
        _favourite: 3,
        _job: 1,
        _allergy: 1,
        _code: 2,
        _password: 2,
        _appointment: 2,
        _travel: 2,
        _relative: 3,
        _birthday: 1,
        _parking: 1,
        _hidden: 1,
        _skill: 1,
        _number: 2,
    }.items()
    for _ in range(times)
]
