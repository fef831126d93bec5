"""Metadata keeps its types over a restart, or is refused when it is given."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch

from mplus import MemoryStore
from mplus.metadata import checked_metadata, decoded_metadata, encoded_metadata
from mplus.storage.json_fields import from_json, to_json
from mplus.testing import tiny_model
from tests.conftest import TINY

ABOUT: dict[str, Any] = {
    "text": "é",
    "number": 3,
    "share": 0.5,
    "flag": True,
    "none": None,
    "day": date(2024, 5, 1),
    "moment": datetime(2024, 5, 1, 12, 30, tzinfo=UTC),
    "naive": datetime(2024, 5, 1, 12, 30),
    "time": time(12, 30),
    "length": timedelta(seconds=1.5),
    "long length": timedelta(days=10**6, microseconds=1),
    "price": Decimal("1.10"),
    "id": UUID(int=7),
    "pair": (1, ("a", date(2024, 5, 1))),
    "tags": {"a", "b"},
    "frozen": frozenset({1}),
    "raw": b"\x00\xff",
    "file": Path("a/b.txt"),
    "posix file": PurePosixPath("a/b.txt"),
    "windows file": PureWindowsPath("a\\b.txt"),
    "large": -(10**3999),
    "list": [1, [2.5, (3,)]],
    "nested": {"where": {"page": (1, 2)}, "$type": "mine"},
    "ours": {"$type": "date", "value": "2024-05-01"},
}


def shape(value: Any) -> Any:
    """A value with the types of all that is in it; the members of a set in an order of their own."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value), list(map(shape, value))
    if isinstance(value, set | frozenset):
        return type(value), sorted(map(shape, value), key=repr)
    return type(value), repr(value)


@pytest.mark.parametrize("name", ABOUT)
def test_a_value_comes_back_from_json_with_its_type(name: str) -> None:
    about = checked_metadata({name: ABOUT[name]})
    again = decoded_metadata(from_json(to_json(encoded_metadata(about))))
    assert again == about == {name: ABOUT[name]}
    assert shape(again) == shape(about)


def test_metadata_keeps_its_types_over_a_restart(tmp_path: Path) -> None:
    model = tiny_model(memory=TINY)
    with MemoryStore(tmp_path).open("anna", model) as memory:
        model.write(memory, "The red box is in the attic.", source="box", metadata=ABOUT)
    (source,) = MemoryStore(tmp_path).load("anna", model).sources()
    assert source.metadata == ABOUT
    assert {type(value) for value in source.metadata.values()} == {type(value) for value in ABOUT.values()}
    found = model.search(MemoryStore(tmp_path).load("anna", model), "box", where={"day": {"$gte": date(2024, 1, 1)}})
    assert [one.source for one in found] == ["box"]


def test_an_enumeration_of_texts_becomes_text() -> None:
    class Colour(StrEnum):
        RED = "red"

    (value,) = checked_metadata({"colour": Colour.RED}).values()
    assert value == "red" and type(value) is str


def test_numbers_of_numpy_become_numbers() -> None:
    about = checked_metadata({"row": np.int64(3), "share": np.float32(0.5), "sum": torch.tensor(0.5)})
    assert about == {"row": 3, "share": 0.5, "sum": 0.5}
    assert [type(value) for value in about.values()] == [int, float, float]
    for several in (np.array([1.0]), torch.ones(1)):
        with pytest.raises(ValueError, match="which no file keeps as it is"):
            checked_metadata({"row": several})


def test_a_number_that_no_file_could_be_read_with_is_refused_when_it_is_given() -> None:
    with pytest.raises(ValueError, match="an integer of some thousand digits"):
        checked_metadata({"number": [10**5000]})


def test_lengths_of_time_in_files_of_earlier_versions_are_read() -> None:
    assert decoded_metadata({"$type": "seconds", "value": "1.5"}) == timedelta(seconds=1.5)


def deep(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def cyclic() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["self"] = found
    return found


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"x": object()}, r"metadata\['x'\] is object"),
        ({"x": [1, {"y": 1j}]}, r"metadata\['x'\] is complex"),
        ({"x": np.zeros(3)}, "is ndarray"),
        ({"x": {4: "x"}}, r"has the name 4 \(int\): expected text"),
        ({"x": deep(100_000)}, "at most 32 levels"),
        ({"x": cyclic()}, "does it contain itself"),
    ],
)
def test_what_cannot_be_kept_is_refused_when_it_is_given(about: Any, message: str) -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    before = memory.fingerprint
    with pytest.raises(ValueError, match=message):
        model.write(memory, "The red box is in the attic.", metadata=about)
    assert memory.fingerprint == before


@pytest.mark.parametrize("wrong", [{"$type": "date", "value": "x"}, {"$type": "nothing", "value": 1}, {"$type": "set", "value": [[]]}])  # fmt: skip
def test_a_value_that_is_not_of_its_type_is_an_error(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no"):
        decoded_metadata({"x": wrong})


def test_metadata_of_older_files_stays_as_it_is() -> None:
    old = {"day": "2024-05-01", "pair": [1, 2], "value": 3}
    assert decoded_metadata(old) == old
