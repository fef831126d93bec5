import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.memory.long_term import LongTermMemory
from mplus.read.fetch import Group, RecalledRows, grouped, located
from tests.memory.stores import store

LAYERS = 3
CPU = (torch.device("cpu"),) * LAYERS


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
    rows = RecalledRows(stores, index, torch.float32, CPU)
    rows.start(0)
    for layer in range(LAYERS):
        got = rows.take(layer)
        expected = (index + layer / 8)[:, None, None].expand(-1, 2, 4)
        assert torch.equal(got.keys, expected)
        assert torch.equal(got.values, -expected)


def test_runs_are_slices_and_single_rows_are_not() -> None:
    stores = (store([64, 64]), store([32], 128))
    runs = located(stores, torch.cat([torch.arange(100, 120), torch.arange(10, 40), torch.arange(130, 150)]))
    assert all(isinstance(part.rows, slice) for part in runs)
    assert len(runs) == 3
    single = located(stores, torch.arange(0, 128, 2))
    assert [isinstance(part.rows, slice) for part in single] == [False, False]


def test_a_failure_on_the_way_reaches_the_layer_that_waits() -> None:
    rows = RecalledRows((store([8], on_disk=True),), torch.arange(8), torch.float32, CPU)
    rows.start(7)  # beyond the last layer: nothing to do
    rows._groups = [Group(rows._parts, torch.arange(3))]
    rows.start(0)
    with pytest.raises(RuntimeError, match="shape"):
        rows.take(0)


@pytest.mark.gpu
def test_rows_reach_a_gpu_on_a_side_stream() -> None:
    device = torch.device("cuda", 0)
    for on_disk in (False, True):
        stores = (store([64, 64], on_disk=on_disk, dtype="int8"),)
        index = torch.cat([torch.arange(70, 90), torch.arange(3, 30)])
        here = RecalledRows(stores, index, torch.float32, CPU)
        there = RecalledRows(stores, index, torch.float32, (device,) * LAYERS)
        there.start(0)
        for layer in range(LAYERS):
            for one, other in zip(here.take(layer), there.take(layer), strict=True):
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
    assert len(grouped(located((filled,), index))) == len(set(dtypes))
    got = RecalledRows((filled,), index, torch.float32, CPU).take(0)
    assert torch.equal(got.keys, index[:, None, None].expand(-1, 2, 4).float())
    assert torch.equal(got.values, -got.keys)
