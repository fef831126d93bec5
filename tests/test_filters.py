"""The one language of filters: operators, nesting, kinds of values, and clear errors."""

import re
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mplus import metadata_filter
from mplus.filters import checked_test

ANNA: dict[str, Any] = {
    "name": "Anna",
    "age": 41,
    "height": 1.75,
    "born": date(1984, 5, 6),
    "seen": datetime(2025, 1, 2, 3, 4, tzinfo=UTC),
    "joined": "2019-03-01",
    "tags": ["cello", "Graz"],
    "pair": (1, 2),
    "none": None,
    "home": {"city": "Graz", "rooms": 3},
    "a.b": "dotted",
}
HOLD: list[dict[str, Any]] = [
    {},
    {"name": "Anna", "age": 41},
    {"age": {"$gt": 40, "$lt": 42}},
    {"age": {"$gte": 41}},
    {"age": {"$lte": 41.0}},
    {"age": {"$ne": 40}},
    {"age": {"$eq": 41}},
    {"age": {"$between": [40, 41]}},
    {"age": {"$in": [1, 41]}},
    {"age": {"$in": {41}}},
    {"age": {"$nin": [1, 2]}},
    {"age": {"$gt": "9"}},
    {"age": {"$not": {"$gt": 41}}},
    {"age": {"$or": [{"$lt": 3}, {"$gt": 40}]}},
    {"name": {"$gt": "Abel", "$lt": "Bob"}},
    {"name": {"$contains": "nn"}},
    {"name": {"$icontains": "ANN"}},
    {"tags": {"$in": ["cello", "drums"]}},
    {"tags": {"$nin": ["drums"]}},
    {"tags": {"$contains": "Graz"}},
    {"tags": {"$icontains": "graz"}},
    {"tags": {"$all": ["cello", "Graz"]}},
    {"tags": ["cello", "Graz"]},
    {"pair": [1, 2]},
    {"none": None},
    {"none": {"$empty": True}},
    {"colour": {"$empty": True}},
    {"colour": {"$exists": False}},
    {"colour": {"$ne": "red"}},
    {"colour": {"$nin": ["red"]}},
    {"home": {"city": "Graz"}},
    {"home": {"rooms": {"$gte": 3}}},
    {"home.city": "Graz"},
    {"a.b": "dotted"},
    {"born": {"$lt": date(1990, 1, 1)}},
    {"born": date(1984, 5, 6)},
    {"born": "1984-05-06"},
    {"joined": {"$gte": date(2019, 3, 1)}},
    {"joined": {"$gte": "2019-02-28", "$lt": "2020-01-01"}},
    {"seen": {"$gt": "2025-01-02T04:03:00+01:00"}},
    {"$or": [{"age": 1}, {"name": "Anna"}]},
    {"$and": [{"age": 41}, {"$or": [{"name": "Bob"}, {"tags": {"$contains": "cello"}}]}]},
    {"$nor": [{"age": 1}, {"name": "Bob"}]},
    {"$not": {"age": 1}},
]
FAIL: list[dict[str, Any]] = [
    {"name": "Bob"},
    {"age": {"$gt": 41}},
    {"age": {"$in": []}},
    {"age": {"$nin": [41]}},
    {"age": {"$between": [42, 50]}},
    {"tags": {"$nin": ["cello"]}},
    {"tags": {"$all": ["cello", "drums"]}},
    {"tags": ["cello"]},
    {"name": {"$gt": 3}},
    {"colour": None},
    {"colour": {"$gt": 0}},
    {"colour": {"$in": [None]}},
    {"home": {"city": "Linz"}},
    {"home.street": "x"},
    {"name.first": "Anna"},
    {"$or": [{"age": 1}, {"name": "Bob"}]},
    {"$not": {"age": 41}},
    {"age": {"$exists": False}},
    {"tags": {"$empty": True}},
    {"tags": {"$gt": 1}},
    {"age": {"$contains": "4"}},
]


