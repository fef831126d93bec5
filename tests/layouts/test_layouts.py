import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.layouts.by_config import LAYOUTS
from mplus.layouts.single_tokens import random_eviction
from mplus.layouts.whole_chunks import chunk_starts


def runs(sizes: list[int], first: int = 0) -> list[int]:
    return [first + n for n, size in enumerate(sizes) for _ in range(size)]


@given(st.lists(st.integers(1, 6), max_size=6), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 20))
def test_evicting_chunks_keeps_the_newest_whole_ones_that_fit(old: list[int], new: list[int], capacity: int) -> None:
    chunks = torch.tensor(runs(old + new))
    remaining, evicted = LAYOUTS["chunk"].evict(chunks, sum(new), capacity, torch.Generator())
    kept: list[int] = []
    for size in reversed(old + new):
        if sum(kept) + size > capacity:
            break
        kept.append(size)
    assert len(remaining) == sum(kept)
    assert evicted.tolist() + remaining.tolist() == list(range(len(chunks)))


@given(st.integers(0, 12), st.integers(1, 5), st.integers(5, 14), st.randoms())
def test_evicting_tokens_keeps_the_first_of_the_permutation_in_order(old: int, new: int, capacity: int, rng) -> None:
    old = min(old, capacity)
    order = list(range(old))
    rng.shuffle(order)
    remaining, evicted = random_eviction(torch.tensor(order, dtype=torch.int64), new, capacity)
    stay = sorted(order[: max(capacity - new, 0)])
    assert remaining.tolist() == [*stay, *range(old, old + new)]
    assert evicted.tolist() == sorted(set(order) - set(stay))


def test_chunk_starts() -> None:
    assert chunk_starts(torch.tensor([4, 4, 7, 9, 9])).tolist() == [0, 2, 3]
    assert chunk_starts(torch.tensor([], dtype=torch.int64)).tolist() == []


@given(st.lists(st.integers(1, 6), max_size=6), st.integers(0, 20))
def test_what_comes_back_after_forgetting_is_the_newest_whole_chunks(sizes: list[int], room: int) -> None:
    chunks = torch.tensor(runs(sizes), dtype=torch.int64)
    fitting = 0
    for size in reversed(sizes):
        if fitting + size > room:
            break
        fitting += size
    assert LAYOUTS["chunk"].num_returning(chunks, room) == fitting
    assert LAYOUTS["token"].num_returning(chunks, room) == 0


def test_layers_share_one_choice_or_make_their_own() -> None:
    assert LAYOUTS["chunk"].tracks(3, 1) == (((0, 1, 2), 1),)
    assert LAYOUTS["token"].tracks(3, 1) == (((0,), 0), ((1,), 1), ((2,), 2))
