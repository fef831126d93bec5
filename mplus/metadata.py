"""Metadata of sources: values of JSON, and dates, tuples, sets, bytes, paths and numbers that keep their types."""

import base64
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast
from uuid import UUID

MAX_DEPTH = 32
MAX_INTEGER = 10**4000
"""Integers above are refused: Python reads no longer ones from a file."""
TYPE, VALUE = "$type", "value"
"""Keys of a value in a file that JSON has no form for."""

_TO_TEXT: tuple[tuple[type, str, Callable[[Any], str]], ...] = (
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (timedelta, "timedelta", lambda value: f"{value.days} {value.seconds} {value.microseconds}"),
    (Decimal, "decimal", str),
    (UUID, "uuid", str),
    (Path, "path", str),
    (PurePosixPath, "posix path", str),
    (PureWindowsPath, "windows path", str),
    (bytes, "bytes", lambda value: base64.b64encode(value).decode()),
)
_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: timedelta(*map(int, text.split())),
    "seconds": lambda text: timedelta(seconds=float(text)),  # of earlier versions
    "decimal": Decimal,
    "uuid": UUID,
    "path": Path,
    "posix path": PurePosixPath,
    "windows path": PureWindowsPath,
    "bytes": lambda text: base64.b64decode(text, validate=True),
}
_COLLECTIONS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_MADE: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of metadata that nothing else can change, and of which a file keeps values and types.

    Args:
        metadata: Names with text, numbers, booleans, None, dates, times, bytes, paths, UUIDs, decimals, and lists,
            tuples, sets and mappings of them. Numbers of numpy and torch become numbers of Python.

    Raises:
        ValueError: It is no mapping, a name is no text, a value is of another type, or values are nested deeper than 32
            levels, as they are where one contains itself.
    """
    if not isinstance(metadata, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"metadata={metadata!r:.60}: expected a mapping, such as {{'author': 'Anna'}}.")
    return {_name(name, "metadata"): _checked(value, f"metadata[{name!r:.40}]", 1) for name, value in metadata.items()}


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise ValueError(
            f"{where} has the name {name!r:.40} ({type(name).__name__}): expected text. Use str({name!r:.40})."
        )
    return name


def _checked(value: Any, where: str, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{where:.60}: expected at most {MAX_DEPTH} levels of values in values; does it contain itself?"
        )
    if value is None or isinstance(value, bool | bytes | date | time | timedelta | Decimal | UUID):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration too
    if isinstance(value, int | float):
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise ValueError(
                f"{where:.60} is an integer of some thousand digits, which no file keeps: give it as text."
            )
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_name(name, where): _checked(one, where, depth + 1) for name, one in items}
    if isinstance(value, list | tuple | set | frozenset):
        found = [_checked(one, where, depth + 1) for one in cast("list[Any]", value)]
        return _MADE[_COLLECTIONS[next(kind for kind in _COLLECTIONS if isinstance(value, kind))]](found)
    if isinstance(value, Path | PurePosixPath | PureWindowsPath):
        return value
    number = getattr(value, "item", None)
    if callable(number) and getattr(value, "shape", None) == ():
        return _checked(number(), where, depth + 1)
    raise ValueError(
        f"{where} is {type(value).__name__} ({value!r:.60}), which no file keeps as it is: expected text, a number, a "
        "boolean, None, a date, a path, bytes, or a list or mapping of them. Use str(…) of it."
    )


def encoded_metadata(value: Any) -> Any:
    """Metadata as JSON, from which ``decoded_metadata`` makes the same values."""
    if isinstance(value, Mapping):
        found = {str(name): encoded_metadata(one) for name, one in cast("Mapping[Any, Any]", value).items()}
        return {TYPE: "mapping", VALUE: list(map(list, found.items()))} if TYPE in found else found
    for kind, name in _COLLECTIONS.items():
        if isinstance(value, kind):
            items = [encoded_metadata(one) for one in cast("list[Any]", value)]
            return items if kind is list else {TYPE: name, VALUE: items}
    for kind, name, to_text in _TO_TEXT:
        if isinstance(value, kind):
            return {TYPE: name, VALUE: to_text(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def decoded_metadata(value: Any) -> Any:
    """Metadata of JSON.

    Raises:
        ValueError: A value is not of the type that it names.
    """
    if isinstance(value, list):
        return [decoded_metadata(one) for one in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    given = cast("dict[str, Any]", value)
    if given.keys() != {TYPE, VALUE}:
        return {name: decoded_metadata(one) for name, one in given.items()}
    kind, inner = given[TYPE], given[VALUE]
    try:
        if kind == "mapping":
            return {str(name): decoded_metadata(one) for name, one in inner}
        if kind in _MADE:
            return _MADE[kind](decoded_metadata(one) for one in inner)
        return _FROM_TEXT[kind](inner)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"metadata {inner!r:.60} is no {kind!r:.40}") from error
