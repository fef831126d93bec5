"""What the default model is trained on: passages, conversations, generated people, ordinary talk and requests."""

import random
from dataclasses import replace
from pathlib import Path

from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.conversations import chat_messages, dialogue_questions
from mplus.training.chunk.ordinary_requests import answered_requests
from mplus.training.chunk.questions import Question, personas, read_dialogues, read_squad


class DefaultData:
    """A bank and everything that is known of its texts."""

    def __init__(self, bank: ChunkBank) -> None:
        self.bank = bank
        self.questions: list[Question] = []
        self.passages: list[int] = []
        self.conversations: list[int] = []
        self.dialogue_questions: list[Question] = []
        self.people: list[tuple[list[Question], list[int]]] = []
        self.groups: list[int] = []
        """Per text, what it belongs to: an article, a conversation, a person."""
        self.chats: list[list[dict[str, str]]] = []
        self.requests: list[tuple[str, str]] = []


def make_bank(
    model: MPlus,
    computing: MPlus,
    squad_file: Path,
    dialogue_file: Path,
    seed: int,
    states: Path | None = None,
    *,
    conversations: int,
    people: int,
) -> DefaultData:
    """Encode everything that is trained on, where ``computing`` is, which may be ``model``."""
    rng = random.Random(seed)
    made = DefaultData(ChunkBank(model.weights, model.tokenizer, MemoryConfig(), states, encoder=computing.weights))
    texts, made.questions, made.groups = read_squad(squad_file)
    made.passages = made.bank.add(texts, progress="passages")
    ids, talks = read_dialogues(dialogue_file, conversations, rng)
    made.conversations = made.bank.add(talks, progress="conversations")
    made.groups += [max(made.groups) + 1 + n for n in range(len(talks))]
    made.dialogue_questions = dialogue_questions(dialogue_file, ids, made.conversations[0], rng)
    messages, questions, owned = personas(rng, "train", people)
    first = made.bank.add(messages, progress="messages")[0]
    group = max(made.groups) + 1
    for asked, mine in zip(questions, owned, strict=True):
        moved = [replace(q, passages=tuple(first + p for p in q.passages)) for q in asked]
        made.people.append((moved, [first + m for m in mine]))
        made.groups += [group] * len(mine)
        group += 1
    made.chats = chat_messages(dialogue_file, 2000, rng)
    made.requests = answered_requests(computing, rng, 240)
    return made
