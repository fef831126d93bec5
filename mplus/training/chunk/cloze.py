"""Questions that any text asks about itself: gaps to fill, and what comes after what.

So that the projection and the read adapter can be trained on plain text. Gaps are asked for with most of
the sentence's other words, in order, so that no question simply repeats its chunk.
"""

import random
import re

from mplus.training.chunk.plain_text import Document
from mplus.training.chunk.questions import Question

PASSAGE_CHARACTERS = 1200
GAP = "____"
WORD = re.compile(r"\w[\w'’-]*")
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
MINIMUM_WORDS, MAXIMUM_WORDS = 6, 40
MINIMUM_CHARACTERS = 24


def passages(document: Document) -> list[str]:
    """A document in pieces of about ``PASSAGE_CHARACTERS``, cut between paragraphs or sentences where possible."""
    found: list[str] = []
    piece = ""
    for part in _parts(document.text):
        if piece and len(piece) + len(part) > PASSAGE_CHARACTERS:
            found.append(piece.strip())
            piece = ""
        piece += part
    found.append(piece.strip())
    return [text for text in found if text]


def _parts(text: str) -> list[str]:
    """Paragraphs; of those that are too long, sentences; of those too long again, pieces."""
    parts: list[str] = []
    for paragraph in re.findall(r".+?(?:\n\s*\n|\Z)", text, re.S):
        pieces = [paragraph]
        if len(paragraph) > PASSAGE_CHARACTERS:
            pieces = re.findall(r".+?(?:[.!?。！？]\s+|\n|\Z)", paragraph, re.S)
        for piece in pieces:
            parts += [piece[i : i + PASSAGE_CHARACTERS] for i in range(0, len(piece), PASSAGE_CHARACTERS)]
    return parts


def questions_about(passage: str, number: int, rng: random.Random, count: int) -> list[Question]:
    """Some questions that a passage answers.

    Args:
        passage: The text.
        number: Of the text in the bank.
        rng: Decides what is asked.
        count: Most questions; a passage without a fitting sentence has none.
    """
    sentences = [s.strip() for s in SENTENCE.split(passage)]
    rng.shuffle(sentences)
    found: list[Question] = []
    for sentence in sentences:
        if len(found) == count:
            break
        question = gap(sentence, passage, number, rng) if rng.random() < 0.75 else None
        question = question or following(sentence, number, rng)
        if question is not None:
            found.append(question)
    return found


def gap(sentence: str, passage: str, number: int, rng: random.Random) -> Question | None:
    """The sentence with a telling word left out; None where it has none that the passage says only once."""
    words = list(WORD.finditer(sentence))
    if not MINIMUM_WORDS <= len(words) <= MAXIMUM_WORDS:
        return None
    lowered = passage.lower()
    telling = [w for w in words[1:] if _is_telling(w.group()) and lowered.count(w.group().lower()) == 1]
    if not telling:
        return None
    chosen = rng.choice(telling)
    left_out = rng.uniform(0, 0.5)
    asked = [GAP if w is chosen else w.group() for w in words if w is chosen or rng.random() >= left_out]
    answer = chosen.group()
    text = f'Which word belongs in the gap? "{" ".join(asked)}"'
    return Question(text, (answer,), (number,), f'The word is "{answer}".')


def _is_telling(word: str) -> bool:
    """Names, numbers and long words: what a text says rather than how."""
    return len(word) >= 7 or word[0].isupper() or any(c.isdigit() for c in word)


def following(sentence: str, number: int, rng: random.Random) -> Question | None:
    """The beginning of a sentence, in any language; the answer is how it goes on."""
    if len(sentence) < MINIMUM_CHARACTERS:
        return None
    middle = rng.randint(len(sentence) // 3, 2 * len(sentence) // 3)
    space = sentence.find(" ", middle)
    cut = space if 0 < space < len(sentence) - 1 else middle
    begun, rest = sentence[:cut].strip(), sentence[cut:].strip()
    if not begun or not rest:
        return None
    rest = rest[:160]
    return Question(f'How does this go on? "{begun} …"', (rest,), (number,), rest)
