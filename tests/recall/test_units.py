import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.layouts.by_config import LAYOUTS
from mplus.layouts.layout import Units
from mplus.memory.long_term import LongTermMemory
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.memory.transfer import HOST
from mplus.recall import units as units_module
from mplus.recall.units import Candidates
from mplus.words import no_words

WHOLE_CHUNKS, SINGLE_TOKENS = LAYOUTS["chunk"], LAYOUTS["token"]
CHUNKS = st.lists(st.integers(1, 6), min_size=1, max_size=12)


def filled(sizes: list[int], cuts: list[int], keep: torch.Tensor | None = None) -> tuple[LongTermMemory, Provenance]:
    """A store of chunks of these sizes in segments cut anywhere; retrieval keys are the tokens' numbers."""
    count = sum(sizes)
    chunks = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    known = Provenance(
        torch.arange(count).flip(0), torch.ones(count, dtype=torch.float64), chunks % 3, chunks, no_words(count)
    )
    store = LongTermMemory.empty()
    for part in torch.arange(count).tensor_split(sorted(cut % count for cut in cuts)):
        keys = part.float()[:, None, None]
        segment = Segment.store(Content((keys,), (keys,), keys[:, 0]), "float32")
        store = store.append(segment, known.take(part))
    return store if keep is None else store.where(keep), known if keep is None else known.take(keep.nonzero().flatten())


@given(CHUNKS, st.lists(st.integers(0, 60), max_size=5), st.integers(1, 9), st.data())
def test_blocks_hold_every_candidate_token_once_in_order(sizes, cuts, block_tokens, data) -> None:
    count = sum(sizes)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    store, known = filled(sizes, cuts, keep)
    tail = Tokens(Content((), (), torch.tensor([[500.0], [501.0]])), Provenance.none())
    tail = Tokens(tail.content, Provenance(*(torch.zeros(2, dtype=t.dtype) for t in vars(known).values())))
    every = Candidates.of((store, tail), WHOLE_CHUNKS)
    some = every.take(
        torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(every), max_size=len(every)))).nonzero().flatten()
    )
    numbers = torch.cat([keep.nonzero().flatten().float(), torch.tensor([500.0, 501.0])])
    before, units_module.BLOCK_TOKENS = units_module.BLOCK_TOKENS, block_tokens
    try:
        for candidates in (every, some):
            blocks = list(candidates.blocks(HOST))
            keys = torch.cat([torch.empty(0, 1), *(block.keys for block in blocks)])[:, 0]
            assert torch.equal(keys, numbers[candidates.tokens()])
            unit = [block.first + torch.arange(len(block.sizes)).repeat_interleave(block.sizes) for block in blocks]
            expected = torch.arange(len(candidates)).repeat_interleave(candidates.sizes)
            assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *unit]), expected)
            assert all(len(block.keys) == int(block.sizes.sum()) for block in blocks)
    finally:
        units_module.BLOCK_TOKENS = before


def test_units_are_chunks_or_tokens_and_know_their_source() -> None:
    store, _ = filled([2, 1, 3, 2], [4])
    chunks = Candidates.of((store,), WHOLE_CHUNKS)
    assert chunks.sizes.tolist() == [2, 1, 3, 2] and chunks.sources.tolist() == [0, 1, 2, 0]
    assert Candidates.of((store,), SINGLE_TOKENS).sizes.tolist() == [1] * 8
    (some,) = Candidates.of((store,), WHOLE_CHUNKS, torch.tensor([0, 2])).units
    assert some.starts.tolist() == [0, 3, 6]
    assert chunks.units[0].take(torch.tensor([3, 1])).tokens().tolist() == [6, 7, 2]


def test_units_are_computed_once_until_tokens_change() -> None:
    store, _ = filled([2, 1, 3], [])

    def units(store: LongTermMemory) -> Units:
        return Candidates.of((store,), WHOLE_CHUNKS).units[0]

    known = units(store)
    assert units(store.aged(5)) is known
    fewer = store.where(torch.tensor([True, True, False, True, True, True]))
    assert units(fewer).sizes.tolist() == [2, 3]
    assert units(store) is known


def test_a_chunk_continues_only_the_one_before_it_of_the_same_source() -> None:
    count = torch.arange(6)
    known = Provenance(
        count.flip(0),
        torch.ones(6, dtype=torch.float64),
        sources=torch.tensor([0, 0, 0, 1, 1, 0]),
        chunks=torch.tensor([4, 4, 5, 6, 8, 9]),
        words=no_words(6),
    )
    pool = Tokens(Content((), (), torch.zeros(6, 1)), known)
    later = Tokens(Content((), (), torch.zeros(1, 1)), known.take(torch.tensor([5])).aged(0))
    units = Candidates.of((pool, later), WHOLE_CHUNKS)
    assert units.goes_on is not None and units.goes_on.tolist() == [False, True, False, False, False, False]
    assert Candidates.of((pool, later), SINGLE_TOKENS).goes_on is None
