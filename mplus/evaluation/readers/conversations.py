"""Questions about what was said: task-oriented dialogues, and LoCoMo's long conversations."""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mplus.evaluation.readers.drawing import enough, spread
from mplus.evaluation.tasks import Question, Task
from mplus.evaluation.texts import field_of, read_records, turns_as_text

EVIDENCE = re.compile(r"D:?(\d+):")
ADVERSARIAL = 5
LOCOMO_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}


def dialogue(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """Task-oriented conversations with their facts, one JSON a line: what was settled in a conversation.

    Asked for is a value that the conversation has in so many words and that was never another; two other settled values
    say which conversation is meant. An unanswerable question is about a conversation that is written nowhere.
    """
    askable: list[tuple[str, str, list[tuple[str, str]]]] = []
    idle: list[str] = []
    records = list(read_records(path))
    rng.shuffle(records)
    for record in records:
        text = turns_as_text(field_of(record, "turns", path))
        settled = _settled(field_of(record, "facts", path), text)
        asked = [pair for service, slots in settled.items() for pair in _slot_questions(rng, service, slots)]
        if asked and len(askable) < questions + unanswerable:
            askable.append((str(field_of(record, "id", path)), text, asked))
        else:
            idle.append(text)
    enough(path, "conversations to ask about", questions + unanswerable, len(askable))
    contexts = {f"dialogue-{name}": text for name, text, _ in askable[:questions]}
    found: list[Question] = []
    for name, _, asked in askable[:questions]:
        text, answer = rng.choice(asked)
        own = (f"dialogue-{name}",)
        found.append(Question(f"q-{name}", text, (answer,), own, own, "answerable"))
    for name, _, asked in askable[questions:]:
        other = (rng.choice(list(contexts)),) if contexts else ()
        found.append(Question(f"unknown-{name}", rng.choice(asked)[0], (), other, (), "unknown"))
    return Task("dialogue", contexts, tuple(found), tuple(idle))


def _settled(facts: Sequence[Sequence[Any]], text: str) -> dict[str, dict[str, str]]:
    """By service, slots with the one value they ever had, where the conversation says it in so many words."""
    values: dict[tuple[str, str], list[str]] = {}
    for _, act, service, slot, value in facts:
        if act in ("inform", "confirm", "offer") and value not in ("True", "False", "dontcare"):
            known = values.setdefault((service, slot), [])
            if value not in known:
                known.append(value)
    settled: dict[str, dict[str, str]] = {}
    for (service, slot), known in values.items():
        if len(known) == 1 and known[0].lower() in text.lower():
            settled.setdefault(service, {})[slot] = known[0]
    return settled


def _slot_questions(rng: random.Random, service: str, slots: dict[str, str]) -> list[tuple[str, str]]:
    """Questions about one service of a conversation, with their answers."""
    topic = service.split("_")[0].lower().rstrip("s")
    found: list[tuple[str, str]] = []
    for slot, value in slots.items():
        others = [(name, known) for name, known in slots.items() if known.lower() not in value.lower()]
        others = [(name, known) for name, known in others if value.lower() not in known.lower()]
        if len(others) < 2:
            continue
        given = " and ".join(f"{name.replace('_', ' ')} {known}" for name, known in rng.sample(others, 2))
        found.append((f"In the {topic} conversation with {given}, what was the {slot.replace('_', ' ')}?", value))
    return found


def locomo(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """LoCoMo's JSON: long conversations between two people, a source per session, questions by category.

    Its adversarial questions (category 5) are the unanswerable ones.
    """
    contexts: dict[str, str] = {}
    by_conversation: list[list[Question]] = []
    adversarial: list[list[Question]] = []
    for number, sample in enumerate(read_records(path)):
        name = str(sample.get("sample_id", f"conversation-{number}"))
        sessions = _sessions(field_of(sample, "conversation", path))
        named = {f"{name}/{session}": text for session, text in sessions.items()}
        contexts |= named
        mine: list[Question] = []
        others: list[Question] = []
        for place, item in enumerate(field_of(sample, "qa", path)):
            category = int(item.get("category", 0))
            evidence = EVIDENCE.findall(json.dumps(item.get("evidence") or []))
            gold = tuple(dict.fromkeys(f"{name}/session_{n}" for n in evidence if f"{name}/session_{n}" in named))
            if category == ADVERSARIAL:
                others.append(Question(f"{name}/{place}", item["question"], (), tuple(named), (), "adversarial"))
            elif "answer" in item:
                answers = (str(item["answer"]),)
                kind = LOCOMO_CATEGORIES.get(category, f"category {category}")
                mine.append(Question(f"{name}/{place}", item["question"], answers, tuple(named), gold, kind))
        by_conversation.append(mine)
        adversarial.append(others)
    asked = spread(by_conversation, questions, rng)
    declined = spread(adversarial, unanswerable, rng)
    enough(path, "questions", questions, len(asked))
    enough(path, "adversarial questions", unanswerable, len(declined))
    used = {name for question in (*asked, *declined) for name in question.contexts}
    kept = {name: text for name, text in contexts.items() if name in used}
    return Task("locomo", kept, (*asked, *declined), levels=(0,))


def _sessions(conversation: dict[str, Any]) -> dict[str, str]:
    """Sessions by name in order, each with its date in front and pictures by their captions."""
    numbers = sorted(int(key.split("_")[1]) for key in conversation if re.fullmatch(r"session_\d+", key))
    found: dict[str, str] = {}
    for number in numbers:
        lines: list[str] = []
        if date := conversation.get(f"session_{number}_date_time"):
            lines.append(f"Conversation at {date}.")
        for turn in conversation[f"session_{number}"]:
            shown = f" [shows a picture: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
            lines.append(f"{turn['speaker']}: {turn['text']}{shown}")
        if lines:
            found[f"session_{number}"] = "\n".join(lines)
    return found
