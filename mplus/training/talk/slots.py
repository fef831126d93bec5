"""Typed slots: values that can be redrawn, so that no value is learnt by heart.

A text carries a slot as {NAME1}; {name1} writes its value in lower case and {Name1} with a capital at the front.
A drawn value takes the form of the written one: its case, digits or words, currency, unit, grouping.
"""

import ast
import difflib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

from mplus.evaluation.talk_slots import REFERENCE, filled
from mplus.training.talk.format import Item, Message, Question
from mplus.training.talk.scales import Reading
from mplus.training.talk.slot_types import TYPES, SlotType

_TRIES, _RESTARTS = 300, 30


def drawn(item: Item, generator: random.Random) -> Item:
    """The item with every slot redrawn and filled in, answers with it.

    Values fit their type and the form in which they were written, differ from each other, and keep the rules
    between them ("= AGE1 + 3").

    Args:
        item: With slots in its texts.
        generator: The same state gives the same values.

    Raises:
        ValueError: If a slot's type, value or rule cannot be used, or no values satisfy the rules.
    """
    for _ in range(_RESTARTS):
        redrawn = _draw_all(item, generator)
        if redrawn is not None:
            return _filled(item, redrawn)
    raise ValueError(
        f"{item.id}: found no values that satisfy the rules of its slots; loosen a rule or use fewer slots of one type"
    )


def as_written(item: Item) -> Item:
    """The item with every slot filled in as its writer wrote it."""
    return _filled(item, {name: slot.value for name, slot in item.slots.items()})


