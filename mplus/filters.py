"""Filters of metadata: values that must be equal, and operators such as ``{"year": {"$gte": 2020}}``.

One language wherever sources are chosen: ``where=`` of a read, filters of both frameworks, LangGraph's store.

    {"lang": "en", "year": {"$gte": 2020, "$lt": 2025}}            every condition holds
    {"$or": [{"lang": "en"}, {"tags": {"$contains": "global"}}]}   one of them holds; also $and, $nor, $not
    {"author": {"name": "Anna"}}, {"author.name": "Anna"}          values inside a mapping
"""

import inspect
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from datetime import UTC, date, datetime
from typing import Any, Final, cast

Test = Callable[[Any], bool]


class _Absent:
    """The value of a key that is not there; it equals nothing."""

    def __repr__(self) -> str:
        return "<absent>"


ABSENT: Final = _Absent()
MAX_DEPTH = 32
JOINS = ("$and", "$or", "$nor", "$not")
OPERATORS = (
    *("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$between", "$in", "$nin", "$all"),
    *("$contains", "$icontains", "$exists", "$empty"),
)


def checked_test(test: Callable[..., Any], name: str, *takes: str) -> Callable[..., bool]:
    """A function that a user gave to choose with, whose results are checked whenever it is asked.

    Args:
        test: The function.
        name: The argument that it was given as.
        takes: What it is asked about.

    Returns:
        The test. It raises ``ValueError`` where the result is neither True nor False; None and what is empty count as
        False. A text, a generator or a coroutine counts as true in Python, so that a slip would choose everything.

    Raises:
        ValueError: It is asynchronous, or takes something else.
    """
    expected = f"expected a function of {', '.join(takes)} that returns True or False"
    if inspect.iscoroutinefunction(test) or inspect.iscoroutinefunction(type(test).__call__):
        raise ValueError(f"{name}={test!r:.80} is asynchronous: {expected}.")
    try:
        inspect.signature(test).bind(*takes)
    except TypeError as error:
        raise ValueError(f"{name}={test!r:.80}: {expected}. It has {error}.") from None
    except ValueError:  # some built-in functions have no signature
        pass

    def asked(*about: Any) -> bool:
        found = test(*about)
        is_flag = str(getattr(found, "dtype", "")).endswith("bool") and not getattr(found, "shape", ())
        if found is None or isinstance(found, numbers.Integral) or is_flag:
            return bool(found)
        if isinstance(found, Sized) and not len(found):  # nothing chooses nothing
            return False
        if inspect.iscoroutine(found):  # nobody awaits it
            found.close()
        raise ValueError(
            f"{name} returned {found!r:.60} of {about[0]!r:.60}: expected True or False. Wrap it in bool(…)."
        )

    return asked


def metadata_filter(wanted: Mapping[str, Any], *, absent: Any = ABSENT) -> Callable[[Mapping[str, Any]], bool]:
    """A filter as a test of metadata.

    A value that is not an operator must be equal, where a tuple equals a list. Sizes are compared between numbers
    (texts of numbers too), texts, and dates (texts in ISO form too); between others none is larger. ``$in`` and
    ``$nin`` take a list, and hold for a list in the metadata if they hold for one of its items. ``$contains`` is an
    item of a list or a part of a text, ``$icontains`` the same in any case, ``$all`` several of them; ``$exists`` and
    ``$empty`` take True or False.

    Args:
        wanted: The filter. A key that is not in the metadata is looked up along its dots, such as ``author.name``.
        absent: The value of a key that is not there; the default equals nothing, so that only ``$ne``, ``$nin``,
            ``$not``, ``$exists`` and ``$empty`` can hold.

    Raises:
        ValueError: It is no mapping, an operator is unknown, its operand is of the wrong kind, or it is nested deeper
            than 32 levels.
    """
    if not isinstance(wanted, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"filter {wanted!r:.60}: expected a mapping, such as {{'author': 'Anna'}}, or a test.")
    _check_depth(wanted, 1)
    return _of_mapping(wanted, absent)


def _check_depth(value: Any, depth: int) -> None:
    """Refuse a filter that is nested too deeply, as one that contains itself is."""
    if depth > MAX_DEPTH:
        raise ValueError(f"filter: expected at most {MAX_DEPTH} levels of values in values; does it contain itself?")
    parts = cast("Mapping[Any, Any]", value).values() if isinstance(value, Mapping) else value
    for part in cast("Sequence[Any]", parts) if isinstance(value, Mapping | list | tuple) else ():
        _check_depth(part, depth + 1)


def _of_mapping(wanted: Mapping[str, Any], absent: Any) -> Test:
    """A test of a mapping by several conditions that must all hold."""
    tests: list[Test] = []
    for key, condition in wanted.items():
        if key in JOINS:
            tests.append(_joined(key, condition, lambda one: _of_mapping(one, absent)))
        elif str(key).startswith("$"):
            known = ", ".join(JOINS)
            raise ValueError(f"filter operator {key!r:.40} without a key: expected a metadata key, or one of {known}.")
        else:
            tests.append(_at(key, _of_value(condition, absent), absent))
    return lambda metadata: isinstance(metadata, Mapping) and all(test(metadata) for test in tests)


def _at(key: str, test: Test, absent: Any) -> Test:
    def at(metadata: Mapping[str, Any]) -> bool:
        return test(_found(metadata, key, absent))

    return at


def _found(metadata: Mapping[str, Any], key: str, absent: Any) -> Any:
    if key in metadata:
        return metadata[key]
    value: Any = metadata
    for part in str(key).split("."):
        if not isinstance(value, Mapping) or part not in value:
            return absent
        value = cast("Mapping[str, Any]", value)[part]
    return value


