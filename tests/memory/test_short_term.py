import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.memory.short_term import chunk_starts, evict_chunks, evict_tokens
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.words import no_words


def tokens(chunks: list[int]) -> Tokens:
    count = len(chunks)
    rows = torch.arange(float(count))
    content = Content((rows[:, None, None],), (rows[:, None, None],), rows[:, None])
    index = torch.tensor(chunks, dtype=torch.int64)
    return Tokens(
        content, Provenance(torch.arange(count), torch.zeros(count, dtype=torch.float64), index, index, no_words(count))
    )


def runs(sizes: list[int], first: int = 0) -> list[int]:
    return [first + n for n, size in enumerate(sizes) for _ in range(size)]


@given(st.lists(st.integers(1, 6), max_size=6), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 20))
def test_evicting_chunks_keeps_the_newest_whole_ones_that_fit(old: list[int], new: list[int], capacity: int) -> None:
    pool, fresh = tokens(runs(old)), tokens(runs(new, len(old)))
    remaining, evicted = evict_chunks(pool, fresh, capacity)
    kept: list[int] = []
    for size in reversed(old + new):
        if sum(kept) + size > capacity:
            break
        kept.append(size)
    assert len(remaining) == sum(kept)
    assert evicted.provenance.chunks.tolist() + remaining.provenance.chunks.tolist() == runs(old + new)


@given(st.integers(0, 12), st.integers(1, 5), st.integers(5, 14), st.randoms())
def test_evicting_tokens_keeps_the_first_of_the_permutation_in_order(old: int, new: int, capacity: int, rng) -> None:
    old = min(old, capacity)
    order = list(range(old))
    rng.shuffle(order)
    remaining, evicted = evict_tokens(
        tokens(list(range(old))), tokens([100] * new), capacity, torch.tensor(order, dtype=torch.int64)
    )
    stay = sorted(order[: max(capacity - new, 0)])
    assert remaining.provenance.chunks.tolist() == stay + [100] * new
    assert evicted.provenance.chunks.tolist() == sorted(set(order) - set(stay))


def test_chunk_starts() -> None:
    assert chunk_starts(torch.tensor([4, 4, 7, 9, 9])).tolist() == [0, 2, 3]
    assert chunk_starts(torch.tensor([], dtype=torch.int64)).tolist() == []