def cyclic(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    found[name] = found
    return found


BAD: list[tuple[Any, str]] = [
    ({"age": {"$like": 4}}, r"'\$like': expected one of \$eq, .*\$or"),
    ({"$gt": 4}, r"'\$gt' without a key"),
    ({"$or": []}, r"\$or=\[\]: expected a list of filters with at least one"),
    ({"$or": {"age": 1}}, r"expected a list of filters"),
    ({"$or": ["age"]}, r"expected filters, such as"),
    ({"age": {"$in": 4}}, r"\$in=4: expected a list of values"),
    ({"age": {"$in": "41"}}, r"expected a list of values"),
    ({"age": {"$gt": None}}, r"\$gt=None: expected a number, text or date"),
    ({"age": {"$gt": 3, "x": 4}}, r"expected only operators beside 'x'"),
    ({"age": {"$between": [1]}}, r"expected \[lowest, highest\]"),
    ({"age": {"$exists": 1}}, r"expected True or False"),
    ({"name": {"$icontains": 1}}, r"expected text"),
    (cyclic("name"), "does it contain itself"),
    (cyclic("$not"), "does it contain itself"),
    ({"name": {"$in": [cyclic("name")]}}, "does it contain itself"),
]


@pytest.mark.parametrize("wanted", HOLD, ids=str)
def test_a_filter_that_holds(wanted: dict[str, Any]) -> None:
    assert metadata_filter(wanted)(ANNA)
    assert not metadata_filter({"$not": wanted})(ANNA)


@pytest.mark.parametrize("wanted", FAIL, ids=str)
def test_a_filter_that_does_not_hold(wanted: dict[str, Any]) -> None:
    assert not metadata_filter(wanted)(ANNA)
    assert metadata_filter({"$not": wanted})(ANNA)


@pytest.mark.parametrize(("wanted", "message"), BAD, ids=str)
def test_a_filter_that_says_nothing_is_an_error_before_anything_is_searched(wanted: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metadata_filter(wanted)


def test_what_is_not_there_may_count_as_a_value() -> None:
    assert metadata_filter({"colour": None}, absent=None)(ANNA)
    assert not metadata_filter({"colour": {"$exists": True}}, absent=None)(ANNA)


async def later(*_: Any) -> bool:
    return False


class Later:
    async def __call__(self, *_: Any) -> bool:
        return False


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (later, "asynchronous"),
        (Later(), "asynchronous"),
        (partial(later, 1), "asynchronous"),
        (lambda name: True, "expected a function of name, metadata that returns True or False"),
        (lambda name, metadata, more: True, "expected a function of name, metadata"),
    ],
)
def test_a_test_that_cannot_be_asked_is_refused_before(test: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"where=.*{message}"):
        checked_test(test, "where", "name", "metadata")


@pytest.mark.parametrize("given", ["no", (x for x in ()), ["x"], re.match("a", "a"), 0.5, np.array([True])])
def test_a_result_that_is_neither_true_nor_false_is_an_error(given: Any) -> None:
    with pytest.raises(ValueError, match="where returned .* of 'note': expected True or False"):
        checked_test(lambda *_: given, "where", "name", "metadata")("note", {})


def test_a_coroutine_chooses_nothing() -> None:
    with pytest.raises(ValueError, match="expected True or False"):
        checked_test(lambda *about: later(*about), "where", "name", "metadata")("note", {})


@pytest.mark.parametrize("given", [True, 1, np.True_, np.array(True), torch.tensor(True)])
def test_true_may_be_said_in_several_ways(given: Any) -> None:
    assert checked_test(lambda *_: given, "where", "name", "metadata")("note", {}) is True
    assert checked_test(bool, "where", "name")("note") is True


@pytest.mark.parametrize("given", [False, None, 0, np.False_, np.array(False), torch.tensor(False), [], "", {}])
def test_what_is_empty_chooses_nothing(given: Any) -> None:
    assert checked_test(lambda *_: given, "where", "name", "metadata")("note", {}) is False