def slot_type(item: Item, name: str) -> SlotType:
    """The type of a slot.

    Raises:
        ValueError: If there is no such type.
    """
    wanted = item.slots[name].type
    if wanted not in TYPES:
        close = difflib.get_close_matches(wanted, TYPES, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"use one of {', '.join(sorted(TYPES))}"
        raise ValueError(f"slot {name}: there is no type {wanted!r}; {hint}")
    return TYPES[wanted]


def reading(item: Item, name: str) -> Reading:
    """The written value of a slot on its scale.

    Raises:
        ValueError: If its type is not on a scale, or the value is not in a form that can be redrawn.
    """
    slot, of_type = item.slots[name], slot_type(item, name)
    if of_type.read is None:
        raise ValueError(f"slot {name}: {slot.type!r} has no order, so no rule may use it")
    found = _read(slot.type, slot.value)
    if found is None:
        raise ValueError(
            f"slot {name}: {slot.value!r} is no {slot.type} that can be redrawn; write it like {of_type.example}"
        )
    return found


@cache
def _read(name: str, value: str) -> Reading | None:
    """A written value on the scale of its type; None if it is not of that form, "31 February" among them."""
    read = TYPES[name].read
    assert read is not None
    try:
        return read(value)
    except ValueError:
        return None


@dataclass(frozen=True)
class Rule:
    """A dependence on other slots.

    Attributes:
        sign: "=", "<" or ">".
        expression: Slot names, whole numbers, + - * / and brackets.
        names: The slots it names.
    """

    sign: str
    expression: ast.expr
    names: frozenset[str]

    def value(self, numbers: Mapping[str, Fraction]) -> Fraction:
        """What the expression comes to."""
        return _evaluate(self.expression, numbers)


def rules(item: Item, name: str) -> list[Rule]:
    """The rules of a slot.

    Raises:
        ValueError: If a rule cannot be read or names no slot of the item.
    """
    written = item.slots[name].rule
    return [_rule(part.strip(), item, name) for part in written.split(";")] if written else []


def _rule(text: str, item: Item, name: str) -> Rule:
    try:
        expression = _expression(text[1:].strip())
    except SyntaxError:
        expression = None
    if text[:1] not in ("=", "<", ">") or expression is None:
        raise ValueError(f'slot {name}: cannot read the rule {text!r}; write "= AGE1 + 3", "> DATE1" or "< COUNT2"')
    names = frozenset(node.id for node in ast.walk(expression) if isinstance(node, ast.Name))
    for each in sorted(names):
        if each not in item.slots or each == name:
            raise ValueError(f"slot {name}: the rule {text!r} names {each}, which is no other slot of this item")
        reading(item, each)
    _evaluate(expression, {each: reading(item, each).number for each in names})
    return Rule(text[0], expression, names)


@cache
def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _evaluate(node: ast.expr, numbers: Mapping[str, Fraction]) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(str(node.value))
        case ast.Name():
            return numbers[node.id]
        case ast.BinOp(op=ast.Add()):
            return _evaluate(node.left, numbers) + _evaluate(node.right, numbers)
        case ast.BinOp(op=ast.Sub()):
            return _evaluate(node.left, numbers) - _evaluate(node.right, numbers)
        case ast.BinOp(op=ast.Mult()):
            return _evaluate(node.left, numbers) * _evaluate(node.right, numbers)
        case ast.BinOp(op=ast.Div()):
            return _evaluate(node.left, numbers) / _evaluate(node.right, numbers)
        case _:
            raise ValueError(f"a rule may hold slot names, numbers, + - * / and brackets, not {ast.unparse(node)!r}")


def _draw_all(item: Item, rng: random.Random) -> dict[str, str] | None:
    """New values for all slots, those that others depend on first; None if the draw came to a dead end."""
    literal = set(re.findall(r"\w+", REFERENCE.sub(" ", " ".join(texts(item))).casefold()))
    waiting = {name: rules(item, name) for name in item.slots}
    found: dict[str, str] = {}
    numbers: dict[str, Fraction] = {}
    while waiting:
        ready = [name for name, of_name in waiting.items() if all(rule.names <= found.keys() for rule in of_name)]
        if not ready:
            raise ValueError(
                f"{item.id}: the rules of {', '.join(waiting)} wait for each other; let one of them be free"
            )
        for name in ready:
            value = _draw_one(item, name, waiting.pop(name), numbers, set(found.values()), literal, rng)
            if value is None:
                return None
            found[name] = value
    return found


def _draw_one(
    item: Item,
    name: str,
    of_name: list[Rule],
    numbers: dict[str, Fraction],
    taken: set[str],
    literal: set[str],
    rng: random.Random,
) -> str | None:
    slot, of_type = item.slots[name], slot_type(item, name)
    if of_type.draw is not None:
        lower = {value.casefold() for value in taken}
        for _ in range(_TRIES):
            value = _cased(of_type.draw(slot.value, rng), slot.value)
            if value.casefold() not in literal and not any(_overlap(value.casefold(), other) for other in lower):
                return value
        return None
    assert of_type.near is not None
    assert of_type.read is not None
    written = reading(item, name)
    fixed = [rule for rule in of_name if rule.sign == "="]
    for _ in range(1 if fixed else _TRIES):
        number = fixed[0].value(numbers) if fixed else of_type.near(written, rng)
        if (number > 0) < (written.number > 0):
            continue
        value = _cased(written.write(number), slot.value)
        again = of_type.read(value)  # a date without its year, or a time on a dial, comes round again
        if again and all(_holds(rule, again.number, numbers) for rule in of_name) and (fixed or value not in taken):
            numbers[name] = again.number
            return value
    return None


def _holds(rule: Rule, number: Fraction, numbers: Mapping[str, Fraction]) -> bool:
    bound = rule.value(numbers)
    return rule.sign == "=" or (number < bound if rule.sign == "<" else number > bound)


def _overlap(a: str, b: str) -> bool:
    """Whether one value could be taken for the other."""
    return a == b or (min(len(a), len(b)) > 2 and a[0].isalpha() and (a in b or b in a))


def _cased(value: str, written: str) -> str:
    """A value in the case of the written one."""
    if written.islower():
        return value.lower()
    letters = [sign for sign in written if sign.isalpha()]
    if len(letters) > 1 and written.isupper():
        return value.upper()
    return value[0].upper() + value[1:] if written[0].isupper() else value


def texts(item: Item) -> list[str]:
    """Every text of an item: messages, questions, answers."""
    asked = [text for question in item.ask for text in (question.q, *question.short, question.full)]
    return [message.text for message in item.told] + asked + list(item.unknown)


def _filled(item: Item, by_name: Mapping[str, str]) -> Item:
    fill = lambda text: filled(text, by_name)
    say = lambda text: filled(text, by_name, lowercase=item.lowercase)
    told = tuple(
        Message(message.role, (say if message.role == "user" else fill)(message.text)) for message in item.told
    )
    ask = tuple(_filled_question(question, say, fill) for question in item.ask)
    slots = {name: replace(slot, value=by_name[name]) for name, slot in item.slots.items()}
    return replace(item, told=told, ask=ask, slots=slots, unknown=tuple(map(say, item.unknown)))


def _filled_question(question: Question, say: Callable[[str], str], fill: Callable[[str], str]) -> Question:
    return replace(question, q=say(question.q), short=tuple(map(fill, question.short)), full=fill(question.full))
