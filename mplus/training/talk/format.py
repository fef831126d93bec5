"""The JSON lines of the corpus: one conversation, note or document a line, read strictly."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ITEM_KINDS = ("conversation", "note", "document")
QUESTION_KINDS = tuple(
    "who|what|which|where|when|how many|how much|how long|why|yes/no|list|change|order|follow-up|quote|code|negation"
    "".split("|")
)
ROLES = ("user", "assistant")
SLOT_NAME = re.compile(r"[A-Z]+[0-9]+")
ITEM_FIELDS = {"id", "writer", "kind", "told", "slots", "ask", "unknown"}
OPTIONAL_ITEM_FIELDS = {"brief", "lowercase"}
QUESTION_FIELDS = {"q", "short", "full", "needs", "kind"}
OPTIONAL_QUESTION_FIELDS = {"after", "paraphrase"}


class TalkFormatError(ValueError):
    """A line that does not follow the format: names the place, the value found, what was expected and the fix."""


@dataclass(frozen=True)
class Slot:
    """A value that can be redrawn.

    Attributes:
        value: As the writer wrote it; a drawn value takes its form.
        type: One of `slots.TYPES`.
        rule: How it depends on other slots, "= AGE1 + 3" or "> DATE1; < DATE3"; empty if it does not.
    """

    value: str
    type: str
    rule: str = ""


@dataclass(frozen=True)
class Message:
    """One message, or one paragraph of a note or document (whose role is "user")."""

    role: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question about what was told.

    Attributes:
        q: As people type it.
        short: The shortest right answers, any of which will do; for a list, all its parts.
        full: A good answer, as a sentence.
        after: Index of the message after which it can be asked.
        needs: Indexes of the messages that hold the answer.
        kind: One of `QUESTION_KINDS`.
        paraphrase: Whether the answer follows from the messages without standing there word for word.
    """

    q: str
    short: tuple[str, ...]
    full: str
    after: int
    needs: tuple[int, ...]
    kind: str
    paraphrase: bool = False


@dataclass(frozen=True)
class Item:
    """A conversation, a note or a document with its questions.

    Attributes:
        id: Unique in the corpus.
        writer: Who wrote it; the name of its file.
        kind: "conversation", "note" or "document".
        told: What was said or written, in order.
        slots: The values that can be redrawn, by name.
        ask: Questions, in an order in which a follow-up leans on the one before.
        unknown: Questions that nothing told here answers.
        brief: Who is speaking, in the writer's words.
        lowercase: Whether the person who speaks never uses capitals.
    """

    id: str
    writer: str
    kind: str
    told: tuple[Message, ...]
    slots: Mapping[str, Slot]
    ask: tuple[Question, ...]
    unknown: tuple[str, ...]
    brief: str = ""
    lowercase: bool = False


@dataclass(frozen=True)
class _At:
    """A place in a file, and the errors that name it."""

    path: str
    line: int
    field: str = ""

    def field_of(self, name: str | int) -> "_At":
        dotted = f"{self.field}[{name}]" if isinstance(name, int) else f"{self.field}.{name}".lstrip(".")
        return _At(self.path, self.line, dotted)

    def error(self, value: object, expected: str) -> TalkFormatError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        field = f", field {self.field!r}" if self.field else ""
        return TalkFormatError(f"{self.path}, line {self.line}{field}: found {shown}; {expected}")


def read_items(path: Path) -> list[Item]:
    """Every item of a file.

    Raises:
        TalkFormatError: If a line does not follow the format.
    """
    return [parse_item(line, path.name, number) for number, line in lines_of(path)]


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a file that are not blank."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            yield number, line


