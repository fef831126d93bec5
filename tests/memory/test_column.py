"""Columns of numbers by runs, beside the plain numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mplus.memory.column import Column, as_tensor
from mplus.memory.tokens import Provenance, StoredProvenance
from mplus.words import no_words

RUNS = st.lists(st.tuples(st.integers(-3, 40), st.integers(1, 9)), max_size=12)


def numbers(runs: list[tuple[int, int]], step: int) -> np.ndarray:
    parts = [first + step * np.arange(size) for first, size in runs]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts]).astype(np.int64)


@pytest.mark.parametrize("step", [-1, 0, 1])
@settings(max_examples=25, deadline=None)
@given(one=RUNS, two=RUNS, three=RUNS, by=st.integers(-5, 5))
def test_a_column_is_its_numbers(
    step: int, one: list[tuple[int, int]], two: list[tuple[int, int]], three: list[tuple[int, int]], by: int
) -> None:
    parts = [numbers(runs, step) for runs in (one, two, three)]
    plain = np.concatenate(parts)
    column = Column.cat([Column.of(part, step) for part in parts])
    assert len(column) == len(plain) and np.array_equal(column.all(), plain)
    assert np.array_equal(column.plus(by).all(), plain + by)
    index = np.arange(len(plain))[::-2]
    assert np.array_equal(column.at(index), plain[index])
    assert np.array_equal(column.firsts, Column.of(plain, step).firsts), "the same however it was joined"
    if not step:
        for number in (-9, 5, 50):
            rising = np.sort(plain)
            assert Column.of(rising).up_to(number) == np.searchsorted(rising, number, side="right")


def test_numbers_that_follow_no_rule_take_no_more_than_before() -> None:
    plain = np.random.default_rng(0).permutation(1000)
    column = Column.cat([Column.of(plain[:600]), Column.of(plain[600:])])
    assert np.array_equal(column.all(), plain) and column.nbytes == plain.nbytes
    as_tensor(column)[0] = -1
    assert column.firsts[0] == plain[0], "what is handed out is a copy"


def test_provenance_takes_some_bytes_a_chunk_and_not_a_token() -> None:
    count, chunk = 64_000, 64
    every = torch.arange(count)
    plain = Provenance(count - 1 - every, torch.ones(count).double(), every // 6400, every // chunk, no_words(count))
    parts = [plain.take(index) for index in every.split(chunk)]
    stored = StoredProvenance.joined(parts)
    for name in ("ages", "recall_frequencies", "sources", "chunks", "words"):
        assert torch.equal(getattr(stored, name), getattr(plain, name))
    assert stored.nbytes - stored.words.nbytes <= 24 * count / chunk
    assert stored.aged(5).chunk_column is stored.chunk_column, "what was worked out of the chunks stays valid"
    index = torch.tensor([3, 640, 5])
    some, aged = stored.take(index), stored.aged(5).at("ages", index)
    assert torch.equal(some.ages, plain.ages[index]) and torch.equal(aged, plain.ages[index] + 5)
    frequencies = torch.rand(count, dtype=torch.float64)
    other = stored.changed(recall_frequencies=frequencies)
    assert torch.equal(other.recall_frequencies, frequencies) and other.chunk_column is stored.chunk_column
