"""Conversations, notes and documents as people write them, with questions as people ask them.

One JSON a line: ``{"id", "kind", "told", "ask", "unknown"}``. A line may carry slots, which are filled in as they were
written.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mplus.evaluation.data_files import numbered_records
from mplus.evaluation.datasets.drawing import enough, spread
from mplus.evaluation.talk_slots import filled
from mplus.evaluation.tasks import Question, Task

KINDS = ("conversation", "note", "document")
FIELDS = ("id", "kind", "told", "ask", "unknown", "slots", "lowercase", "writer", "brief")
QUESTION_FIELDS = ("q", "short", "full", "after", "needs", "kind", "paraphrase")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_IN_WORDS = {str(number): word for number, word in enumerate(_WORDS.split())}
SPELLED = _IN_WORDS | {word: digits for digits, word in _IN_WORDS.items()}
"""Small numbers in the other way of writing them."""


def talk(path: Path, questions: int | None, unanswerable: int | None, rng: random.Random) -> Task:
    """A file of conversations, notes and documents, or a folder of such files.

    What a person tells in a conversation or notes down is written message by message, a document whole. A question is
    asked after the message that it names, a follow-up with the question before it and that one's answer.

    Args:
        path: The file, or a folder of ``.jsonl``.
        questions: Answerable questions, spread over the items; None: all.
        unanswerable: Questions that nothing told answers; None: all.
        rng: Decides which.

    Raises:
        ValueError: A file that does not follow the format, or fewer questions than asked for.
    """
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: no .jsonl files in it; expected conversations and documents, one JSON a line.")
    return talk_task(files, questions, unanswerable, rng)


def talk_task(files: Iterable[Path], questions: int | None, unanswerable: int | None, rng: random.Random) -> Task:
    """What ``talk`` reads, of several files."""
    items = [item for file in files for item in _items(file)]
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"id {twice[0]!r} stands in two lines; expected a name of its own for each item.")
    asked = _some("questions", [list(item.questions()) for item in items], questions, rng)
    unknown = _some("unknown questions", [list(item.unknown()) for item in items], unanswerable, rng)
    used = {name for question in (*asked, *unknown) for name in question.contexts}
    contexts = {name: text for item in items for name, text in item.contexts().items() if name in used}
    return Task("talk", contexts, (*asked, *unknown), style="plain", levels=(0,), modes=("mplus", "chat"))


def _some(what: str, groups: Sequence[Sequence[Question]], count: int | None, rng: random.Random) -> list[Question]:
    total = sum(map(len, groups))
    if count is None or count == total:
        return [question for group in groups for question in group]
    enough(Path("talk"), what, count, total)
    return spread(groups, count, rng)


@dataclass(frozen=True)
class _Item:
    """One line, filled in: what was told, by role and text, and what is asked."""

    name: str
    kind: str
    told: tuple[tuple[str, str], ...]
    ask: tuple[dict[str, Any], ...]
    nothing: tuple[str, ...]

    def contexts(self) -> dict[str, str]:
        """What is written, by name: messages with who speaks in front, notes as they are, a document whole."""
        if self.kind == "document":
            return {self.name: "\n\n".join(text for _, text in self.told)}
        said = (f"{role.capitalize()}: {text}" if self.kind == "conversation" else text for role, text in self.told)
        return {f"{self.name}/{place}": text for place, text in enumerate(said)}

    def questions(self) -> Iterator[Question]:
        """What its texts answer."""
        for place, asked in enumerate(self.ask):
            after, kind = int(asked.get("after", len(self.told) - 1)), str(asked.get("kind", ""))
            yield Question(
                f"{self.name}/q{place}",
                asked["q"],
                tuple(asked["short"]) if kind == "list" else tuple(_accepted(asked["short"])),
                self._written(after),
                self._gold(asked.get("needs", ())),
                kind or "answerable",
                group=self.kind,
                before=self._before(place),
                turns=self._turns(after),
                needs_all=kind == "list",
            )

    def unknown(self) -> Iterator[Question]:
        """What nothing told answers."""
        last = len(self.told) - 1
        for place, text in enumerate(self.nothing):
            name, written, turns = f"{self.name}/unknown{place}", self._written(last), self._turns(last)
            yield Question(name, text, (), written, (), "unknown", group=self.kind, turns=turns)

    def _written(self, after: int) -> tuple[str, ...]:
        if self.kind == "document":
            return (self.name,)
        return tuple(f"{self.name}/{place}" for place in range(after + 1))

    def _gold(self, needs: Sequence[int]) -> tuple[str, ...]:
        if self.kind == "document":
            return (self.name,)
        return tuple(f"{self.name}/{place}" for place in needs)

    def _turns(self, after: int) -> tuple[tuple[str, str], ...]:
        return self.told[: after + 1] if self.kind == "conversation" else ()

    def _before(self, place: int) -> tuple[tuple[str, str], ...]:
        """Questions that a follow-up leans on, with their answers."""
        if place == 0 or self.ask[place].get("kind") != "follow-up":
            return ()
        last = self.ask[place - 1]
        return (*self._before(place - 1), (last["q"], last.get("full") or ", ".join(last["short"])))


def _accepted(short: Iterable[str]) -> Iterator[str]:
    """Answers as given, and with small numbers in words for digits, and the other way round."""
    for text in short:
        yield text
        swapped = " ".join(SPELLED.get(word.lower(), word) for word in text.split())
        if swapped != " ".join(text.split()):
            yield swapped


def _items(path: Path) -> Iterator[_Item]:
    for number, record in numbered_records(path):
        yield _Line(record, f"{path}, line {number}").item()


class _Line:
    """One line of a file, checked field by field."""

    def __init__(self, record: dict[str, Any], place: str) -> None:
        self.record, self.place = record, place

    def item(self) -> _Item:
        record = self.record
        self._only(record, FIELDS, "")
        kind = self._need(record, "kind", "")
        if kind not in KINDS:
            raise self._error("kind", kind, f"one of {', '.join(KINDS)}")
        told = tuple(self._told(one, f"told[{place}]") for place, one in enumerate(self._listed(record, "told")))
        if not told:
            raise self._error("told", [], "at least one message or paragraph")
        asked = tuple(
            self._asked(one, f"ask[{place}]", len(told)) for place, one in enumerate(self._listed(record, "ask"))
        )
        unknown = tuple(self._text(one, f"unknown[{place}]") for place, one in enumerate(record.get("unknown") or ()))
        spoken = bool(record.get("lowercase"))
        return _Item(
            self._text(self._need(record, "id", ""), "id"),
            str(kind),
            tuple((role, self._filled(text, spoken and role == "user")) for role, text in told),
            tuple(self._filled_question(one, spoken) for one in asked),
            tuple(self._filled(text, spoken) for text in unknown),
        )

    def _told(self, one: Any, field: str) -> tuple[str, str]:
        if isinstance(one, str):
            return "user", self._text(one, field)
        if not isinstance(one, dict):
            raise self._error(field, one, "a text, or an object with role and text")
        message = cast("dict[str, Any]", one)
        role = self._need(message, "role", f"{field}.")
        if role not in ("user", "assistant"):
            raise self._error(f"{field}.role", role, "user or assistant")
        return str(role), self._text(self._need(message, "text", f"{field}."), f"{field}.text")

    def _asked(self, one: Any, field: str, messages: int) -> dict[str, Any]:
        if not isinstance(one, dict):
            raise self._error(field, one, "an object with q and short")
        asked = cast("dict[str, Any]", one)
        self._only(asked, QUESTION_FIELDS, f"{field}.")
        self._text(self._need(asked, "q", f"{field}."), f"{field}.q")
        short = self._need(asked, "short", f"{field}.")
        if not isinstance(short, list) or not short:
            raise self._error(f"{field}.short", short, "a list of right answers, any of which will do")
        for place, text in enumerate(cast("list[Any]", short)):
            self._text(text, f"{field}.short[{place}]")
        for place in (asked.get("after", messages - 1), *asked.get("needs", ())):
            if not isinstance(place, int) or not 0 <= place < messages:
                raise self._error(f"{field}.after or needs", place, f"the index of a message, 0 to {messages - 1}")
        return asked

    def _filled_question(self, asked: dict[str, Any], lowercase: bool) -> dict[str, Any]:
        short = [self._filled(text, False) for text in asked["short"]]
        full = self._filled(asked.get("full") or "", False)
        return {**asked, "q": self._filled(asked["q"], lowercase), "short": short, "full": full}

    def _filled(self, text: str, lowercase: bool) -> str:
        slots = cast("dict[str, list[str]] | None", self.record.get("slots"))
        if slots is None:
            return text
        try:
            return filled(text, {name: values[0] for name, values in slots.items()}, lowercase=lowercase)
        except KeyError as error:
            raise self._error(
                "slots", sorted(slots), f"a value for {error.args[0]}, which {text!r:.60} names"
            ) from None

    def _listed(self, record: Mapping[str, Any], name: str) -> list[Any]:
        found = self._need(record, name, "")
        if not isinstance(found, list):
            raise self._error(name, found, "a list")
        return cast("list[Any]", found)

    def _need(self, record: Mapping[str, Any], name: str, where: str) -> Any:
        if name not in record:
            raise self._error(f"{where}{name}", sorted(record), f"a field {name!r}")
        return record[name]

    def _only(self, record: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        if extra := sorted(record.keys() - set(known)):
            raise self._error(where.rstrip(".") or "the line", extra, f"only {', '.join(known)}")

    def _text(self, value: Any, field: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self._error(field, value, "a text that is not empty")
        return value

    def _error(self, field: str, found: Any, expected: str) -> ValueError:
        return ValueError(f"{self.place}, {field}: found {found!r:.80}; expected {expected}.")