def parse_item(line: str, path: str, number: int) -> Item:
    """One line as an item.

    Args:
        line: The JSON.
        path: Name of its file, for errors.
        number: Its line, for errors.

    Raises:
        TalkFormatError: If it does not follow the format.
    """
    at = _At(path, number)
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise at.error(line[max(0, error.pos - 20) : error.pos + 20], f"write valid JSON here ({error.msg})") from None
    fields = _object(raw, at, ITEM_FIELDS, OPTIONAL_ITEM_FIELDS)
    kind = _one_of(fields["kind"], ITEM_KINDS, at.field_of("kind"))
    told = tuple(
        _message(each, kind, at.field_of("told").field_of(i))
        for i, each in enumerate(_list(fields["told"], at.field_of("told")))
    )
    asked = _list(fields["ask"], at.field_of("ask"))
    return Item(
        id=_text(fields["id"], at.field_of("id")),
        writer=_text(fields["writer"], at.field_of("writer")),
        kind=kind,
        told=told,
        slots=_slots(fields["slots"], at.field_of("slots")),
        ask=tuple(_question(each, len(told), at.field_of("ask").field_of(i)) for i, each in enumerate(asked)),
        unknown=_texts(fields["unknown"], at.field_of("unknown")),
        brief=_text(fields["brief"], at.field_of("brief")) if "brief" in fields else "",
        lowercase=_truth(fields.get("lowercase", False), at.field_of("lowercase")),
    )


def _message(raw: object, kind: str, at: _At) -> Message:
    if kind != "conversation":
        return Message("user", _text(raw, at))
    fields = _object(raw, at, {"role", "text"}, set())
    role = _one_of(fields["role"], ROLES, at.field_of("role"))
    return Message(role, _text(fields["text"], at.field_of("text")))


def _slots(raw: object, at: _At) -> dict[str, Slot]:
    if not isinstance(raw, dict):
        raise at.error(raw, 'write an object such as {"NAME1": ["Tomas", "first name"]}')
    slots: dict[str, Slot] = {}
    for name, value in cast("dict[str, object]", raw).items():
        here = at.field_of(name)
        if not SLOT_NAME.fullmatch(name):
            raise here.error(name, "name a slot in capital letters and a number, such as NAME1")
        parts = _texts(value, here)
        if len(parts) not in (2, 3):
            raise here.error(
                value, 'write [value, type] or [value, type, rule], such as ["11", "count", "= COUNT1 + 3"]'
            )
        slots[name] = Slot(*parts)
    return slots


def _question(raw: object, num_messages: int, at: _At) -> Question:
    fields = _object(raw, at, QUESTION_FIELDS, OPTIONAL_QUESTION_FIELDS)
    after = _index(fields.get("after", num_messages - 1), num_messages, at.field_of("after"))
    needs_at = at.field_of("needs")
    needs = tuple(_index(each, num_messages, needs_at) for each in _list(fields["needs"], needs_at))
    if max(needs) > after:
        raise needs_at.error(list(needs), f"name messages up to `after` ({after}), or ask later")
    return Question(
        q=_text(fields["q"], at.field_of("q")),
        short=_texts(fields["short"], at.field_of("short")),
        full=_text(fields["full"], at.field_of("full")),
        after=after,
        needs=needs,
        kind=_one_of(fields["kind"], QUESTION_KINDS, at.field_of("kind")),
        paraphrase=_truth(fields.get("paraphrase", False), at.field_of("paraphrase")),
    )


def _object(raw: object, at: _At, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise at.error(raw, f"write an object with the fields {', '.join(sorted(required))}")
    fields = cast("dict[str, Any]", raw)
    if missing := required - fields.keys():
        raise at.error(sorted(fields), f"add the missing {', '.join(sorted(missing))}")
    if extra := fields.keys() - required - optional:
        raise at.error(sorted(extra), f"use only {', '.join(sorted(required | optional))}")
    return fields


def _list(raw: object, at: _At) -> list[Any]:
    if not isinstance(raw, list) or not raw:
        raise at.error(raw, "write a list with at least one element")
    return cast("list[Any]", raw)


def _text(raw: object, at: _At) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise at.error(raw, "write a text that is not empty")
    return raw


def _texts(raw: object, at: _At) -> tuple[str, ...]:
    return tuple(_text(each, at.field_of(i)) for i, each in enumerate(_list(raw, at)))


def _truth(raw: object, at: _At) -> bool:
    if not isinstance(raw, bool):
        raise at.error(raw, "write true or false, or leave the field out")
    return raw


def _index(raw: object, num_messages: int, at: _At) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not 0 <= raw < num_messages:
        raise at.error(raw, f"write the index of a message, 0 to {num_messages - 1}")
    return raw


def _one_of(raw: object, allowed: tuple[str, ...], at: _At) -> str:
    if raw not in allowed:
        raise at.error(raw, f"write one of: {', '.join(allowed)}")
    return cast(str, raw)
