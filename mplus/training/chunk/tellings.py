"""Items of our own corpus with values drawn, encoded as a memory keeps them."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.talk import Item, drawn

DECLINED = "I don't know."
EXCHANGES = 0.3
"""Share of conversations whose questions and answers are encoded as turns, to be read before later questions."""


class Telling(NamedTuple):
    """An item with values in its slots, and where its texts are in the bank.

    Attributes:
        item: The item, filled in.
        told: Text of each message.
        asked: For each question, the texts of the question and of its full answer, as turns; empty if not encoded.
        said: The same of questions that were answered wrong or declined: what an assistant said is no fact.
    """

    item: Item
    told: list[int]
    asked: list[tuple[int, int]]
    said: list[tuple[int, int]]


def turn_text(role: str, text: str) -> str:
    """A turn as it is written into memory."""
    return f"{role.capitalize()}: {text}"


def add_tellings(bank: ChunkBank, items: Sequence[Item], times: int, rng: random.Random) -> list[Telling]:
    """Draw values for every item, several times, and encode it.

    Messages of conversations are encoded as turns, the paragraphs of documents as one text, notes either way.
    """
    planned: list[tuple[Item, list[str], int]] = []
    for _ in range(times):
        for item in items:
            filled = drawn(item, rng)
            as_turns = item.kind == "conversation" or (item.kind == "note" and rng.random() < 0.5)
            if as_turns:
                texts = [turn_text(message.role, message.text) for message in filled.told]
            elif item.kind == "note" and rng.random() < 0.5:
                texts = [message.text for message in filled.told]
            else:
                texts = ["\n\n".join(message.text for message in filled.told)]
            size = len(texts)
            if as_turns and rng.random() < EXCHANGES:
                right = [(question.q, question.full) for question in filled.ask]
                for question, answer in [*right, *_not_facts(filled, drawn(item, rng), rng)]:
                    texts += [turn_text("user", question), turn_text("assistant", answer)]
            planned.append((filled, texts, size))
    numbers = iter(bank.add([text for _, texts, _ in planned for text in texts], progress="told texts"))
    tellings: list[Telling] = []
    for filled, texts, size in planned:
        mine = [next(numbers) for _ in texts]
        told = mine[:size] if size > 1 else mine[:1] * len(filled.told)
        turns = list(zip(mine[size::2], mine[size + 1 :: 2], strict=True))
        count = len(filled.ask)
        tellings.append(Telling(filled, told, turns[:count], turns[count:]))
    return tellings


def _not_facts(item: Item, other: Item, rng: random.Random) -> list[tuple[str, str]]:
    """Questions with what an assistant might say that is not so: values of another, an answer to something else.

    ``other`` is the same item with other values. Declined questions are among them.
    """
    pairs = list(zip(item.ask, other.ask, strict=True))
    mistaken = [(mine.q, its.full) for mine, its in pairs if not any(s.lower() in its.full.lower() for s in mine.short)]
    unknown = rng.sample(item.unknown, min(len(item.unknown), 3))
    said = rng.sample(mistaken, min(len(mistaken), 3)) + [(question, DECLINED) for question in unknown[1:]]
    return [*said, *((question, rng.choice(item.ask).full) for question in unknown[:1])]
