"""One run: every way of answering, every level, every question; each answer is on disk as soon as it is given.

folder/run.json        what was asked of what, so that a restart goes on with the same
folder/answers.jsonl   one line per way of answering, level and question
"""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mplus.evaluation.metrics import contains_all, contains_answer, exact_match, is_declined, token_f1
from mplus.evaluation.replies import Answered, Answerer
from mplus.evaluation.retention import Stream
from mplus.evaluation.tasks import Question
from mplus.given import path_of
from mplus.progress import StageProgress

ANSWERS, RUN = "answers.jsonl", "run.json"
Key = tuple[str, int, str]
"""Way of answering, level, question."""


class RawAnswers:
    """A folder of raw answers that grows until everything has been asked."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Open a folder, or go on in it.

        Args:
            folder: Where answers go.
            settings: What makes answers comparable; the same when a run goes on.

        Raises:
            ValueError: The folder is a url, or holds a run with other settings.
        """
        self.folder = path_of("out", folder)
        self.settings = settings
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RUN
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in {*known, *settings} if known.get(key) != settings.get(key))
            if changed:
                was = ", ".join(f"{key}={known.get(key)!r} (now {settings.get(key)!r})" for key in changed)
                raise ValueError(
                    f"{folder} holds a run with {was}. Choose another folder with --out, or delete this one."
                )
        else:
            path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        self.rows = _known(folder / ANSWERS)
        self.done = {_key(row) for row in self.rows}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows that are not there yet, and write them to disk at once."""
        with (self.folder / ANSWERS).open("a", encoding="utf-8") as file:
            for row in rows:
                if _key(row) not in self.done:
                    self.done.add(_key(row))
                    self.rows.append(row)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def ask(
        self,
        answerer: Answerer,
        stream: Stream,
        *,
        at_most: int | None = None,
        progress: StageProgress | None = None,
    ) -> None:
        """Ask one way of answering whatever it has not been asked yet.

        Args:
            answerer: The way of answering.
            stream: For questions and levels.
            at_most: Only so many questions, the first ones; None: all.
            progress: Called after every batch.
        """
        questions = stream.task.questions[:at_most]
        everything = [(question, level) for level in stream.levels for question in questions]
        wanted = [(q, level) for q, level in everything if (answerer.name, level, q.id) not in self.done]
        count = len(everything) - len(wanted)
        if not wanted:
            return
        started = time.perf_counter()
        for answered in answerer.replies(wanted):
            self.add(_rows(answerer.name, stream, answered, time.perf_counter() - started))
            count += len(answered.levels)
            if progress is not None:
                progress(answerer.name, count, len(everything))
            started = time.perf_counter()


def _known(path: Path) -> list[dict[str, Any]]:
    """Answers of an earlier start; a line that was cut off when it was killed is dropped, also on disk."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.split("\n") if line]


def _key(row: dict[str, Any]) -> Key:
    return row["mode"], row["level"], row["id"]


def _rows(mode: str, stream: Stream, answered: Answered, seconds: float) -> Iterator[dict[str, Any]]:
    question, reply = answered.question, answered.reply
    for level in answered.levels:
        yield {
            "task": stream.task.name,
            "mode": mode,
            "level": level,
            "distractor_tokens": stream.tokens(level)
            if answered.distractor_tokens is None
            else answered.distractor_tokens,
            **_asked(question),
            **reply.as_json(),
            **scores(question, reply.text),
            "seconds": round(seconds / len(answered.levels), 3),
        }


def _asked(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "kind": question.kind,
        "group": question.group,
        "cluster": question.contexts[0] if question.contexts else question.id,
        "question": question.text,
        "accepted": list(question.answers),
        "gold": list(question.gold),
    }


def scores(question: Question, text: str) -> dict[str, Any]:
    """Scores of one answer."""
    return {
        "answerable": question.is_answerable,
        "contains": (contains_all if question.needs_all else contains_answer)(text, question.answers),
        "exact": exact_match(text, question.answers),
        "f1": round(token_f1(text, question.answers), 4),
        "declined": is_declined(text),
    }


def by_mode_and_level(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Answers in groups, in the order in which ways of answering came."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["level"]), []).append(row)
    modes = list(dict.fromkeys(mode for mode, _ in groups))
    return dict(sorted(groups.items(), key=lambda item: (modes.index(item[0][0]), item[0][1])))
