"""Ordinary requests that no memory is needed for, and how the backbone itself answers them."""

import random
from collections.abc import Sequence

from mplus.model import MPlus

CAPITALS = (
    "France Italy Spain Portugal Germany Austria Poland Greece Sweden Norway Japan China India Egypt Kenya".split()
)
WRITERS = "Hamlet,Pride and Prejudice,Don Quixote,War and Peace,The Odyssey,Moby Dick,Frankenstein,Dracula".split(",")
THINGS = "the sun,a rainbow,gravity,photosynthesis,the internet,a volcano,an atom,inflation,a vaccine,music".split(",")
SUBJECTS = "autumn,a friendly robot,the sea,an old clock,a lost key,two birds,the night train,a garden".split(",")
AIMS = "sleep better,learn a language,save money,cook rice,stay focused,write a letter,start running".split(",")
OCCASIONS = "a birthday,a wedding,a new job,a farewell,an exam,a long illness".split(",")
WORDS = "happy,quick,difficult,important,quiet,brave,cold,strange".split(",")
TONGUES = "French,Spanish,German,Italian".split(",")


def general_requests(rng: random.Random, count: int) -> list[str]:
    """Different requests about common knowledge, writing, and everyday life."""
    a, b = rng.randint, rng.choice

    def one() -> str:
        return b(
            [
                f"What is the capital of {b(CAPITALS)}?",
                f"Who wrote {b(WRITERS)}?",
                f"Explain {b(THINGS)} in one sentence.",
                f"What is {b(THINGS)}?",
                f"Write a short poem about {b(SUBJECTS)}.",
                f"Write a two-sentence story about {b(SUBJECTS)}.",
                f"Give me three tips to {b(AIMS)}.",
                f"Write a short message for {b(OCCASIONS)}.",
                f"Give me a synonym for the word {b(WORDS)}.",
                f"How do you say '{b(WORDS)}' in {b(TONGUES)}?",
                f"What is {a(2, 40)} plus {a(2, 40)}?",
                f"What can I cook with {b(['rice', 'eggs', 'potatoes', 'tomatoes', 'beans'])}?",
                b(["Hello!", "Hi, how are you?", "Good morning!", "Thank you!", "Tell me a joke.", "Who are you?"]),
            ]
        )

    found: dict[str, None] = {}
    for _ in range(20 * count):
        if len(found) < count:
            found.setdefault(one())
    return list(found)


def answered_requests(
    model: MPlus, rng: random.Random, count: int, *, batch: int = 24, max_new_tokens: int = 40
) -> list[tuple[str, str]]:
    """Requests with the backbone's own replies (an empty memory reads as the backbone), cut where they grow long."""
    return answered(model, general_requests(rng, count), batch=batch, max_new_tokens=max_new_tokens)


def answered(
    model: MPlus, requests: Sequence[str], *, batch: int = 24, max_new_tokens: int = 40
) -> list[tuple[str, str]]:
    """Given requests with the backbone's own replies."""
    found: list[tuple[str, str]] = []
    for start in range(0, len(requests), batch):
        asked: Sequence[str] = requests[start : start + batch]
        prompts = [[{"role": "user", "content": text}] for text in asked]
        memories = [model.new_memory() for _ in asked]
        replies = model.generate_batch(memories, prompts, max_new_tokens=max_new_tokens)
        found += [(text, reply.text.strip()) for text, reply in zip(asked, replies, strict=True) if reply.text.strip()]
    return found
