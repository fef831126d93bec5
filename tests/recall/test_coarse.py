from dataclasses import replace

import pytest
import torch

from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance
from mplus.model import MPlus
from mplus.recall import coarse as coarse_module
from mplus.recall import late_interaction as late_module
from mplus.recall.choose import recall
from mplus.recall.coarse import CoarseIndex, coarse_index
from mplus.recall.scorer import Question
from mplus.words import no_words
from tests.conftest import TINY

SIZE = 16


def keys_of(num_chunks: int, chunk: int, seed: int = 0) -> torch.Tensor:
    """Unit-length keys around common directions, as words in context are."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randn(60, SIZE, generator=torch.Generator().manual_seed(77))
    word = torch.randint(60, (num_chunks * chunk,), generator=generator)
    rows = words[word] + 0.7 * torch.randn(num_chunks * chunk, SIZE, generator=generator)
    return torch.nn.functional.normalize(rows, dim=-1)


def store_of(keys: torch.Tensor, chunk: int, segment: int) -> LongTermMemory:
    count = len(keys)
    chunks = torch.arange(count) // chunk
    known = Provenance(
        torch.arange(count).flip(0), torch.ones(count, dtype=torch.float64), chunks % 5, chunks, no_words(count)
    )
    store = LongTermMemory.empty()
    for part in torch.arange(count).split(segment):
        rows = keys[part]
        content = Content((rows[:, None],), (rows[:, None],), rows)
        store = store.append(Segment.store(content, "float32"), known.take(part))
    return store


def best_chunks(keys: torch.Tensor, chunk: int, queries: torch.Tensor) -> torch.Tensor:
    """Oracle: every chunk by the mean of its rows' best matches, best first."""
    return (keys @ queries.T).unflatten(0, (-1, chunk)).amax(1).mean(1).argsort(descending=True)


def test_the_shortlist_holds_what_is_best() -> None:
    keys = keys_of(600, 8)
    store = store_of(keys, 8, 700)
    index = coarse_index(store)
    assert len(index.members) == 4800
    assert len(index.offsets) == len(index.centroids) + 1
    found = []
    for seed in range(20):
        queries = keys_of(1, 6, seed=100 + seed)
        near = index.nearest(queries, torch.full((6,), 1 / 6), 80)
        assert len(near) <= 80
        assert bool((near[1:] > near[:-1]).all())
        best = best_chunks(keys, 8, queries)[:8]
        found.append(torch.isin(best, near).double().mean())
    assert torch.stack(found).mean() >= 0.95


def test_only_what_is_allowed_is_found() -> None:
    index = coarse_index(store_of(keys_of(300, 8), 8, 4096))
    allowed = torch.arange(5, 300, 7)
    queries = keys_of(1, 6, seed=9)
    near = index.nearest(queries, torch.ones(6) / 6, 30, allowed)
    assert len(near) == 30
    assert bool(torch.isin(near, allowed).all())
    assert len(index.nearest(queries, torch.ones(6) / 6, 30, allowed[:0])) == 0


def test_the_index_is_kept_after_small_changes_but_not_after_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse_module, "UNINDEXED_TOKENS", 100)
    store = store_of(keys_of(100, 8), 8, 256)
    index = coarse_index(store)
    few = store_of(keys_of(5, 8, seed=3), 8, 256)
    few = replace(few, provenance=replace(few.provenance, chunks=few.provenance.chunks + 100))
    longer = store.append(few.segments[0], few.provenance)
    assert coarse_index(longer) is index
    assert coarse_index(longer.aged(3).compacted(size=512)) is index
    many = store_of(keys_of(20, 8, seed=4), 8, 256)
    many = replace(many, provenance=replace(many.provenance, chunks=many.provenance.chunks + 105))
    assert coarse_index(longer.append(many.segments[0], many.provenance)) is not index
    keep = torch.ones(len(store), dtype=torch.bool)
    keep[:160] = False
    assert coarse_index(store.where(keep)) is index
    assert coarse_index(store.where(keep).purged()) is not index
    assert coarse_index(store.purged()) is index, "nothing was forgotten"
    keep[:256] = False  # a whole segment: no other one is rewritten
    assert coarse_index(store.where(keep).purged()) is not index
    keep[:400] = False
    assert coarse_index(store.where(keep)) is not index


@pytest.mark.parametrize("filtered", [False, True])
def test_recall_in_two_stages_finds_what_exact_recall_finds(
    model: MPlus, filtered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse_module, "UNINDEXED_TOKENS", 64)
    monkeypatch.setattr(late_module, "SHORTLIST", 48)
    scorer = model.weights.scorers["late"]
    layer = model.weights.recall_layer
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(300 * 8, 48, generator=generator)
    keys = scorer.keys(layer, states)
    chunks = torch.arange(2400) // 8
    known = Provenance(
        torch.arange(2400).flip(0), torch.ones(2400, dtype=torch.float64), chunks % 5, chunks, no_words(2400)
    )
    parts = []
    for span in (slice(0, 2000), slice(2000, 2048), slice(2048, 2400)):
        rows = keys[span]
        heads = torch.zeros(len(rows), 2, 8)
        parts.append(
            (Segment.store(Content((heads,) * 4, (heads,) * 4, rows), "int8"), known.take(torch.arange(2400)[span]))
        )
    long_term = LongTermMemory.empty().append(*parts[0])
    coarse_index(long_term)
    long_term = long_term.append(*parts[1])  # not in the index yet
    empty = model.new_memory().state.tracks[0]
    track = Track(empty.layers, layer, empty.short_term, LongTermMemory.empty().append(*parts[2]), long_term)
    sources = torch.tensor([1, 3]) if filtered else None
    overlaps = []
    for _ in range(12):
        normed = states[torch.randint(2400, (5,), generator=generator)] + 0.5 * torch.randn(5, 48, generator=generator)
        exact = recall(scorer, track, TINY, Question(layer, normed), sources)
        config = TINY.model_copy(update={"exact_recall_tokens": 1000 if not filtered else 500})
        quick = recall(scorer, track, config, Question(layer, normed), sources)
        overlaps.append(torch.isin(exact.index, quick.index).double().mean())
        both = exact.index[torch.isin(exact.index, quick.index)]
        at = lambda found, index: found.relevance[torch.isin(found.index, index)]
        difference = at(exact, both) - at(quick, both)
        torch.testing.assert_close(difference, difference.mean().expand_as(difference), atol=1e-5, rtol=0)
        assert abs(float(difference.mean())) < 0.05, "counted from the mean over a sample"
        if sources is not None:
            assert bool(torch.isin(quick.provenance.sources, sources).all())
    assert torch.stack(overlaps).mean() >= 0.95


def test_building_twice_gives_the_same_index() -> None:
    keys = keys_of(200, 8)
    chunks = torch.arange(1600) // 8
    one, other = (CoarseIndex.build(lambda: (keys[:700], keys[700:]), chunks) for _ in range(2))
    for a, b in zip(
        (one.centroids, one.offsets, one.members), (other.centroids, other.offsets, other.members), strict=True
    ):
        assert torch.equal(a, b)


def test_a_write_that_consolidates_indexes_what_recall_will_not_score_one_by_one(model: MPlus, text: str) -> None:
    for limit, indexed in ((64, True), (100_000, False)):
        memory = model.new_memory(config=TINY.model_copy(update={"exact_recall_tokens": limit}))
        model.write(memory, text, source="a")
        assert len(memory.state.tracks[0].long_term) > 64
        assert (CoarseIndex in memory.state.tracks[0].long_term.lasting) == indexed
