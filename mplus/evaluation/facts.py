"""Personal facts as people tell them to an assistant, with questions whose answers are known.

Everything is generated from a seed. Two splits draw names and values from disjoint lists, so that what is
learnt from one cannot be remembered for the other.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mplus.evaluation.vocabulary import (
    BOOKS,
    CARS,
    CITIES,
    COLOURS,
    DAYS,
    DISHES,
    EVENTS,
    FIRST_NAMES,
    FOODS,
    INSTRUMENTS,
    JOBS,
    LANGUAGES,
    LAST_NAMES,
    MONTHS,
    OBJECTS,
    PET_NAMES,
    PETS,
    PLACES,
    RELATIVES,
    RESTAURANTS,
    SPORTS,
    SPOTS,
    SYLLABLES,
    WORDS,
)

Split = Literal["train", "dev"]
INVENTED = 0.6
"""Share of names and values in the train split that are made up."""


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


def _draw(rng: random.Random, split: Split, values: Sequence[str]) -> str:
    """One of a list's part for the split: every fourth entry belongs to dev."""
    mine = [v for i, v in enumerate(values) if (i % 4 == 3) == (split == "dev")]
    value = rng.choice(mine or list(values))
    if split == "train" and values is not EVENTS and values is not PETS and rng.random() < INVENTED:
        # A model can learn lists of names by heart; names it has never seen it has to read.
        article = "the " if value.startswith("the ") else ""
        invented = " ".join(_invented(rng) for _ in value.removeprefix(article).split()[:2])
        return invented if value[0].isupper() else article + invented.lower()
    return value


def _invented(rng: random.Random) -> str:
    """A made-up name."""
    syllables = [rng.choice(SYLLABLES) for _ in range(rng.choice([2, 2, 3]))]
    return "".join(syllables).capitalize() + rng.choice(("", "", "n", "r", "s", "th"))


def make_fact(rng: random.Random, split: Split) -> Fact:
    """One random fact."""
    return rng.choice(MAKERS)(rng, partial(_draw, rng, split))


def _person(rng: random.Random, draw: Draw) -> Fact:
    name = f"{draw(FIRST_NAMES)} {draw(LAST_NAMES)}"
    said = rng.choice([f"My name is {name}.", f"I'm {name}, by the way.", f"You can call me {name}."])
    asked = rng.choice(["What is my name?", "What's my full name?", "Do you remember my name?"])
    return Fact("name", said, asked, name, f"Your name is {name}.", f"I changed my name; it is {name} now.")


def _home(rng: random.Random, draw: Draw) -> Fact:
    city = draw(CITIES)
    said = rng.choice([f"I live in {city}.", f"My home is in {city}.", f"I've been living in {city} for a while."])
    asked = rng.choice(["Where do I live?", "Which city do I live in?"])
    return Fact("home", said, asked, city, f"You live in {city}.", f"I have moved: I live in {city} now.")


def _born(rng: random.Random, draw: Draw) -> Fact:
    city, year = draw(CITIES), str(rng.randint(1940, 2006))
    said = f"I was born in {city} in {year}."
    if rng.random() < 0.5:
        return Fact("birth year", said, "In which year was I born?", year, f"You were born in {year}.", said)
    return Fact("birth place", said, "Where was I born?", city, f"You were born in {city}.", said)


def _pet(rng: random.Random, draw: Draw) -> Fact:
    pet, name = draw(PETS), draw(PET_NAMES)
    said = rng.choice(
        [
            f"My {pet} is called {name}.",
            f"I have a {pet} named {name}.",
            f"We just got a {pet}; his name is {name}.",
        ]
    )
    asked = rng.choice([f"What is my {pet} called?", f"What's the name of my {pet}?", f"What is my {pet}'s name?"])
    return Fact(
        f"{pet} name",
        said,
        asked,
        name,
        f"Your {pet} is called {name}.",
        f"We renamed our {pet}: he is {name} now.",
    )


def _favourite(rng: random.Random, draw: Draw) -> Fact:
    kind, values = rng.choice(
        [
            ("colour", COLOURS),
            ("dish", DISHES),
            ("sport", SPORTS),
            ("restaurant", RESTAURANTS),
            ("book", BOOKS),
            ("city", CITIES),
        ]
    )
    value = draw(values)
    spelled = rng.choice(["favourite", "favorite"])
    said = rng.choice([f"My {spelled} {kind} is {value}.", f"{value} is my {spelled} {kind}."])
    asked = rng.choice([f"What is my {spelled} {kind}?", f"Which {kind} do I like best?"])
    return Fact(
        f"favourite {kind}",
        said,
        asked,
        value,
        f"Your favourite {kind} is {value}.",
        f"I changed my mind: my favourite {kind} is {value} now.",
    )


