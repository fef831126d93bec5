"""The sentence of a passage that answers a question: a good reply in chat, and one that a small model can find."""

import re
from collections.abc import Iterator, Sequence

LONGEST = 40
"""Most words of a reply. A longer sentence is cut to the part around the answer."""
ABBREVIATED = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|No|Vol|c|ca|e\.g|i\.e|etc|Gen|Col|Prof|Inc|Co|Ltd)\.$")
END = re.compile(r"[.!?][\"')\]]*(?=\s+[\"'(\[]?[A-Z0-9])")
CLAUSE = re.compile(r"(?<=[,;:–—])\s+")
WORD = re.compile(r"\w+")


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order."""
    found: list[str] = []
    start = 0
    for end in END.finditer(text):
        if not ABBREVIATED.search(text[start : end.start() + 1]):
            found.append(text[start : end.end()].strip())
            start = end.end()
    return [sentence for sentence in (*found, text[start:].strip()) if sentence]


def answering_sentence(passage: str, question: str, answer: str) -> str | None:
    """The sentence with the answer that has most words of the question; None where no sentence has the answer."""
    having = [sentence for sentence in sentences(passage) if answer.lower() in sentence.lower()]
    if not having:
        return None
    asked = set(_words(question))
    best = max(having, key=lambda sentence: len(asked & set(_words(sentence))))
    return best if len(best.split()) <= LONGEST else _around(best, answer)


def _around(sentence: str, answer: str) -> str:
    """Clauses of a long sentence with the answer among them, as many as are short enough."""
    clauses = CLAUSE.split(sentence)
    for first, last in _widest_first(len(clauses)):
        part = " ".join(clauses[first:last])
        if answer.lower() in part.lower() and len(part.split()) <= LONGEST:
            return part.rstrip(",;:–—")
    return sentence


def _widest_first(count: int) -> Iterator[tuple[int, int]]:
    for size in range(count - 1, 0, -1):
        for first in range(count - size + 1):
            yield first, first + size


def _words(text: str) -> Sequence[str]:
    return WORD.findall(text.lower())
