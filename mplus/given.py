"""Checks of what is given to a call: an error names the argument, what it was, and what was expected."""

import math
import operator
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any


def refused(name: str, value: object, expected: str) -> ValueError:
    """The error for an argument that is not as expected."""
    return ValueError(f"{name}={value!r:.60} ({type(value).__name__}): expected {expected}.")


def check_kind(name: str, value: object, kind: type[Any], expected: str, *, optional: bool = False) -> None:
    """Check that an argument is of a kind.

    Raises:
        ValueError: It is not; None is only where it is ``optional``.
    """
    if not isinstance(value, kind) and not (optional and value is None):
        raise refused(name, value, expected)


def path_of(name: str, value: Any) -> Path:
    """A path, with the user's home folder written out.

    Raises:
        ValueError: It is none, or empty, which would mean the present folder.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str) or value == "":
        raise refused(name, value, "a path")
    return Path(value).expanduser()


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """A whole number, also one of numpy.

    Raises:
        ValueError: It is none, or below ``least``.
    """
    expected = "a whole number" if least is None else f"a whole number of at least {least}"
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise refused(name, value, expected) from None
    if least is not None and found < least:
        raise refused(name, value, expected)
    return found


def check_number(name: str, value: Any, expected: str, *, optional: bool = False) -> None:
    """Check that an argument is a finite number, 0 or more, also one of numpy.

    Raises:
        ValueError: It is not; None is only where it is ``optional``.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise refused(name, value, expected)


def listed(name: str, value: Any) -> list[Any]:
    """The items of a list; a text is none, though it has letters.

    Raises:
        ValueError: It is no list.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | Mapping):
        raise refused(name, value, "a list")
    return list(value)  # pyright: ignore[reportUnknownArgumentType]