def _job(rng: random.Random, draw: Draw) -> Fact:
    job = draw(JOBS)
    article = "an" if job[0] in "aeiou" else "a"
    said = rng.choice([f"I work as {article} {job}.", f"I am {article} {job}.", f"My job: {job}, for ten years now."])
    asked = rng.choice(["What is my job?", "What do I do for a living?", "What do I work as?"])
    return Fact(
        "job",
        said,
        asked,
        job,
        f"You work as {article} {job}.",
        f"I have a new job, I work as {article} {job} now.",
    )


def _allergy(rng: random.Random, draw: Draw) -> Fact:
    food = draw(FOODS)
    said = rng.choice([f"I am allergic to {food}.", f"Careful, I have an allergy: {food}.", f"I can't eat {food}."])
    asked = rng.choice(["What am I allergic to?", "Which food can't I eat?", "What is my allergy?"])
    return Fact("allergy", said, asked, food, f"You are allergic to {food}.", f"My allergy turned out to be {food}.")


def _code(rng: random.Random, draw: Draw) -> Fact:
    thing = rng.choice(["bicycle lock", "front door", "alarm system", "suitcase", "gym locker", "safe", "phone"])
    code = "".join(rng.choice("0123456789") for _ in range(rng.choice([4, 4, 6])))
    said = rng.choice([f"The code of my {thing} is {code}.", f"My {thing} code is {code}.", f"{thing} code: {code}."])
    asked = rng.choice([f"What is the code of my {thing}?", f"What's my {thing} code?"])
    return Fact(
        f"{thing} code",
        said,
        asked,
        code,
        f"The code of your {thing} is {code}.",
        f"I changed the code of my {thing} to {code}.",
    )


def _password(rng: random.Random, draw: Draw) -> Fact:
    word = f"{draw(WORDS)}{draw(WORDS)}{rng.randint(10, 99)}"
    thing = rng.choice(["wifi", "laptop", "guest wifi", "bank", "library"])
    said = rng.choice([f"The {thing} password is {word}.", f"My {thing} password is {word}, please note it."])
    asked = rng.choice([f"What is the {thing} password?", f"What's my {thing} password?"])
    return Fact(
        f"{thing} password",
        said,
        asked,
        word,
        f"The {thing} password is {word}.",
        f"The {thing} password has changed; it is {word} now.",
    )


def _appointment(rng: random.Random, draw: Draw) -> Fact:
    event, day = draw(EVENTS), rng.choice(DAYS)
    when = f"{rng.randint(1, 12)}:{rng.choice(['00', '15', '30', '45'])}"
    said = rng.choice([f"My {event} is on {day} at {when}.", f"I have a {event} on {day} at {when}."])
    changed = f"My {event} was moved to {day} at {when}."
    if rng.random() < 0.5:
        asked = rng.choice([f"On which day is my {event}?", f"When is my {event}?"])
        return Fact(f"{event} day", said, asked, day, f"Your {event} is on {day} at {when}.", changed)
    return Fact(f"{event} time", said, f"At what time is my {event}?", when, f"Your {event} is at {when}.", changed)


def _travel(rng: random.Random, draw: Draw) -> Fact:
    city, date = draw(CITIES), f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
    how = rng.choice(["flight", "train", "bus"])
    said = rng.choice([f"My {how} to {city} leaves on {date}.", f"I take the {how} to {city} on {date}."])
    asked = rng.choice([f"When does my {how} to {city} leave?", f"On which date do I take the {how} to {city}?"])
    return Fact(
        f"{how} to {city}",
        said,
        asked,
        date,
        f"Your {how} to {city} leaves on {date}.",
        f"My {how} to {city} was moved to {date}.",
    )


def _relative(rng: random.Random, draw: Draw) -> Fact:
    who, name = rng.choice(RELATIVES), draw(FIRST_NAMES)
    kind = rng.randrange(3)
    if kind == 0:
        said = rng.choice([f"My {who} is called {name}.", f"{name} is my {who}."])
        return Fact(
            f"{who} name",
            said,
            rng.choice([f"What is my {who} called?", f"What is the name of my {who}?"]),
            name,
            f"Your {who} is called {name}.",
            f"I have a new {who} called {name}.",
        )
    if kind == 1:
        city = draw(CITIES)
        return Fact(
            f"{who} {name} home",
            rng.choice([f"My {who} {name} lives in {city}.", f"My {who} {name} has a flat in {city}."]),
            rng.choice([f"Where does my {who} {name} live?", f"In which city does my {who} live?"]),
            city,
            f"Your {who} {name} lives in {city}.",
            f"My {who} {name} has moved to {city}.",
        )
    job = draw(JOBS)
    article = "an" if job[0] in "aeiou" else "a"
    return Fact(
        f"{who} {name} job",
        f"My {who} {name} is {article} {job}.",
        rng.choice([f"What does my {who} {name} do?", f"What is the job of my {who} {name}?"]),
        job,
        f"Your {who} {name} is {article} {job}.",
        f"My {who} {name} works as {article} {job} now.",
    )


