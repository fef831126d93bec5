"""BEAM: probing questions about very long conversations, ten abilities each."""

import ast
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from mplus.evaluation.data_files import answer_texts, field_of, numbered_records
from mplus.evaluation.datasets.drawing import enough, spread
from mplus.evaluation.tasks import Question, Task
from mplus.turns import turn_text

ABSTENTION = "abstention"
ANSWERS = ("answer", "ideal_answer", "ideal_response", "ideal_summary", "expected_compliance")
"""Fields with the answer, of which each ability has another."""


def beam(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """Records of ``chat`` and ``probing_questions``, as parquet, JSON or JSON lines.

    What a user said and the reply to it is a source, which begins with its date where that is known; those that
    ``source_chat_ids`` names are the right ones. Questions of abstention are the unanswerable ones.
    """
    contexts: dict[str, str] = {}
    by_ability: dict[str, list[Question]] = {}
    for number, record in numbered_records(path):
        name, where = str(record.get("conversation_id", number)), f"{path}, record {number}"
        exchanges = list(_exchanges(field_of(record, "chat", path), where))
        if not exchanges:
            raise ValueError(f"{where}: chat has no message; expected messages with role and content, in any nesting.")
        named = {f"{name}/{place}": text for place, (text, _) in enumerate(exchanges)}
        of_message = {message: f"{name}/{place}" for place, (_, ids) in enumerate(exchanges) for message in ids}
        contexts |= named
        for ability, asked in _probing(field_of(record, "probing_questions", path), where).items():
            for place, item in enumerate(asked):
                one = _question(f"{name}/{ability}-{place}", ability, item, tuple(named), of_message, where)
                by_ability.setdefault(ability, []).append(one)
    declined = spread([by_ability.pop(ABSTENTION, [])], unanswerable, rng)
    found = spread(list(by_ability.values()), questions, rng)
    enough(path, "questions", questions, len(found))
    enough(path, "questions of abstention", unanswerable, len(declined))
    used = {name for question in (*found, *declined) for name in question.contexts}
    kept = {name: text for name, text in contexts.items() if name in used}
    return Task("beam", kept, (*found, *declined), levels=(0,))


def _question(
    name: str, ability: str, item: Any, contexts: tuple[str, ...], of_message: Mapping[int, str], where: str
) -> Question:
    if not isinstance(item, dict) or not isinstance(cast("dict[str, Any]", item).get("question"), str):
        raise ValueError(f"{where}: {ability} has {item!r:.60}; expected a question with its answer.")
    asked = cast("dict[str, Any]", item)
    text = asked["question"].strip()
    if ability == ABSTENTION:
        return Question(name, text, (), contexts, (), ability)
    given = next((asked[field] for field in ANSWERS if asked.get(field)), None)
    if given is None:
        known = ", ".join(asked)
        raise ValueError(f"{where}: a question of {ability} has {known}; expected one of {', '.join(ANSWERS)}.")
    gold = dict.fromkeys(of_message[n] for n in _numbers(asked.get("source_chat_ids")) if n in of_message)
    return Question(name, text, answer_texts(given), contexts, tuple(gold), ability)


def _probing(given: Any, where: str) -> dict[str, list[Any]]:
    """The questions by ability; published tables hold them as text, in JSON or as Python writes it."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            try:
                given = ast.literal_eval(given)
            except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
                raise ValueError(f"{where}: probing_questions is neither JSON nor a literal of Python.") from error
    found = cast("dict[str, Any]", given)
    if not isinstance(given, dict) or not all(isinstance(asked, list) for asked in found.values()):
        raise ValueError(f"{where}: expected probing_questions as lists by ability, not {given!r:.60}.")
    return found


def _exchanges(chat: Any, where: str) -> Iterator[tuple[str, list[int]]]:
    """What a user said with the reply to it, and the numbers of these messages; an exchange begins with the user."""
    lines, ids, date = list[str](), list[int](), ""
    for message in _messages(chat, where):
        if message["role"] == "user" and lines:
            yield _dated(lines, date), ids
            lines, ids = [], []
        date = str(message.get("time_anchor") or date)
        if not (said := turn_text(message)):
            continue
        lines.append(said)
        if isinstance(message.get("id"), int):
            ids.append(message["id"])
    if lines:
        yield _dated(lines, date), ids


def _dated(lines: list[str], date: str) -> str:
    return "\n".join([*([f"Conversation on {date}."] if date else []), *lines])


def _messages(part: Any, where: str, date: str = "") -> Iterator[dict[str, Any]]:
    """Messages in order, out of lists of batches, turns or plans."""
    if isinstance(part, str):
        part = json.loads(part) if part.lstrip().startswith(("[", "{")) else part
    if isinstance(part, list):
        for one in cast("list[Any]", part):
            yield from _messages(one, where, date)
    elif isinstance(part, dict):
        found = cast("dict[str, Any]", part)
        date = str(found.get("time_anchor") or date)
        if "role" in found and "content" in found:
            yield {**found, "time_anchor": date, "content": str(found["content"])}
            return
        for one in found.values():
            if isinstance(one, list | dict):
                yield from _messages(one, where, date)
    elif part is not None:
        raise ValueError(f"{where}: {part!r:.60} in chat; expected messages with role and content, in lists.")


def _numbers(given: Any) -> Iterator[int]:
    """Every number in a nesting of lists and mappings."""
    if isinstance(given, bool) or given is None:
        return
    if isinstance(given, int):
        yield given
    elif isinstance(given, dict | list):
        inner = cast("dict[Any, Any]", given).values() if isinstance(given, dict) else cast("list[Any]", given)
        for one in inner:
            yield from _numbers(one)
