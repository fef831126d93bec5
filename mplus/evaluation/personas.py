"""Persons: sets of facts that do not contradict each other, some of them changed later."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mplus.evaluation.facts import Fact, Split, make_fact


@dataclass(frozen=True)
class Told:
    """A fact as it stands in a conversation: said once, or said and later changed."""

    fact: Fact
    earlier: Fact | None = None
    """What was said first, where ``fact`` is its update."""

    @property
    def statements(self) -> tuple[str, ...]:
        """What the person said, in order."""
        if self.earlier is None:
            return (self.fact.statement,)
        return self.earlier.statement, self.fact.update


def persona(rng: random.Random, split: Split, count: int, *, updated: float = 0.15) -> list[Told]:
    """Facts of one person that do not contradict each other; some are updated later."""
    told: list[Told] = []
    kinds: set[str] = set()
    tries = 0
    while len(told) < count and tries < 50 * count:
        tries += 1
        fact = make_fact(rng, split)
        if fact.kind in kinds:
            continue
        kinds.add(fact.kind)
        earlier = _earlier(rng, split, fact) if rng.random() < updated else None
        told.append(Told(fact, earlier))
    return told


def _earlier(rng: random.Random, split: Split, fact: Fact) -> Fact | None:
    for _ in range(200):
        other = make_fact(rng, split)
        if other.kind == fact.kind and other.answer != fact.answer:
            return other
    return None


def unknown_questions(rng: random.Random, split: Split, told: list[Told]) -> Iterator[Fact]:
    """Facts that were never told: their questions have no answer."""
    kinds = {t.fact.kind for t in told}
    while True:
        fact = make_fact(rng, split)
        if fact.kind not in kinds:
            yield fact
