from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.memory.long_term import LongTermMemory
from mplus.memory.stacks import stacked
from mplus.read.fetch import RecalledRows, located
from tests.memory.stores import LAYERS, store

CPU = (torch.device("cpu"),) * LAYERS
STRETCHES = (range(2), range(2, LAYERS))


def fetched(stores, index: torch.Tensor, stretches=STRETCHES) -> RecalledRows:
    return RecalledRows(stores, index, torch.float32, CPU, stretches)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.integers(1, 20), max_size=2),
    st.booleans(),
    st.data(),
)
def test_rows_come_in_the_order_asked_for_from_every_tier(long, waiting, on_disk, data) -> None:
    stores = (store(long, on_disk=on_disk), store(waiting, sum(long)))
    count = sum(long) + sum(waiting)
    if data.draw(st.booleans()):  # whole runs, as chunks are
        starts = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True))
        index = torch.cat([torch.arange(s, min(s + 17, count)) for s in starts])
    else:
        index = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=30)))
    stretches = data.draw(st.sampled_from([STRETCHES, (range(LAYERS),), tuple(range(n, n + 1) for n in range(LAYERS))]))
    rows = fetched(stores, index, stretches)
    rows.start(0)
    assert torch.equal(rows.order.sort().values, torch.arange(len(index))), "every row comes once"
    for number, layers in enumerate(stretches):
        got = rows.take(number)
        layer = torch.tensor(layers)[:, None] / 8
        expected = (index[rows.order] + layer)[:, :, None, None].expand(-1, -1, 2, 4)
        assert torch.equal(got.keys, expected)
        assert torch.equal(got.values, -expected)


def test_a_run_is_a_slice_and_other_rows_of_a_segment_come_in_one_index() -> None:
    stores = (store([64, 64]), store([32], 128))
    found = located(stores, torch.cat([torch.arange(100, 120), torch.arange(10, 40), torch.arange(130, 150)]))
    assert [part.rows for part in found] == [slice(10, 40), slice(36, 56), slice(2, 22)], "as they are stored"
    assert torch.cat([part.places for part in found]).tolist() == [*range(20, 50), *range(20), *range(50, 70)]
    single = located(stores, torch.arange(0, 128, 2))
    assert [isinstance(part.rows, slice) for part in single] == [False, False]


def test_rows_of_a_segment_are_taken_from_all_layers_at_once() -> None:
    for dtype in ("float32", "int8", "int4"):
        (segment,) = store([64], dtype=dtype).segments
        planes = [plane for pair in zip(segment.keys, segment.values, strict=True) for plane in pair]
        assert stacked([plane.data for plane in planes]) is not None


def test_a_failure_on_the_way_reaches_the_layer_that_waits() -> None:
    rows = fetched((store([8], on_disk=True),), torch.arange(8))
    rows.start(7)  # beyond the last layer: nothing to do
    rows._kinds = [[replace(rows._kinds[0][0], rows=torch.full((8,), 99))]]
    rows.start(0)
    with pytest.raises((IndexError, RuntimeError)):
        rows.take(0)


@pytest.mark.gpu
def test_rows_reach_a_gpu_on_a_side_stream() -> None:
    device = torch.device("cuda", 0)
    for on_disk in (False, True):
        stores = (store([64, 64], on_disk=on_disk, dtype="int8"),)
        index = torch.cat([torch.arange(70, 90), torch.arange(3, 30)])
        here = fetched(stores, index)
        there = RecalledRows(stores, index, torch.float32, (device,) * LAYERS, STRETCHES)
        there.start(0)
        assert torch.equal(here.order, there.order)
        for number in range(len(STRETCHES)):
            for one, other in zip(here.take(number), there.take(number), strict=True):
                assert other.device == device
                torch.testing.assert_close(one, other.cpu())


@given(st.lists(st.sampled_from(["float32", "bfloat16", "float16"]), min_size=1, max_size=5), st.data())
def test_rows_that_are_stored_differently_come_in_order_all_the_same(dtypes: list[str], data) -> None:
    filled = LongTermMemory.empty()
    for number, dtype in enumerate(dtypes):  # whole numbers up to 256 are exact in each of them
        part = store([16], 16 * number, dtype=dtype)
        filled = filled.append(part.segments[0], part.provenance)
    if data.draw(st.booleans()):
        starts = data.draw(st.permutations(range(0, 16 * len(dtypes), 8)))
        index = torch.cat([torch.arange(start, start + 8) for start in starts])
    else:
        index = torch.tensor(data.draw(st.permutations(range(16 * len(dtypes)))))
    rows = fetched((filled,), index)
    got = rows.take(0)
    assert torch.equal(got.keys[0], index[rows.order][:, None, None].expand(-1, 2, 4).float())
    assert torch.equal(got.values, -got.keys)
