"""Questions made of plain text: a sentence without its answer and without some of its words.

They ask less naturally than people do, but any text gives as many as are wanted, so that a reader learns to look
things up rather than a few thousand questions by heart.
"""

import random
import re
from collections.abc import Callable

from mplus.training.chunk.answer_sentence import sentences
from mplus.training.chunk.questions import Question

SPANS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"\b(1\d{3}|20\d\d)\b"), ("In what year", "When", "What year was it when", "In which year")),
    (re.compile(r"\b(\d[\d,.]*\d(?: (?:million|billion|percent|%))?|\d+%?)"), ("How many", "How much", "What number")),
    (
        re.compile(r"[a-z,] ([A-Z][\w'-]+(?: (?:of |the |de |van )?[A-Z][\w'-]+)*)"),
        ("Who", "What", "Which one", "What name", "Where"),
    ),
    (re.compile(r'"([^"]{3,50})"'), ("What", "What term", "What is it called:")),
    (re.compile(r" ((?:[a-z][\w'-]+ ){0,2}[a-z][\w'-]+)(?=[.!?]$)"), ("What", "What kind", "How", "Why")),
    (
        re.compile(r"\b(?:a|an|the) ((?:[a-z][\w'-]+ )?[a-z][\w'-]{3,})(?= (?:of|in|to|by|for|and|is|was)\b)"),
        ("What",),
    ),
)
"""Kinds of things that can be asked for, with their question words."""
LONGEST = 60
"""Most words of a sentence that is asked about."""


def span_question(rng: random.Random, text: str, passage: int) -> Question | None:
    """A question about a random sentence; None where nothing in it can be asked for."""
    fitting = [sentence for sentence in sentences(text) if 6 <= len(sentence.split()) <= LONGEST]
    if not fitting:
        return None
    sentence = rng.choice(fitting)
    kinds = [(spans, asked) for pattern, asked in SPANS if (spans := list(pattern.finditer(sentence)))]
    if not kinds:
        return None
    spans, asked = rng.choice(kinds)
    start, end = rng.choice(spans).span(1)
    before, answer, after = sentence[:start], sentence[start:end].strip(' ",'), sentence[end:]
    if not 1 < len(answer) <= LONGEST or answer in before + after:
        return None
    asks = rng.choice(FORMS)(rng, before, after, rng.choice(asked))
    return Question(asks, (answer,), (passage,), sentence)


def _kept(rng: random.Random, words: str, share: float) -> list[str]:
    return [word for word in words.split() if rng.random() < share]


def _thinned(rng: random.Random, before: str, after: str, asked: str) -> str:
    """A question word and the rest of the sentence, as in "Who patented steam engine 1802?"."""
    share = rng.uniform(0.5, 1.0)
    parts = [_kept(rng, before, share), _kept(rng, after, share)]
    if rng.random() < 0.5:
        parts.reverse()
    rest = " ".join(word for part in parts for word in part).strip(" .,;:!?")
    return f"{asked} {rest[:1].lower()}{rest[1:]}?"


def _gap(rng: random.Random, before: str, after: str, asked: str) -> str:
    """The words around a gap."""
    shown = " ".join([*before.split()[-rng.randint(4, 12) :], "___", *after.split()[: rng.randint(3, 10)]])
    return f"What belongs in the gap: {shown.strip(' .')}?"


FORMS: tuple[Callable[[random.Random, str, str, str], str], ...] = (_thinned, _thinned, _thinned, _gap)
