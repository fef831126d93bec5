"""What the projection, the read adapter and the scorer are trained on: one bank of texts, and questions about them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.cloze import passages, questions_about
from mplus.training.chunk.default_data import DefaultData, make_default_data
from mplus.training.chunk.plain_text import Document
from mplus.training.chunk.questions import Question, has_facts, read_dialogues, read_squad
from mplus.training.chunk.writing import kept_layer
from mplus.training.run_settings import RunSettings

QUESTIONS_PER_PASSAGE = 3
FEWEST_QUESTIONS = 10
"""Fewer questions than this are refused: they teach nothing."""
FEWEST_DIALOGUES = 2000
"""Least conversations for the default model's mixture, which takes ordinary talk from them."""


@dataclass
class TrainingData:
    """A bank and everything that is known of its texts.

    Attributes:
        bank: Every text, encoded.
        questions: About texts of the bank: first those of ``made``, then those of the run's own texts.
        groups: Per text, what it belongs to: a document, an article, a person.
        texts: Numbers of the texts that belong to nobody.
        private: Numbers of the texts that belong to somebody.
        made: The default model's data, where its files were given.
    """

    bank: ChunkBank
    questions: list[Question] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    private: frozenset[int] = frozenset()
    made: DefaultData | None = None

    @property
    def dialogue_questions(self) -> range:
        """Which of ``questions`` are about the conversations of ``made``."""
        if self.made is None:
            return range(0)
        first = len(self.made.questions)
        return range(first, first + len(self.made.dialogue_questions))

    @property
    def own_questions(self) -> list[Question]:
        """Questions that did not come with ``made``."""
        told = [] if self.made is None else [question for questions, _ in self.made.people for question in questions]
        return self.questions[self.dialogue_questions.stop + len(told) :]

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.bank.input_ids))


def make_training_data(
    settings: RunSettings, model: MPlus, computing: MPlus, documents: Sequence[Document], states: Path
) -> TrainingData:
    """Encode everything that is trained on.

    With SQuAD's questions, and 2,000 conversations with facts, generated people are added and the mixture is that of
    the default model.

    Args:
        settings: Which files, how much of them, and the seed that decides what is drawn and asked.
        model: The backbone reads and writes as it is.
        computing: The same model where texts are encoded, which may be ``model``.
        documents: Plain text, which asks its own questions; beyond ``text_tokens``, passages are drawn.
        states: File in which encoded texts are kept for a later start.

    Raises:
        ValueError: Nothing to train on.
    """
    rng = random.Random(f"{settings.seed}/corpus")
    squad = None if settings.squad is None else read_squad(settings.squad)
    talks = None if settings.dialogues is None else read_dialogues(settings.dialogues, settings.conversations, rng)[1]
    if squad is not None and settings.dialogues is not None and has_facts(settings.dialogues, FEWEST_DIALOGUES):
        made = make_default_data(settings, model, computing, states)
        told = [question for questions, _ in made.people for question in questions]
        data = TrainingData(
            made.bank,
            [*made.questions, *made.dialogue_questions, *told],
            list(made.groups),
            [*made.passages, *made.conversations],
            frozenset(text for _, texts in made.people for text in texts),
            made,
        )
    else:
        kept = kept_layer(settings, model.weights)
        bank = ChunkBank(
            model.weights, model.tokenizer, MemoryConfig(), states, only_layer=kept, encoder=computing.weights
        )
        data = TrainingData(bank)
        if squad is not None:
            data.questions, data.groups = squad.questions, squad.articles
            data.texts = bank.add(squad.texts, progress="passages")
        if talks is not None:
            _add(data, talks, range(_next_group(data), _next_group(data) + len(talks)))
    _add_documents(data, documents, settings.text_tokens, rng)
    answered = sum(bool(data.bank.gold_chunks(question)) for question in data.questions)
    if answered < FEWEST_QUESTIONS:
        raise ValueError(
            f"The texts answer {answered} questions about themselves; expected at least {FEWEST_QUESTIONS}. Give more "
            "running text with --texts, or passages with questions with --squad."
        )
    return data


def _add_documents(data: TrainingData, documents: Sequence[Document], most: int, rng: random.Random) -> None:
    """Passages of plain text and the questions they ask, drawn where there are too many."""
    first_group = _next_group(data)
    found = [
        (text, (first_group + n, place))
        for n, document in enumerate(documents)
        for place, text in enumerate(passages(document))
    ]
    rng.shuffle(found)
    characters = sum(len(text) for text, _ in found)
    sample = " ".join(text for text, _ in found[:32])
    if sample:
        per_token = len(sample) / max(len(data.bank.tokenizer(sample, verbose=False)["input_ids"]), 1)
        keep = min(most * per_token / max(characters, 1), 1.0)
        found = found[: max(round(len(found) * keep), 1)]
    found.sort(key=lambda passage: passage[1])  # a document's passages follow one another again
    numbers = _add(data, [text for text, _ in found], [group for _, (group, _) in found])
    for (text, _), number in zip(found, numbers, strict=True):
        data.questions += questions_about(text, number, rng, QUESTIONS_PER_PASSAGE)


def _add(data: TrainingData, texts: Sequence[str], groups: Sequence[int]) -> list[int]:
    numbers = data.bank.add(texts, progress="texts")
    data.groups += groups
    data.texts += numbers
    return numbers


def _next_group(data: TrainingData) -> int:
    return max(data.groups, default=-1) + 1
