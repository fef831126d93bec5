import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.memory.long_term import LongTermMemory, survivors
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance
from mplus.words import no_words

CPU = (torch.device("cpu"),)


def segment(rows: list[int], dtype: str = "float32") -> Segment:
    values = torch.tensor(rows, dtype=torch.float32)[:, None, None].repeat(1, 2, 3)
    return Segment.store(Content((values,), (-values,), values[:, 0]), dtype)


def provenance(rows: list[int], frequency: float = 10.0) -> Provenance:
    index = torch.tensor(rows, dtype=torch.int64)
    return Provenance(
        index.flip(0), torch.full((len(rows),), frequency, dtype=torch.float64), index, index, no_words(len(rows))
    )


def store(*parts: list[int]) -> LongTermMemory:
    memory = LongTermMemory.empty()
    for rows in parts:
        memory = memory.append(segment(rows), provenance(rows))
    return memory


def rows_of(memory: LongTermMemory) -> list[float]:
    if not len(memory):
        return []
    content = memory.content(torch.arange(len(memory)), torch.float32, CPU)
    assert torch.equal(content.keys[0], -content.values[0])
    assert torch.equal(content.retrieval_keys[:, 0], content.keys[0][:, 0, 0])
    return content.keys[0][:, 0, 0].tolist()


def test_content_comes_in_the_order_asked_for_across_segments() -> None:
    memory = store([0, 1, 2], [3, 4], [5, 6, 7])
    index = torch.tensor([6, 0, 4, 4, 7, 2])
    assert memory.content(index, torch.float32, CPU).keys[0][:, 0, 0].tolist() == [6, 0, 4, 4, 7, 2]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=6), st.data())
def test_taking_purging_and_compacting_lose_and_change_nothing(parts: list[list[int]], data) -> None:
    memory = store(*parts)
    flat = [row for part in parts for row in part]
    keep = data.draw(st.lists(st.booleans(), min_size=len(flat), max_size=len(flat)))
    expected = [float(row) for row, stays in zip(flat, keep, strict=True) if stays]
    kept = memory.where(torch.tensor(keep))
    for after in (kept, kept.purged(), kept.compacted(size=8), kept.purged().compacted(size=4, waste=0.0)):
        assert rows_of(after) == expected
        assert after.provenance.sources.tolist() == [int(row) for row in expected]
    living = sum(len(s) for s in kept.purged().segments)
    assert living == len(expected)


def test_what_was_purged_is_in_no_tensor() -> None:
    memory = store([1, 2, 77, 3], [77, 77]).where(torch.tensor([True, True, False, True, False, False])).purged()
    for held in memory.segments:
        assert 77.0 not in held.keys[0].data and 77.0 not in held.retrieval_keys.data


def test_compaction_bounds_the_number_of_segments() -> None:
    memory = LongTermMemory.empty()
    for i in range(100):
        memory = memory.append(segment([i] * 3), provenance([i] * 3)).compacted(size=30)
    assert len(memory.segments) <= 12
    assert rows_of(memory) == [float(i) for i in range(100) for _ in range(3)]


@given(
    st.lists(st.floats(0, 5), max_size=12),
    st.floats(0, 3),
    st.integers(1, 14),
    st.integers(0, 12),
)
def test_survivors_follow_the_rule_of_the_paper(
    frequencies: list[float], decay: float, capacity: int, required: int
) -> None:
    index = torch.arange(len(frequencies))
    known = Provenance(index, torch.tensor(frequencies, dtype=torch.float64), index, index, no_words(len(index)))
    nobody = torch.zeros(len(frequencies), dtype=torch.bool)
    after, staying = survivors(known, decay=decay, capacity=capacity, required=required, pinned=nobody)
    alive = [n for n, f in enumerate(frequencies) if f - decay > 0.01]
    decayed = len(alive) > required
    expected = alive if decayed else list(range(len(frequencies)))
    left = [f - decay if decayed else f for f in frequencies]
    if len(expected) > capacity:
        best = sorted(expected, key=lambda n: (-left[n], -n))[:capacity]
        expected = sorted(best)
    assert staying.tolist() == expected
    assert after.recall_frequencies.tolist() == left
