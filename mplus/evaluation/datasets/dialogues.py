"""Task-oriented conversations with their facts, and questions about what was settled in them."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from mplus.evaluation.data_files import field_of, read_records, turns_as_text
from mplus.evaluation.datasets.drawing import enough
from mplus.evaluation.tasks import Question, Task

WORD_STARTS = re.compile(r"(?<=[a-z])(?=[A-Z])")


def dialogue(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """Task-oriented conversations with their facts, one JSON a line: what was settled in a conversation.

    An unanswerable question is about a conversation that is written nowhere.
    """
    records = list(read_records(path))
    rng.shuffle(records)
    texts = [turns_as_text(field_of(record, "turns", path)) for record in records]
    settled = Settlements([field_of(record, "facts", path) for record in records])
    askable: list[tuple[str, str, list[Settled]]] = []
    idle: list[str] = []
    for number, (record, text) in enumerate(zip(records, texts, strict=True)):
        asked = settled.questions(number, text, rng) if len(askable) < questions + unanswerable else []
        if asked:
            askable.append((str(field_of(record, "id", path)), text, asked))
        else:
            idle.append(text)
    enough(path, "conversations to ask about", questions + unanswerable, len(askable))
    contexts = {f"dialogue-{name}": text for name, text, _ in askable[:questions]}
    found: list[Question] = []
    for name, _, asked in askable[:questions]:
        one, own = rng.choice(asked), (f"dialogue-{name}",)
        found.append(Question(f"q-{name}", one.question, (one.answer,), own, own, "answerable"))
    for name, _, asked in askable[questions:]:
        other = (rng.choice(list(contexts)),) if contexts else ()
        found.append(Question(f"unknown-{name}", rng.choice(asked).question, (), other, (), "unknown"))
    return Task("dialogue", contexts, tuple(found), tuple(idle), style="plain")


class Settled(NamedTuple):
    """Something that was settled in a conversation, as it may be asked for."""

    question: str
    answer: str
    reply: str
    """A good answer, as a sentence."""


class Settlements:
    """What was settled in many conversations about the same few services, in much the same words.

    Args:
        facts: Per conversation (turn, act, service, slot, value); "Restaurants_1" and "Restaurants_2" are one topic.
    """

    def __init__(self, facts: Sequence[Sequence[Sequence[Any]]]) -> None:
        self._facts = facts
        self._having: dict[tuple[str, str], set[int]] = {}
        for number, known in enumerate(facts):
            for _, _, service, _, value in known:
                self._having.setdefault((topic_of(service), value.casefold()), set()).add(number)

    def questions(self, number: int, text: str, rng: random.Random) -> list[Settled]:
        """Questions about one conversation that no other conversation answers.

        Asked for is a value that ``text`` has in so many words and that was never another. Two other settled values say
        which conversation is meant: two that no other conversation about the topic has both of.
        """
        return [
            asked
            for service, slots in _settled(self._facts[number], text).items()
            for asked in self._about(number, topic_of(service), slots, rng)
        ]

    def _about(self, number: int, topic: str, slots: Mapping[str, str], rng: random.Random) -> Iterator[Settled]:
        for slot, value in slots.items():
            others = [name for name, known in slots.items() if not _overlap(known, value)]
            pairs = [pair for pair in combinations(others, 2) if self._only(number, topic, [slots[n] for n in pair])]
            if not pairs:
                continue
            given = " and ".join(f"{_spoken(name)} {slots[name]}" for name in rng.choice(pairs))
            name = _spoken(slot)
            was = "were" if name.endswith("s") and not name.startswith("number ") and name != "address" else "was"
            asked = f"In the conversation about {topic} with {given}, what {was} the {name}?"
            yield Settled(asked, value, f"The {name} {was} {value}.")

    def _only(self, number: int, topic: str, values: Sequence[str]) -> bool:
        """Whether no other conversation about the topic has all of these values."""
        return set.intersection(*(self._having[topic, value.casefold()] for value in values)) == {number}


def topic_of(service: str) -> str:
    """What a service is about: "rental cars" for "RentalCars_1"."""
    return WORD_STARTS.sub(" ", service.split("_")[0]).lower()


def _settled(facts: Sequence[Sequence[Any]], text: str) -> dict[str, dict[str, str]]:
    """By service, slots with the one value they ever had, where the conversation says it in so many words."""
    values: dict[tuple[str, str], list[str]] = {}
    for _, act, service, slot, value in facts:
        if act in ("inform", "confirm", "offer") and value not in ("True", "False", "dontcare"):
            known = values.setdefault((service, slot), [])
            if value not in known:
                known.append(value)
    settled: dict[str, dict[str, str]] = {}
    for (service, slot), known in values.items():
        if len(known) == 1 and re.search(rf"(?<!\w){re.escape(known[0])}(?!\w)", text, re.IGNORECASE):
            settled.setdefault(service, {})[slot] = known[0]
    return settled


def _overlap(one: str, other: str) -> bool:
    return one.lower() in other.lower() or other.lower() in one.lower()


def _spoken(slot: str) -> str:
    return slot.replace("_", " ")
