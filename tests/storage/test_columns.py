import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus import CorruptMemoryError
from mplus.storage.columns import decode_column, encode_column

RUNS = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-2, 2), st.integers(1, 40)), max_size=4)


@given(RUNS, st.sampled_from([torch.int64, torch.float64, torch.float32, torch.int32, torch.bool]))
def test_a_column_comes_back_bit_for_bit(runs: list[tuple[int, int, int]], dtype: torch.dtype) -> None:
    parts = [torch.tensor([start]) + step * torch.arange(count) for start, step, count in runs]
    column = torch.cat([torch.empty(0, dtype=torch.int64), *parts]).to(dtype)
    tensors = encode_column("ages", column)
    again = decode_column(tensors, "ages", length=len(column))
    assert again.dtype == dtype and torch.equal(again, column)
    with pytest.raises(CorruptMemoryError):
        decode_column(tensors, "ages", length=len(column) + 1)


def test_counting_columns_take_little_room_and_odd_ones_no_more_than_they_are() -> None:
    def nbytes(column: torch.Tensor) -> int:
        return sum(t.numel() * t.element_size() for t in encode_column("c", column).values())

    assert nbytes(torch.arange(100_000, 0, -1)) < 100
    assert nbytes(torch.arange(100_000) // 64) < 40_000
    odd = torch.randint(0, 2**40, (1000,))
    assert nbytes(odd) == 8000
    assert encode_column("c", odd)["c"] is odd


@pytest.mark.parametrize("counts", [[2**31 - 1] * 3, [-5, 7], [0, 1]])
def test_runs_that_do_not_add_up_are_refused_before_they_are_laid_out(counts: list[int]) -> None:
    tensors = {
        "ages.first": torch.tensor([1]),
        "ages.steps": torch.zeros(len(counts), dtype=torch.int64),
        "ages.counts": torch.tensor(counts, dtype=torch.int32),
    }
    with pytest.raises(CorruptMemoryError):
        decode_column(tensors, "ages", length=3)
