"""Conversations and their facts: what was settled in them, ordinary talk, and a lesson in telling them apart."""

import random
from collections.abc import Sequence
from pathlib import Path

from mplus.config import MemoryConfig
from mplus.evaluation.data_files import read_records, turns_as_text
from mplus.evaluation.datasets.dialogues import Settlements, topic_of
from mplus.model import MPlus
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.projection import Lesson
from mplus.training.chunk.questions import Question, read_dialogues

ALIKE = 2500
"""Conversations of the lesson: so many that each has several others about the same, in the same words."""
MOST_QUESTIONS = 6000


def alike_conversations(model: MPlus, computing: MPlus, path: Path, layer: int, rng: random.Random) -> Lesson:
    """Questions about many conversations about the same few services; those about the same one are hard negatives."""
    encoder = computing.weights
    bank = ChunkBank(model.weights, model.tokenizer, MemoryConfig(), only_layer=layer, encoder=encoder)
    ids, texts = read_dialogues(path, ALIKE, rng)
    bank.add(texts, progress="conversations to tell apart")
    questions = dialogue_questions(path, ids, 0, rng)
    facts = {record["id"]: record["facts"] for record in read_records(path)}
    topics = [topic_of(facts[name][0][2]) if facts[name] else "" for name in ids]
    groups = [topics.index(topic) for topic in topics]
    return Lesson(bank, rng.sample(questions, min(len(questions), MOST_QUESTIONS)), groups, whole=True)


def dialogue_questions(path: Path, wanted: Sequence[str], first: int, rng: random.Random) -> list[Question]:
    """Questions about what was settled in conversations, given the ids of those that are in the bank.

    Args:
        path: Conversations with facts, one JSON a line.
        wanted: Their ids, in the order of the bank's texts.
        first: Number of the first of those texts.
        rng: Decides what is asked.
    """
    records = list(read_records(path))
    settled = Settlements([record["facts"] for record in records])
    place = {record["id"]: number for number, record in enumerate(records)}
    return [
        Question(asked.question, (asked.answer,), (first + number,), asked.reply)
        for number, name in enumerate(wanted)
        for asked in settled.questions(place[name], turns_as_text(records[place[name]]["turns"]), rng)
    ]


def chat_messages(path: Path, limit: int, rng: random.Random) -> list[list[dict[str, str]]]:
    """Conversations as chat messages."""
    records = list(read_records(path))
    roles = {"u": "user", "s": "assistant"}
    return [
        [{"role": roles[speaker], "content": said} for speaker, said in record["turns"]]
        for record in rng.sample(records, min(limit, len(records)))
    ]
