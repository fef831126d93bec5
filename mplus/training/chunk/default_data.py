"""What the default model is trained on: passages, conversations, generated people, ordinary talk and requests."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.training.chunk.broad import broad_files, general_questions
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.conversations import chat_messages, dialogue_questions
from mplus.training.chunk.ordinary_requests import answered, general_requests
from mplus.training.chunk.questions import Question, personas, read_dialogues, read_squad
from mplus.training.chunk.writing import kept_layer
from mplus.training.run_settings import RunSettings

BROAD_REQUESTS = 400


@dataclass
class DefaultData:
    """A bank and everything that is known of its texts.

    Attributes:
        bank: Every text, encoded.
        questions: About passages.
        passages: Texts that are passages.
        conversations: Texts that are conversations.
        dialogue_questions: About conversations.
        people: Per person, questions and own texts.
        groups: Per text, what it belongs to: an article, a conversation, a person.
        chats: Conversations as messages.
        requests: Ordinary requests and the backbone's own replies.
    """

    bank: ChunkBank
    questions: list[Question] = field(default_factory=list)
    passages: list[int] = field(default_factory=list)
    conversations: list[int] = field(default_factory=list)
    dialogue_questions: list[Question] = field(default_factory=list)
    people: list[tuple[list[Question], list[int]]] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    chats: list[list[dict[str, str]]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)


def make_default_data(settings: RunSettings, model: MPlus, computing: MPlus, states: Path) -> DefaultData:
    """Encode everything that is trained on, where ``computing`` is, which may be ``model``."""
    assert settings.squad is not None
    assert settings.dialogues is not None
    rng = random.Random(settings.seed)
    kept = kept_layer(settings, model.weights)
    bank = ChunkBank(model.weights, model.tokenizer, MemoryConfig(), states, only_layer=kept, encoder=computing.weights)
    made = DefaultData(bank)
    texts, made.questions, made.groups = read_squad(settings.squad)
    made.passages = made.bank.add(texts, progress="passages")
    ids, talks = read_dialogues(settings.dialogues, settings.conversations, rng)
    made.conversations = made.bank.add(talks, progress="conversations")
    made.groups += [max(made.groups) + 1 + n for n in range(len(talks))]
    made.dialogue_questions = dialogue_questions(settings.dialogues, ids, made.conversations[0], rng)
    messages, questions, owned = personas(rng, "train", settings.people)
    first = made.bank.add(messages, progress="messages")[0]
    group = max(made.groups) + 1
    for asked, mine in zip(questions, owned, strict=True):
        moved = [replace(q, passages=tuple(first + p for p in q.passages)) for q in asked]
        made.people.append((moved, [first + m for m in mine]))
        made.groups += [group] * len(mine)
        group += 1
    made.chats = chat_messages(settings.dialogues, 2000, rng)
    asked = general_questions(broad_files(settings.broad))
    asked = [*general_requests(rng, 240), *rng.sample(asked, min(len(asked), BROAD_REQUESTS))]
    made.requests = answered(computing, asked, kept=states.with_name("requests.json"))
    return made
