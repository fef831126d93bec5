"""What is wrong with an item, or with the corpus as a whole, each with its place and the fix."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mplus.evaluation.metrics import contains_answer, normalised
from mplus.training.talk.format import QUESTION_KINDS, Item, Question, TalkFormatError, lines_of, parse_item
from mplus.training.talk.slots import REFERENCE, as_written, drawn, reading, rules, slot_type, texts
from mplus.training.talk.variety import near_duplicates

NUM_QUESTIONS = {"conversation": (3, 14), "note": (3, 14), "document": (6, 16)}
NUM_MESSAGES = {"conversation": (4, 30), "note": (1, 30), "document": (1, 40)}
NUM_UNKNOWN = 2
LARGEST_SHARE = 0.2
"""Of one kind of question; looked at from `ENOUGH` questions on."""
ENOUGH = 50
_COUNTED = ("count", "age", "number", "duration", "percentage", "time", "ordinal", "price")
_CAPITALISED = re.compile(r"(?<=[a-z0-9,;] )[A-Z][a-z]{2,}")


@dataclass(frozen=True)
class Problem:
    """One thing to mend.

    Attributes:
        place: Item, and field of it.
        text: What was found and how to mend it.
        is_note: Whether it only asks for a second look.
    """

    place: str
    text: str
    is_note: bool = False

    def __str__(self) -> str:
        return f"{'note' if self.is_note else 'PROBLEM'} {self.place}: {self.text}"


def read_all(paths: Iterable[Path]) -> tuple[list[Item], list[Problem]]:
    """The items of the files, and a problem for each line that does not follow the format."""
    items: list[Item] = []
    found: list[Problem] = []
    for path in paths:
        for number, line in lines_of(path):
            try:
                items.append(parse_item(line, path.name, number))
            except TalkFormatError as error:
                found.append(Problem("format", str(error)))
            else:
                if items[-1].writer != path.stem:
                    place = f"{path.name}, line {number}, field 'writer'"
                    found.append(
                        Problem(place, f"found {items[-1].writer!r}; write {path.stem!r}, the name of the file")
                    )
    return items, found


def problems_of(items: Sequence[Item]) -> list[Problem]:
    """Everything to mend in a corpus."""
    found = [problem for item in items for problem in problems_in(item)]
    for name, times in Counter(item.id for item in items).items():
        if times > 1:
            found.append(Problem(name, f"{times} items have this id; give each its own"))
    for first, second, likeness in near_duplicates(items):
        found.append(
            Problem(
                f"{first} and {second}", f"near-duplicates (Jaccard {likeness:.2f} of 5-word shingles); rewrite one"
            )
        )
    return found + list(_shares(items))


def _shares(items: Sequence[Item]) -> Iterator[Problem]:
    kinds = Counter(question.kind for item in items for question in item.ask)
    total = kinds.total()
    for kind, times in kinds.items():
        if total >= ENOUGH and times > LARGEST_SHARE * total:
            yield Problem("all items", f"{times} of {total} questions are {kind!r}, more than a fifth; ask otherwise")
    paraphrased = sum(question.paraphrase for item in items for question in item.ask)
    if total >= ENOUGH and paraphrased > total / 3:
        yield Problem("all items", f"{paraphrased} of {total} answers are paraphrases, more than a third; quote more")
    if total >= ENOUGH and (missing := [kind for kind in QUESTION_KINDS if kind not in kinds]):
        yield Problem("all items", f"no question of kind {', '.join(missing)}", is_note=True)


def problems_in(item: Item) -> list[Problem]:
    """Everything to mend in one item."""
    found = [*_sizes(item), *_slot_problems(item)]
    if any(not problem.is_note for problem in found):
        return found
    found += _value_notes(item)
    written = as_written(item)
    found += _question_problems(written)
    if any(not problem.is_note for problem in found):
        return found
    for seed in range(3):
        try:
            again = list(_question_problems(drawn(item, random.Random(seed))))
        except ValueError as error:
            return [*found, Problem(item.id, str(error))]
        if again:
            lead = "with other values in the slots (is a value typed where its slot belongs?): "
            return [*found, *(Problem(each.place, lead + each.text) for each in again)]
    return found


def _sizes(item: Item) -> Iterator[Problem]:
    for name, number, (least, most) in (
        ("ask", len(item.ask), NUM_QUESTIONS[item.kind]),
        ("told", len(item.told), NUM_MESSAGES[item.kind]),
    ):
        if not least <= number <= most:
            yield Problem(f"{item.id}, {name}", f"found {number}; a {item.kind} has {least} to {most}")
    if len(item.unknown) < NUM_UNKNOWN:
        yield Problem(f"{item.id}, unknown", f"found {len(item.unknown)}; write at least {NUM_UNKNOWN}")
    for text, times in Counter(normalised(q) for q in (*(question.q for question in item.ask), *item.unknown)).items():
        if times > 1:
            yield Problem(f"{item.id}, ask", f"the question {text!r} is asked {times} times; ask it once")
    if item.ask[0].kind == "follow-up":
        yield Problem(f"{item.id}, ask[0]", "a follow-up leans on the question before; do not put it first")
    if item.lowercase and any(
        re.search(r"\b[A-Z][a-z]", REFERENCE.sub("", m.text)) for m in item.told if m.role == "user"
    ):
        yield Problem(
            f"{item.id}, lowercase",
            "a message has capitals (shouting aside); write it without, or leave `lowercase` out",
        )


def _slot_problems(item: Item) -> Iterator[Problem]:
    used = {name.upper() for text in texts(item) for name in REFERENCE.findall(text)}
    for name in sorted(used - item.slots.keys()):
        yield Problem(f"{item.id}, slots", f'{{{name}}} is used and not declared; add "{name}": [value, type]')
    for name in sorted(item.slots.keys() - used):
        yield Problem(f"{item.id}, slots.{name}", "declared and not used; use it or take it out")
    for text in texts(item):
        if bare := re.findall(r"\{[A-Z]+\}", text):
            yield Problem(
                f"{item.id}, {text[:40]!r}", f"{bare[0]} has no number; name a slot such as {bare[0][:-1]}1}}"
            )
    for name, slot in item.slots.items():
        place = f"{item.id}, slots.{name}"
        try:
            of_type = slot_type(item, name)
            of_name = rules(item, name)
            found = reading(item, name) if of_type.read or of_name else None
        except (ValueError, ZeroDivisionError) as error:
            yield Problem(place, str(error).removeprefix(f"slot {name}: "))
            continue
        if found is None:
            continue
        if found.number == 1 and slot.type in ("count", "duration") and not of_name:
            yield Problem(
                place, f"{slot.value!r} would be drawn as several; write two or more, or leave it out of slots"
            )
        numbers = {each: reading(item, each).number for rule in of_name for each in rule.names}
        for rule in of_name:
            due = rule.value(numbers)
            if not {"=": found.number == due, "<": found.number < due, ">": found.number > due}[rule.sign]:
                yield Problem(place, f"{slot.value!r} breaks its rule {slot.rule!r}; correct one of them")


def _value_notes(item: Item) -> Iterator[Problem]:
    """Values that stand in a text outside their slot, and names and digits that no slot holds."""
    by_value = Counter((slot.value.casefold(), slot.type) for slot in item.slots.values())
    for (value, of_type), times in by_value.items():
        if times > 1 and not any(slot.rule for slot in item.slots.values() if slot.value.casefold() == value):
            yield Problem(
                f"{item.id}, slots", f"{times} slots of type {of_type!r} hold {value!r}; use one slot for one thing"
            )
    for text in texts(item):
        bare = REFERENCE.sub("\0", text)
        for name, slot in item.slots.items():
            if slot.type not in _COUNTED and re.search(rf"(?<!\w){re.escape(slot.value)}(?!\w)", bare, re.IGNORECASE):
                yield Problem(f"{item.id}, {text[:40]!r}", f"{slot.value!r} stands outside its slot; write {{{name}}}")
        if outside := re.findall(r"\b\d[\d.,:/-]*\b", bare):
            yield Problem(f"{item.id}, {text[:40]!r}", f"digits outside slots: {', '.join(outside)}", is_note=True)
        if outside := [name for name in _CAPITALISED.findall(bare) if name not in ("The", "And", "But")]:
            yield Problem(f"{item.id}, {text[:40]!r}", f"capitals outside slots: {', '.join(outside)}", is_note=True)


def _question_problems(item: Item) -> Iterator[Problem]:
    """Of an item whose slots are filled in."""
    for i, question in enumerate(item.ask):
        for text in _answer_problems(item, question):
            yield Problem(f"{item.id}, ask[{i}] {question.q!r}", text)


def _answer_problems(item: Item, question: Question) -> Iterator[str]:
    short, full = question.short, question.full
    if question.kind == "yes/no":
        if short[0] not in ("yes", "no"):
            yield f'short is {list(short)}; a yes/no question is answered "yes" or "no" first'
        elif not contains_answer(full, short[:1]):
            yield f"`full` does not say {short[0]!r}; begin it so"
        return
    enough = all if question.kind == "list" else any
    which = "every part" if question.kind == "list" else "one"
    needed = [item.told[i].text for i in question.needs]
    if not question.paraphrase and not enough(any(contains_answer(told, [each]) for told in needed) for each in short):
        where = f"messages {list(question.needs)} ({which} must)"
        yield f'short {list(short)} does not stand in {where}; correct it, or add "paraphrase": true'
    if not enough(contains_answer(full, [each]) for each in short):
        yield f"`full` does not hold short {list(short)} ({which} must stand there)"
    if contains_answer(question.q, short) and question.kind != "list":
        yield f"the question says its own answer {list(short)}; ask otherwise"
