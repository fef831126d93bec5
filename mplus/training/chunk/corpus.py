"""What the projection, the read adapter and the scorer are trained on: one bank of texts, and questions about them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.cloze import passages, questions_about
from mplus.training.chunk.default_data import DefaultData, make_bank
from mplus.training.chunk.plain_text import Document
from mplus.training.chunk.projection import gold_chunks
from mplus.training.chunk.questions import Question, has_facts, read_dialogues, read_squad

QUESTIONS_PER_PASSAGE = 3
FEWEST_QUESTIONS = 10
"""Fewer questions than this are refused: they teach nothing."""
FEWEST_DIALOGUES = 2000
"""Least conversations for the default model's mixture, which takes ordinary talk from them."""


@dataclass
class Corpus:
    """A bank and everything that is known of its texts.

    Attributes:
        bank: Every text, encoded.
        questions: About texts of the bank.
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
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.bank.input_ids))


def build_corpus(
    model: MPlus,
    documents: Sequence[Document],
    squad_file: Path | None,
    dialogue_file: Path | None,
    *,
    text_tokens: int,
    seed: int,
    conversations: int = 300,
    people: int = 300,
    computing: MPlus | None = None,
    states: Path | None = None,
) -> Corpus:
    """Encode everything that is trained on.

    Args:
        model: The backbone reads and writes as it is.
        documents: Plain text, which asks its own questions.
        squad_file: Passages with questions, as SQuAD JSON.
        dialogue_file: Conversations, one JSON a line. With both files, and 2,000 conversations with facts, generated
            people are added and the mixture is that of the default model.
        text_tokens: Most tokens of plain text that are encoded; beyond that, passages are drawn.
        seed: Decides what is drawn and asked.
        conversations: Most conversations that are encoded.
        people: Generated people.
        computing: The same model where texts are encoded, if that is elsewhere.
        states: File in which encoded texts are kept for a later start; None: a temporary one.

    Raises:
        ValueError: Nothing to train on.
    """
    rng = random.Random(f"{seed}/corpus")
    passages_given = None if squad_file is None else read_squad(squad_file)
    talks = None if dialogue_file is None else read_dialogues(dialogue_file, conversations, rng)[1]
    if squad_file is not None and dialogue_file is not None and has_facts(dialogue_file, FEWEST_DIALOGUES):
        made = make_bank(
            model,
            computing or model,
            squad_file,
            dialogue_file,
            seed,
            states,
            conversations=conversations,
            people=people,
        )
        told = [question for questions, _ in made.people for question in questions]
        corpus = Corpus(
            made.bank,
            [*made.questions, *made.dialogue_questions, *told],
            list(made.groups),
            [*made.passages, *made.conversations],
            frozenset(text for _, texts in made.people for text in texts),
            made,
        )
    else:
        encoder = (computing or model).weights
        corpus = Corpus(ChunkBank(model.weights, model.tokenizer, MemoryConfig(), states, encoder=encoder))
        if passages_given is not None:
            corpus.questions, corpus.groups = passages_given.questions, passages_given.articles
            corpus.texts = corpus.bank.add(passages_given.texts, progress="passages")
        if talks is not None:
            _add(corpus, talks, range(_next_group(corpus), _next_group(corpus) + len(talks)))
    _add_documents(corpus, documents, text_tokens, rng)
    answered = sum(bool(gold_chunks(corpus.bank, question)) for question in corpus.questions)
    if answered < FEWEST_QUESTIONS:
        raise ValueError(
            f"The texts answer {answered} questions about themselves; expected at least {FEWEST_QUESTIONS}. Give more "
            "running text with --texts, or passages with questions with --squad."
        )
    return corpus


def _add_documents(corpus: Corpus, documents: Sequence[Document], most: int, rng: random.Random) -> None:
    """Passages of plain text and the questions they ask, drawn where there are too many."""
    first_group = _next_group(corpus)
    found = [
        (text, (first_group + n, place))
        for n, document in enumerate(documents)
        for place, text in enumerate(passages(document))
    ]
    rng.shuffle(found)
    characters = sum(len(text) for text, _ in found)
    sample = " ".join(text for text, _ in found[:32])
    if sample:
        per_token = len(sample) / max(len(corpus.bank.tokenizer(sample, verbose=False)["input_ids"]), 1)
        keep = min(most * per_token / max(characters, 1), 1.0)
        found = found[: max(round(len(found) * keep), 1)]
    found.sort(key=lambda passage: passage[1])  # a document's passages follow one another again
    numbers = _add(corpus, [text for text, _ in found], [group for _, (group, _) in found])
    for (text, _), number in zip(found, numbers, strict=True):
        corpus.questions += questions_about(text, number, rng, QUESTIONS_PER_PASSAGE)


def _add(corpus: Corpus, texts: Sequence[str], groups: Sequence[int]) -> list[int]:
    numbers = corpus.bank.add(texts, progress="texts")
    corpus.groups += groups
    corpus.texts += numbers
    return numbers


def _next_group(corpus: Corpus) -> int:
    return max(corpus.groups, default=-1) + 1
