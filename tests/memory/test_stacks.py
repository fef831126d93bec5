import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.memory.stacks import joined_rows, paired, rows_of, side_by_side, stacked, unpaired

SHAPES = st.lists(st.sampled_from([(2, 4), (2, 3), (1,)]), min_size=1, max_size=5)


def layers(shapes: list[tuple[int, ...]], rows: int, together: bool) -> tuple[torch.Tensor, ...]:
    made = tuple(torch.randn(rows, *shape) for shape in shapes)
    return side_by_side(made) if together else made


@given(SHAPES, st.integers(1, 6), st.booleans(), st.data())
def test_rows_are_those_of_every_layer_whatever_lies_side_by_side(shapes, rows, together, data) -> None:
    given_layers = layers(shapes, rows, together)
    index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=8)), dtype=torch.int64)
    for got, layer in zip(rows_of(given_layers, index), given_layers, strict=True):
        assert torch.equal(got, layer[index])
    other = layers(shapes, data.draw(st.integers(0, 4)), data.draw(st.booleans()))
    both = joined_rows([given_layers, other])
    for got, first, second in zip(both, given_layers, other, strict=True):
        assert torch.equal(got, torch.cat([first, second]))


def test_what_is_alike_lies_side_by_side_and_is_one_tensor_without_a_copy() -> None:
    keys, values = layers([(2, 4)] * 3, 5, False), layers([(2, 4)] * 3, 5, False)
    assert stacked(paired(keys, values)) is None
    both = side_by_side(paired(keys, values))
    stack = stacked(both)
    assert stack is not None and torch.equal(stack, torch.stack(list(paired(keys, values))))
    stack[3] = 7.0
    assert bool((both[3] == 7).all())
    assert stacked(both[2:4]) is not None, "some layers"
    assert torch.equal(unpaired(both)[1][0], values[0])
    assert stacked(rows_of(both, torch.tensor([1, 0]))) is not None
    assert stacked(joined_rows([both, both])) is not None
    assert stacked([both[0], both[2], both[3]]) is None, "at unequal distances"
    assert stacked([both[0], both[1][:2]]) is None, "of another shape"
    assert stacked([both[0], both[1].bfloat16()]) is None
