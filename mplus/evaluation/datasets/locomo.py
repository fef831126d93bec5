"""LoCoMo's long conversations between two people."""

import json
import random
import re
from pathlib import Path
from typing import Any

from mplus.evaluation.data_files import field_of, read_records
from mplus.evaluation.datasets.drawing import enough, spread
from mplus.evaluation.tasks import Question, Task

EVIDENCE = re.compile(r"D:?(\d+):")
ADVERSARIAL = 5
LOCOMO_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}


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
