from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from mplus import CorruptMemoryError
from mplus.storage.json_fields import decode, encode, from_json, to_json


@dataclass(frozen=True)
class Inner:
    numbers: tuple[int, ...] = ()
    ids: Int[Tensor, " S"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))


@dataclass(frozen=True)
class Outer:
    name: str
    share: float
    inner: tuple[Inner, ...]
    metadata: Mapping[str, Any]
    pinned: frozenset[str] = frozenset()
    note: str | None = None


def through_json(value: Any) -> Any:
    return decode(type(value), from_json(to_json(encode(value))))


def test_dataclasses_come_back() -> None:
    value = Outer(
        "naïve \ud800",
        1,
        (Inner((1, 2), torch.tensor([7, -8], dtype=torch.int32)), Inner()),
        {"page": 3, "on": date(2024, 5, 1), "list": [1.5, None]},
        frozenset({"b", "a"}),
    )
    again = through_json(value)
    assert (again.name, again.share, again.pinned, again.note) == (value.name, 1.0, value.pinned, None)
    assert again.metadata == value.metadata
    assert again.inner[0].numbers == (1, 2)
    assert torch.equal(again.inner[0].ids, value.inner[0].ids)
    assert len(again.inner[1].ids) == 0


def test_a_field_that_a_file_lacks_has_its_default() -> None:
    assert decode(Outer, {"name": "a", "share": 0.5, "inner": [], "metadata": {}}) == Outer("a", 0.5, (), {})


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"name": None},
        {"share": "1"},
        {"share": True},
        {"inner": {}},
        {"inner": [3]},
        {"inner": [{"numbers": [1.5]}]},
        {"inner": [{"ids": {"dtype": "I32", "base64": "AAA="}}]},
        {"inner": [{"ids": {"dtype": "what", "base64": ""}}]},
        {"inner": [{"ids": [1]}]},
        {"metadata": []},
        {"pinned": [3]},
        {"note": 4},
        {"unknown": 1},
    ],
)
def test_values_of_another_type_are_refused(change: dict[str, Any]) -> None:
    good = {"name": "a", "share": 0.5, "inner": [], "metadata": {}}
    with pytest.raises(CorruptMemoryError):
        decode(Outer, good | change)
    with pytest.raises(CorruptMemoryError, match="lacks"):
        decode(Outer, {})


def test_text_that_is_no_json_is_refused() -> None:
    for text in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(CorruptMemoryError):
            from_json(text)
