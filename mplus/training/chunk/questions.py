"""What training asks: questions about passages, conversations and generated people, from files and out of nothing."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mplus.evaluation.data_files import read_json, read_records, turns_as_text
from mplus.evaluation.facts import Split
from mplus.evaluation.personas import Told, persona
from mplus.training.chunk.answer_sentence import answering_sentence


@dataclass(frozen=True)
class Question:
    """A question that some passages answer.

    Attributes:
        text: As asked.
        answers: Accepted answers, the best first.
        passages: Passages that hold the answer.
        reply: A good answer as a sentence.
    """

    text: str
    answers: tuple[str, ...]
    passages: tuple[int, ...]
    reply: str

    def is_answered_in(self, text: str) -> bool:
        """Whether an answer stands in a text word for word."""
        return any(answer.lower() in text.lower() for answer in self.answers)


class Passages(NamedTuple):
    """What a SQuAD file holds."""

    texts: list[str]
    questions: list[Question]
    articles: list[int]
    """Per passage, the article it is from."""


def read_squad(path: Path) -> Passages:
    """Passages and questions of a SQuAD JSON file.

    Raises:
        ValueError: No such file, or another format.
    """
    try:
        found = _squad(path)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"squad={str(path)!r}: not SQuAD JSON ({type(error).__name__}: {error}). Expected data, paragraphs, "
            "context, qas with question and answers."
        ) from error
    if not found.questions:
        raise ValueError(f"squad={str(path)!r}: no questions in it.")
    return found


def _squad(path: Path) -> Passages:
    found = Passages([], [], [])
    for number, article in enumerate(read_json(path)["data"]):
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                answers = _fullest_first(answer["text"] for answer in item["answers"])
                sentence = answering_sentence(paragraph["context"], item["question"], answers[0])
                reply = sentence or f"The answer is {answers[0]}."
                found.questions.append(Question(item["question"].strip(), answers, (len(found.texts),), reply))
            found.texts.append(paragraph["context"])
            found.articles.append(number)
    return found


def _fullest_first(answers: Iterable[str], longest: int = 12) -> tuple[str, ...]:
    """Accepted answers, of those of up to ``longest`` words the fullest first: it is what should be said."""
    distinct = list(dict.fromkeys(answers))
    brief = [answer for answer in distinct if len(answer.split()) <= longest] or distinct[:1]
    best = max(brief, key=len)
    return (best, *(answer for answer in distinct if answer != best))


def read_dialogues(path: Path, limit: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Some conversations of a file between a user and an assistant: their ids, and each as text.

    Raises:
        ValueError: No such file, or another format.
    """
    try:
        records = list(read_records(path))
        chosen = rng.sample(records, min(limit, len(records)))
        return [record["id"] for record in chosen], [turns_as_text(record["turns"]) for record in chosen]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"dialogues={str(path)!r}: not conversations ({type(error).__name__}: {error}). Expected a JSON object a "
            'line, with an "id" and "turns" as [["u" or "s", text], …].'
        ) from error


def has_facts(path: Path, fewest: int) -> bool:
    """Whether a file has enough conversations, with facts, for the default model's mixture."""
    records = list(read_records(path))
    return len(records) >= fewest and "facts" in records[0]


def personas(rng: random.Random, split: Split, count: int) -> tuple[list[str], list[list[Question]], list[list[int]]]:
    """Generated people: messages, and per person questions and the messages that are theirs, in order."""
    messages: list[str] = []
    questions: list[list[Question]] = []
    owned: list[list[int]] = []
    for _ in range(count):
        facts = rng.choice([rng.randint(4, 12), rng.randint(10, 16)])  # of many, more are alike
        told = persona(rng, split, facts, updated=rng.choice([0.35, 0.6]))
        placed = _messages(rng, told)
        mine: list[int] = []
        where: dict[str, int] = {}
        for statements in placed:
            where |= dict.fromkeys(statements, len(messages))
            mine.append(len(messages))
            messages.append(_spoken(rng, statements))
        owned.append(mine)
        questions.append(
            [
                Question(t.fact.question, (t.fact.answer,), tuple(where[s] for s in t.statements), t.fact.reply)
                for t in told
            ]
        )
    return messages, questions, owned


def _messages(rng: random.Random, told: Sequence[Told]) -> list[list[str]]:
    """Statements in the order they are said, one or a few per message."""
    first = [t.statements[0] for t in told]
    later = [t.statements[1] for t in told if len(t.statements) > 1]
    rng.shuffle(first)
    statements = first + later
    placed: list[list[str]] = []
    while statements:
        size = rng.choice([1, 1, 1, 2, 3])
        placed.append(statements[:size])
        statements = statements[size:]
    return placed


def _spoken(rng: random.Random, statements: Sequence[str]) -> str:
    said = " ".join(statements)
    style = rng.randrange(5)
    if style == 0:
        return f"User: {said}\nAssistant: {rng.choice(['Noted.', 'Got it.', 'Thanks, I will remember that.'])}"
    if style == 1:
        return f"User: {said}"
    if style == 2:
        return f"{rng.choice(['By the way,', 'Hi!', 'One more thing:', 'Before I forget:'])} {said}"
    return said