def _of_value(condition: Any, absent: Any) -> Test:
    """A test of one value, by equality or by operators."""
    if not isinstance(condition, Mapping):
        return lambda value: _same(value, condition)
    operators = cast("Mapping[str, Any]", condition)
    if not any(str(name).startswith("$") for name in operators):
        return _of_mapping(operators, absent)
    if plain := [name for name in operators if not str(name).startswith("$")]:
        raise ValueError(f"filter {dict(operators)!r:.80}: expected only operators beside {plain[0]!r:.40}, or none.")
    tests = [_operator(name, operand, absent) for name, operand in operators.items()]
    return lambda value: all(test(value) for test in tests)


def _joined(name: str, operand: Any, of: Callable[[Any], Test]) -> Test:
    several: list[Any] = list(operand) if _is_list(operand) else [operand]
    if (name != "$not" and not _is_list(operand)) or not several:
        raise ValueError(f"filter {name}={operand!r:.60}: expected a list of filters with at least one in it.")
    if wrong := [one for one in several if not isinstance(one, Mapping)]:
        raise ValueError(
            f"filter {name}={operand!r:.60}: expected filters, such as {{'key': value}}, not {wrong[0]!r}."
        )
    tests = [of(one) for one in several]
    if name == "$and":
        return lambda value: all(test(value) for test in tests)
    if name == "$or":
        return lambda value: any(test(value) for test in tests)
    return lambda value: not any(test(value) for test in tests)


def _operator(name: str, operand: Any, absent: Any) -> Test:
    if name in JOINS:
        return _joined(name, operand, lambda one: _of_value(one, absent))
    if name in ("$eq", "$ne"):
        return lambda value: _same(value, operand) is (name == "$eq")
    if name in ("$gt", "$gte", "$lt", "$lte"):
        return _size(name, operand)
    if name == "$between":
        if not _is_list(operand) or len(operand) != 2:
            raise ValueError(f"filter $between={operand!r:.60}: expected [lowest, highest].")
        low, high = _size("$gte", operand[0]), _size("$lte", operand[1])
        return lambda value: low(value) and high(value)
    if name in ("$in", "$nin", "$all"):
        return _listed(name, operand)
    if name in ("$exists", "$empty"):
        if not isinstance(operand, bool):
            raise ValueError(f"filter {name}={operand!r:.60}: expected True or False.")
        if name == "$exists":
            return lambda value: (value is not absent) is operand
        return lambda value: (value is absent or value is None or value == "" or _is_no_item(value)) is operand
    if name == "$contains":
        return lambda value: _contains(value, operand)
    if name == "$icontains":
        if not isinstance(operand, str):
            raise ValueError(f"filter $icontains={operand!r:.60}: expected text.")
        return lambda value: _contains(_lower(value), operand.lower())
    raise ValueError(f"filter operator {name!r:.40}: expected one of {', '.join((*OPERATORS, *JOINS))}.")


def _listed(name: str, operand: Any) -> Test:
    if not _is_list(operand) and not isinstance(operand, set | frozenset):
        raise ValueError(f"filter {name}={operand!r:.60}: expected a list of values.")
    values = list(operand)
    if name == "$all":
        return lambda value: all(_contains(value, one) for one in values)

    def is_in(value: Any) -> bool:
        items = [value, *cast("Sequence[Any]", value)] if _is_items(value) else [value]
        return any(_same(item, one) for item in items for one in values)

    return is_in if name == "$in" else lambda value: not is_in(value)


# --- values -------------------------------------------------------------------------------------------


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_items(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def _is_no_item(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and not value


def _same(value: Any, other: Any) -> bool:
    if _is_list(value) and _is_list(other):
        return len(value) == len(other) and all(_same(one, two) for one, two in zip(value, other, strict=True))
    if isinstance(value, date) or isinstance(other, date):
        pair = _comparable(value, other)
        return pair is not None and pair[0] == pair[1]
    return bool(value == other)


def _contains(value: Any, part: Any) -> bool:
    if isinstance(value, str):
        return isinstance(part, str) and part in value
    return _is_items(value) and any(_same(item, part) for item in value)


def _lower(value: Any) -> Any:
    if isinstance(value, str):
        return value.lower()
    return [_lower(item) for item in cast("Sequence[Any]", value)] if _is_items(value) else value


def _size(name: str, operand: Any) -> Test:
    if not isinstance(operand, int | float | str | date):
        raise ValueError(f"filter {name}={operand!r:.60}: expected a number, text or date to compare with.")

    def holds(value: Any) -> bool:
        pair = _comparable(value, operand)
        if pair is None:
            return False
        if name in ("$gt", "$gte"):
            return pair[0] > pair[1] or (name == "$gte" and pair[0] == pair[1])
        return pair[0] < pair[1] or (name == "$lte" and pair[0] == pair[1])

    return holds


def _comparable(value: Any, other: Any) -> tuple[Any, Any] | None:
    """Both values as a pair of one kind that has an order: numbers, moments or texts; None: there is none."""
    for kind in (_number, _moment):
        pair = kind(value), kind(other)
        if None not in pair:
            return pair
    return (value, other) if isinstance(value, str) and isinstance(other, str) else None


def _number(value: Any) -> float | int | None:
    if isinstance(value, int | float):
        return value
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _moment(value: Any) -> datetime | None:
    """A date or a time as a time without zone (UTC if it has one)."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, datetime):
        return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)
    return datetime(value.year, value.month, value.day) if isinstance(value, date) else None
