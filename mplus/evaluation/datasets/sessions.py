"""LongMemEval: questions about what was said in one of many earlier chats."""

import random
from pathlib import Path
from typing import Any, cast

from mplus.evaluation.data_files import answer_texts, field_of, numbered_records
from mplus.evaluation.datasets.drawing import enough, spread
from mplus.evaluation.tasks import Question, Task
from mplus.turns import turn_text

ABSTENTION = "_abs"
"""The end of the ids of questions that nothing answers."""
TEMPORAL = "temporal-reasoning"


def longmemeval(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """LongMemEval's JSON (S, M or oracle): a source for each session of a question's own history, with its date.

    Questions about time are asked with the date on which they are asked. Those whose id ends with "_abs" are the
    unanswerable ones.
    """
    contexts: dict[str, str] = {}
    by_type: dict[str, list[Question]] = {}
    declined: list[Question] = []
    for number, record in numbered_records(path):
        name = str(field_of(record, "question_id", path))
        kind, text = str(field_of(record, "question_type", path)), str(field_of(record, "question", path)).strip()
        named, gold = _history(record, f"{path}, record {number}", path)
        if kind == TEMPORAL and record.get("question_date"):
            text = f"Today is {record['question_date']}. {text}"
        contexts |= named
        if name.endswith(ABSTENTION):
            declined.append(Question(name, text, (), tuple(named), (), "abstention"))
        else:
            answers = answer_texts(field_of(record, "answer", path))
            by_type.setdefault(kind, []).append(Question(name, text, answers, tuple(named), gold, kind))
    asked, unknown = spread(list(by_type.values()), questions, rng), spread([declined], unanswerable, rng)
    enough(path, "questions", questions, len(asked))
    enough(path, "questions that nothing answers", unanswerable, len(unknown))
    used = {name for question in (*asked, *unknown) for name in question.contexts}
    kept = {name: text for name, text in contexts.items() if name in used}
    return Task("longmemeval", kept, (*asked, *unknown), levels=(0,))


def _history(record: dict[str, Any], where: str, path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The sessions of a question by name, in order, and the names of those with the answer.

    Raises:
        ValueError: There is another number of ids or dates than of sessions, or a session is no list of turns.
    """
    ids, dates, sessions = (field_of(record, f"haystack_{name}", path) for name in ("session_ids", "dates", "sessions"))
    if not all(isinstance(one, list) for one in (ids, dates, sessions)) or not len(ids) == len(dates) == len(sessions):
        raise ValueError(f"{where}: expected haystack_session_ids, haystack_dates and haystack_sessions of one length.")
    answered, gold = set(map(str, field_of(record, "answer_session_ids", path))), list[str]()
    named: dict[str, str] = {}
    for place, (session, date, turns) in enumerate(zip(ids, dates, sessions, strict=True)):
        name = f"{record['question_id']}/{session}"
        name = name if name not in named else f"{name}-{place}"  # some histories have a session twice
        text = _said(turns, f"{where}, session {session}")
        if not text:
            continue
        named[name] = f"Conversation on {date}.\n{text}"
        if str(session) in answered:
            gold.append(name)
    if not named:
        raise ValueError(f"{where}: no session has a turn. Expected haystack_sessions with role and content.")
    return named, tuple(gold)


def _said(turns: Any, where: str) -> str:
    """What was said in a session."""
    listed = cast("list[Any]", turns) if isinstance(turns, list) else [turns]
    for turn in listed:
        known = cast("dict[str, Any]", turn) if isinstance(turn, dict) else {}
        if not isinstance(known.get("content"), str) or not isinstance(known.get("role"), str):
            raise ValueError(f"{where}: {turn!r:.60} is no turn; expected role and content.")
    return "\n".join(filter(None, (turn_text(turn) for turn in listed)))