def _birthday(rng: random.Random, draw: Draw) -> Fact:
    who, name = rng.choice(RELATIVES), draw(FIRST_NAMES)
    date = f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
    return Fact(
        f"{name} birthday",
        rng.choice([f"My {who} {name} has her birthday on {date}.", f"{name}'s birthday is on {date}."]),
        rng.choice([f"When is {name}'s birthday?", f"When does my {who} {name} have her birthday?"]),
        date,
        f"{name}'s birthday is on {date}.",
        f"I got it wrong: {name}'s birthday is on {date}.",
    )


def _parking(rng: random.Random, draw: Draw) -> Fact:
    place, level, car = rng.choice(PLACES), str(rng.randint(1, 9)), draw(CARS)
    if rng.random() < 0.5:
        return Fact(
            "parking",
            f"My car is parked on level {level} of the {place}.",
            "On which level is my car parked?",
            f"level {level}",
            f"Your car is parked on level {level} of the {place}.",
            f"I moved my car to level {level} of the {place}.",
        )
    return Fact(
        "car",
        rng.choice([f"I drive a {car}.", f"My car is a {car}."]),
        rng.choice(["What car do I drive?", "Which make is my car?"]),
        car,
        f"You drive a {car}.",
        f"I sold my car and drive a {car} now.",
    )


def _hidden(rng: random.Random, draw: Draw) -> Fact:
    thing, spot = rng.choice(OBJECTS), draw(SPOTS)
    return Fact(
        f"{thing} place",
        rng.choice([f"I keep my {thing} in {spot}.", f"I put the {thing} in {spot}."]),
        rng.choice([f"Where is my {thing}?", f"Where do I keep the {thing}?"]),
        spot,
        f"Your {thing} is in {spot}.",
        f"I moved my {thing} to {spot}.",
    )


def _skill(rng: random.Random, draw: Draw) -> Fact:
    if rng.random() < 0.5:
        value = draw(INSTRUMENTS)
        return Fact(
            "instrument",
            rng.choice([f"I play the {value}.", f"I have played the {value} since school."]),
            rng.choice(["Which instrument do I play?", "What instrument do I play?"]),
            value,
            f"You play the {value}.",
            f"I gave that up and play the {value} now.",
        )
    value = draw(LANGUAGES)
    return Fact(
        "language",
        rng.choice([f"I am learning {value}.", f"I take evening classes in {value}."]),
        "Which language am I learning?",
        value,
        f"You are learning {value}.",
        f"I stopped that course; I am learning {value} now.",
    )


def _number(rng: random.Random, draw: Draw) -> Fact:
    thing, value = rng.choice(
        [
            ("shoe size", str(rng.randint(35, 47))),
            ("house number", str(rng.randint(1, 240))),
            ("room number", str(rng.randint(100, 999))),
            ("seat", f"{rng.randint(1, 40)}{rng.choice('ABCDEF')}"),
            ("customer number", str(rng.randint(10000, 99999))),
            ("phone number", f"{rng.randint(200, 999)}-{rng.randint(1000, 9999)}"),
            ("licence plate", f"{rng.choice('KLMNPR')}{rng.choice('ABCDE')} {rng.randint(100, 999)}"),
        ]
    )
    return Fact(
        thing,
        rng.choice([f"My {thing} is {value}.", f"Please note my {thing}: {value}."]),
        rng.choice([f"What is my {thing}?", f"What's my {thing}?"]),
        value,
        f"Your {thing} is {value}.",
        f"My {thing} has changed to {value}.",
    )


MAKERS: tuple[Callable[[random.Random, Draw], Fact], ...] = (
    _person,
    _home,
    _born,
    _pet,
    _pet,
    _favourite,
    _favourite,
    _favourite,
    _job,
    _allergy,
    _code,
    _code,
    _password,
    _password,
    _appointment,
    _appointment,
    _travel,
    _travel,
    _relative,
    _relative,
    _relative,
    _birthday,
    _parking,
    _hidden,
    _skill,
    _number,
    _number,
)
