"""Ordinary requests that no memory is needed for, and how the backbone itself answers them."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

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


def answered(
    model: MPlus, requests: Sequence[str], *, kept: Path | None = None, batch: int = 24, max_new_tokens: int = 40
) -> list[tuple[str, str]]:
    """Requests with the backbone's own replies (an empty memory reads as the backbone), cut where they grow long.

    Args:
        model: The backbone; its trained parts do not count.
        requests: What is asked.
        kept: File of replies: what is in it is not asked again, the rest is added batch by batch. None: nothing is
            kept.
        batch: Requests that are answered together.
        max_new_tokens: Of a reply.

    Returns:
        Requests and replies, without those that have none.
    """
    replies: dict[str, str] = json.loads(kept.read_text("utf-8")) if kept is not None and kept.exists() else {}
    missing = [text for text in dict.fromkeys(requests) if text not in replies]
    for start in range(0, len(missing), batch):
        asked = missing[start : start + batch]
        prompts = [[{"role": "user", "content": text}] for text in asked]
        memories = [model.new_memory() for _ in asked]
        made = model.generate_batch(memories, prompts, max_new_tokens=max_new_tokens)
        replies |= {text: reply.text.strip() for text, reply in zip(asked, made, strict=True)}
        print(f"replies: {start + len(asked):,} of {len(missing):,} requests", file=sys.stderr, flush=True)
        if kept is not None:
            new = kept.with_suffix(".new")
            new.write_text(json.dumps(replies, ensure_ascii=False, indent=0), "utf-8")
            new.replace(kept)
    return [(text, replies[text]) for text in requests if replies[text]]
