"""Lessons for recall in texts of many origins: passages with questions, and what people told, as they ask."""

import random
from collections.abc import Sequence
from dataclasses import replace

from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.training.chunk.broad import BroadRows
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.projection import Lesson
from mplus.training.chunk.questions import Question
from mplus.training.chunk.tellings import turn_text
from mplus.training.chunk.typed import typed
from mplus.training.talk import Item, drawn


def broad_lesson(model: MPlus, computing: MPlus, rows: BroadRows, layer: int, rng: random.Random) -> Lesson:
    """Passages of many origins and their questions, typed as people type; hard negatives are of the same passage."""
    bank = _bank(model, computing, layer)
    bank.add(rows.texts, progress="passages to tell apart")
    questions = [replace(question, text=typed(rng, question.text)) for question in rows.questions]
    return Lesson(bank, questions, range(len(rows.texts)))


def talk_lessons(
    model: MPlus, computing: MPlus, items: Sequence[Item], layer: int, rng: random.Random
) -> tuple[Lesson, Lesson]:
    """Told messages, and documents, with values drawn: hard negatives are of the same item.

    Of conversations and notes the message is looked for that a question needs, of documents the part that answers.
    """
    said, written = _bank(model, computing, layer), _bank(model, computing, layer)
    about_said: list[Question] = []
    about_written: list[Question] = []
    texts: list[str] = []
    documents: list[str] = []
    groups: list[int] = []
    for number, item in enumerate(drawn(item, rng) for item in items):
        asked = [question for question in item.ask if question.kind != "follow-up"]
        if item.kind == "document":
            about_written += [Question(typed(rng, q.q), q.short, (len(documents),), q.full) for q in asked]
            documents.append("\n\n".join(message.text for message in item.told))
            continue
        about_said += [
            Question(typed(rng, q.q), q.short, tuple(len(texts) + place for place in q.needs), q.full) for q in asked
        ]
        as_turns = item.kind == "conversation"
        texts += [turn_text(message.role, message.text) if as_turns else message.text for message in item.told]
        groups += [number] * len(item.told)
    said.add(texts, progress="messages to tell apart")
    written.add(documents, progress="documents to tell apart")
    return Lesson(said, about_said, groups, whole=True), Lesson(written, about_written, range(len(documents)))


def _bank(model: MPlus, computing: MPlus, layer: int) -> ChunkBank:
    return ChunkBank(model.weights, model.tokenizer, MemoryConfig(), only_layer=layer, encoder=computing.weights)
