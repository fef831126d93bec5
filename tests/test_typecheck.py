"""The checks that the other tests run under find a wrong type and a wrong shape."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from mplus.memory.stacks import stacked
from mplus.turns import turn_text
from tests.typecheck import checked

hooked = jaxtyping.jaxtyped(typechecker=checked)


@hooked
def without_shapes(number: float, names: Sequence[str] = (), *more: int, key: dict[str, int] | None = None) -> str:
    return number if number == 13 else "text"  # type: ignore[return-value]


@hooked
def with_shapes(one: Float[Tensor, " N"], other: list[Float[Tensor, " N"]]) -> Float[Tensor, " N"]:
    return torch.cat([one, *other])


@hooked
def lazily(count: int) -> Iterator[int]:
    yield from range(count)


@hooked
@dataclass
class Plain:
    number: int
    names: tuple[str, ...] = ()


@hooked
@dataclass(frozen=True)
class Shaped:
    one: Float[Tensor, " N"]
    other: Float[Tensor, " N"]


def within(number: int) -> Callable[[int], int]:
    @hooked
    def added(other: int, *, then: int = 0) -> int:
        return -1.5 if other == 13 else number + other + then  # type: ignore[return-value]

    return added


class Named:
    @classmethod
    @hooked
    def made(cls, count: int) -> int:
        return count


def test_right_types_pass() -> None:
    assert without_shapes(1, ["a"], 2, 3, key={"a": 1}) == "text"
    assert len(with_shapes(torch.ones(3), [])) == 3
    assert list(lazily(2)) == [0, 1]
    assert (Plain(1, ("a",)), Plain(2)) == (Plain(number=1, names=("a",)), Plain(2))
    assert len(Shaped(torch.ones(2), torch.zeros(2)).one) == 2
    assert Named.made(1) == 1
    one, two = within(1), within(2)
    assert (one(10), two(10), one(two(10), then=1), one(other=one(5))) == (11, 12, 14, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: without_shapes("1"),
        lambda: without_shapes(1.5, [1]),
        lambda: without_shapes(1.5, [], "more"),
        lambda: without_shapes(1.5, key={"a": "b"}),
        lambda: without_shapes(13),
        lambda: with_shapes(torch.ones(3), [torch.ones(4)]),
        lambda: with_shapes(torch.ones(3), [torch.ones(3)]),
        lambda: with_shapes(torch.ones(3, dtype=torch.int64), []),
        lambda: lazily("3"),
        lambda: Plain("1"),
        lambda: Plain(1, (2,)),
        lambda: Shaped(torch.ones(2), torch.ones(3)),
        lambda: Named.made("3"),
        lambda: within(1)("2"),
        lambda: within(1)(2, then="3"),
        lambda: within(1)(13),
        lambda: turn_text("not a message"),
        lambda: stacked([1]),
    ],
)
def test_wrong_types_do_not(wrong: Callable[[], Any]) -> None:
    with pytest.raises(TypeCheckError):
        wrong()
