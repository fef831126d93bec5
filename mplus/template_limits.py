"""Chat templates that can allocate no more than templates need.

Jinja's sandbox keeps a template from the machine, but ``'x' * 10**10`` takes ten gigabytes in one step. Here whatever
makes text or lists is measured before it is made: operators, methods, filters and what is put together.
"""

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any, cast

from jinja2 import Environment, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import SandboxedEnvironment

MOST = 2**22
"""Most characters of a text, or items of a list, for a small prompt."""
MOST_IN_ALL = 2**26
"""Most of everything that is made for a small prompt."""
MOST_BITS = 2**14
"""Most bits of a number."""
MOST_TEMPLATE = 2**20
"""Most characters of a template; those in use have a hundredth of that."""
MOST_INDENT = 64
_NUMBER = re.compile(r"\d+")


class LargeTemplateError(ValueError):
    """A chat template that would make more text than any template needs."""


class _Room:
    """What may still be made."""

    def __init__(self, given: int) -> None:
        self.most, self.left = MOST + 16 * given, MOST_IN_ALL + 4096 * given

    def spend(self, size: int) -> None:
        self.left -= size
        if size > self.most or self.left < 0:
            raise LargeTemplateError(
                f"The chat template makes a text or list of {size:,} characters or items, more than any prompt needs. "
                "Use the tokenizer of another checkpoint, or set tokenizer.chat_template to another one."
            )


_ROOM: ContextVar[_Room | None] = ContextVar("mplus_template_room", default=None)


def _spend(size: int) -> None:
    room = _ROOM.get()
    if room is not None:
        room.spend(size)


@contextmanager
def limited_room(given: int) -> Generator[None]:
    """Limit what templates make in this block; ``given`` is the number of characters that they are given."""
    token = _ROOM.set(_Room(given))
    try:
        yield
    finally:
        _ROOM.reset(token)


@lru_cache(maxsize=64)
def compiled(template: str) -> Any:
    """A template that spends its room; None where this version of transformers does not tell how it renders.

    Raises:
        LargeTemplateError: It is too long.
        jinja2.TemplateError: It is no valid template.
    """
    if len(template) > MOST_TEMPLATE:
        raise LargeTemplateError(f"The chat template has {len(template):,} characters; at most {MOST_TEMPLATE:,}.")
    environment = _environment()
    return None if environment is None else environment.from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Environment | None:
    """The environment in which transformers renders templates, with limits."""
    from transformers.utils import chat_template_utils

    compile_template = getattr(chat_template_utils, "_compile_jinja_template", None)
    own: Any = None if compile_template is None else compile_template("").environment
    if not isinstance(own, SandboxedEnvironment):
        return None
    limited = own.overlay()
    limited.__class__ = type("LimitedEnvironment", (_Limited, type(own)), {})
    limited.filters = {name: _limited_filter(name, function) for name, function in own.filters.items()}
    limited.globals = {name: value for name, value in own.globals.items() if name != "lipsum"}
    return limited


class _Generator(CodeGenerator):
    """Has the environment put texts together that ``~`` stands between."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.together((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")


class _Limited(SandboxedEnvironment):
    """Measures what is made before it is made."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})
    code_generator_class = _Generator

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _spend(_size_of_operation(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(_size_of_call(__obj, args, kwargs))
        return super().call(__context, __obj, *args, **kwargs)

    @staticmethod
    def together(parts: Iterable[Any]) -> str:
        """What ``~`` makes."""
        return _joined(map(str, parts))

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a template, a macro or a block has written."""
        return _joined(parts)


def _joined(parts: Iterable[str]) -> str:
    found, size = list[str](), 0
    room = _ROOM.get()
    for part in parts:
        size += len(part)
        if room is not None and size > room.most:
            break
        found.append(part)
    _spend(size)
    return "".join(found)


def _size(value: Any) -> int:
    """Characters of a text, or items of a collection."""
    return len(value) if isinstance(value, str | bytes | list | tuple | Mapping | set | frozenset) else 8


def _numbers(values: Iterable[Any]) -> int:
    return sum(abs(value) for value in values if isinstance(value, int))


def _size_of_operation(operator: str, left: Any, right: Any) -> int:
    if operator == "+":
        return _size(left) + _size(right)
    if operator == "%" and isinstance(left, str | bytes):
        return _size_of_format(str(left), right if isinstance(right, tuple) else (right,))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length()
        return bits if operator in ("*", "**") and bits <= MOST_BITS else 0 if operator == "%" else MOST * bits
    if operator == "*":
        for one, times in ((left, right), (right, left)):
            if isinstance(times, int) and not isinstance(one, int | float):
                return _size(one) * max(times, 0)
    return 8


def _size_of_format(text: str, values: Iterable[Any]) -> int:
    """At most: every number in the text, and every one that is given, may be a width."""
    given = list(values)
    return len(text) + sum(map(_size, given)) + sum(map(int, _widths(text))) + _numbers(given)


def _widths(text: str) -> list[str]:
    found = _NUMBER.findall(text)
    if any(len(digits) > 12 for digits in found):
        raise LargeTemplateError("The chat template formats with a width of more than 12 digits.")
    return found


def _size_of_call(called: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """What a method of a text makes at most."""
    text, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    if not isinstance(text, str):
        # Jinja wraps the methods that format.
        wrapped = getattr(called, "__wrapped__", None)
        return _size_of_call(wrapped, args, kwargs) if wrapped is not None else 8
    if name in ("format", "format_map"):
        values = [*args, *kwargs.values()]
        values += [one for value in values if isinstance(value, Mapping) for one in cast("Any", value).values()]
        return _size_of_format(text, values)
    return _size_of_method(name, text, [*args, *kwargs.values()])


def _size_of_method(name: str, text: str, given: list[Any]) -> int:
    if name in ("center", "ljust", "rjust", "zfill"):
        return len(text) + _numbers(given)
    if name == "expandtabs":
        return len(text) + text.count("\t") * (_numbers(given) or 8)
    if name == "replace" and len(given) >= 2:
        return len(text) + (text.count(str(given[0])) if str(given[0]) else len(text) + 1) * len(str(given[1]))
    if name == "join" and given and isinstance(given[0], list | tuple | Mapping):
        return sum(map(_size, cast("list[Any]", given[0]))) + len(text) * len(cast("list[Any]", given[0]))
    if name == "translate" and given and isinstance(given[0], Mapping):
        return len(text) * max([1, *map(_size, cast("Mapping[Any, Any]", given[0]).values())])
    return len(text)


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that spends what it makes."""

    @wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        # Filters that are passed the environment or a context have it first.
        given = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _spend(_size_of_filter(name, given, kwargs))
        found = function(*args, **kwargs)
        _spend(_size(found))
        return found

    return limited


def _size_of_filter(name: str, given: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    value, others = (given[0] if given else ""), [*given[1:], *kwargs.values()]
    if name == "format":
        return _size_of_format(str(value), others)
    if name in ("center", "replace"):
        return _size_of_method(name, str(value), others)
    if name == "join" and isinstance(value, list | tuple | Mapping):
        between = max([0, *(len(one) for one in others if isinstance(one, str))])
        return sum(map(_size, cast("list[Any]", value))) + between * len(cast("list[Any]", value))
    if name == "indent":
        width = _numbers(others) + sum(len(one) for one in others if isinstance(one, str))
        return len(str(value)) + (str(value).count("\n") + 1) * width
    if name == "tojson" and any(isinstance(one, int) and one > MOST_INDENT for one in others):
        return MOST_IN_ALL
    if name in ("batch", "slice", "wordwrap", "truncate"):
        return _numbers(others)
    return 8
