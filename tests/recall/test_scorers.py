from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.backbone.llama_layers import LlamaLayers
from mplus.config import MemoryConfig
from mplus.layouts.layout import choose_units
from mplus.model import MPlus
from mplus.recall.attention_scorer import AttentionScorer
from mplus.recall.choose import rank_sources, recall
from mplus.recall.late_interaction import LateInteraction
from mplus.recall.published_retriever import PublishedRetriever
from mplus.recall.scorer import Scorer
from mplus.recall.units import KeyBlock
from mplus.testing import tiny_backbone, tiny_model
from tests.conftest import TINY


def blocks(keys: torch.Tensor, sizes: list[int], cuts: list[int]) -> list[KeyBlock]:
    """Keys of consecutive units, cut anywhere: a unit may go on in the next block."""
    unit = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    edges = sorted({0, *(cut % len(keys) for cut in cuts), len(keys)})
    return [
        KeyBlock(keys[low:high], unit[low:high].unique(return_counts=True)[1], int(unit[low]))
        for low, high in pairwise(edges)
    ]


SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=8)
CUTS = st.lists(st.integers(0, 40), max_size=4)


@given(SIZES, CUTS)
def test_late_interaction_is_maxsim_less_the_mean_over_units(sizes, cuts) -> None:
    torch.manual_seed(0)
    keys, queries = (torch.nn.functional.normalize(torch.randn(n, 6), dim=-1) for n in (sum(sizes), 3))
    scorer = LateInteraction(torch.zeros(1, 6), torch.ones(1, 6))
    got = scorer.relevance(queries, blocks(keys, sizes, cuts), len(sizes))
    best = torch.tensor([[max(float(q @ k) for k in unit) for q in queries] for unit in keys.split(sizes)])
    torch.testing.assert_close(got, (best - best.mean(0)).mean(1))


@given(st.data(), CUTS)
def test_a_unit_counts_half_for_itself_and_half_with_its_neighbours(data, cuts) -> None:
    sizes = data.draw(SIZES)
    goes_on = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    goes_on[0] = False
    torch.manual_seed(0)
    keys, queries = (torch.nn.functional.normalize(torch.randn(n, 6), dim=-1) for n in (sum(sizes), 3))
    scorer = LateInteraction(torch.zeros(1, 6), torch.ones(1, 6))
    got = scorer.relevance(queries, blocks(keys, sizes, cuts), len(sizes), goes_on=torch.tensor(goes_on))
    best = torch.tensor([[max(float(q @ k) for k in unit) for q in queries] for unit in keys.split(sizes)])
    expected = []
    for unit in range(len(sizes)):
        near = [unit]
        if goes_on[unit]:
            near.append(unit - 1)
        if unit + 1 < len(sizes) and goes_on[unit + 1]:
            near.append(unit + 1)
        expected.append((best[unit] + best[near].amax(0)) / 2)
    match = torch.stack(expected).mean(1)
    torch.testing.assert_close(got, match - match.mean())


def test_late_interaction_centres_standardises_and_projects() -> None:
    torch.manual_seed(0)
    mean, deviation, query, key = torch.randn(2, 6), torch.rand(2, 6) + 0.5, torch.randn(4, 6), torch.randn(4, 6)
    scorer = LateInteraction(mean, deviation, query_projection=query, key_projection=key)
    rows = torch.randn(5, 6)
    expected = ((rows - mean[1]) / deviation[1]) @ key.T
    torch.testing.assert_close(scorer.keys(1, rows), expected / expected.norm(dim=-1, keepdim=True))
    expected = ((rows - mean[1]) / deviation[1]) @ query.T
    torch.testing.assert_close(scorer.queries(1, rows), expected / expected.norm(dim=-1, keepdim=True))


def test_published_relevance_is_the_mean_sigmoid() -> None:
    torch.manual_seed(0)
    make = lambda: torch.nn.ModuleList([PublishedRetriever.projection(6, 4) for _ in range(2)])
    scorer = PublishedRetriever(make(), make()).requires_grad_(False)
    rows, text = torch.randn(9, 6), torch.randn(3, 6)
    keys, queries = scorer.keys(1, rows), scorer.queries(1, text)
    expected = (queries @ keys.T).sigmoid().mean(0)
    for cuts in ([], [4], [1, 6]):
        got = scorer.relevance(queries, blocks(keys, [1] * 9, cuts), 9)
        torch.testing.assert_close(got, expected)
        got = scorer.relevance(queries, blocks(keys, [2, 4, 3], cuts), 3)
        torch.testing.assert_close(got, torch.stack([part.mean() for part in expected.split([2, 4, 3])]))


def test_attention_relevance_is_attention_mass() -> None:
    torch.manual_seed(0)
    model = tiny_backbone()
    scorer = AttentionScorer(LlamaLayers.wrap(model).projections(), 2, 8)
    rows, text = torch.randn(7, 48), torch.randn(3, 48)
    with torch.no_grad():
        keys, queries = scorer.keys(2, rows), scorer.queries(2, text)
        attention = model.model.layers[2].self_attn
        k = attention.k_proj(rows).view(7, 2, 8).repeat_interleave(3, 1)
        q = attention.q_proj(text).view(3, 6, 8)
        mass = (torch.einsum("qhe,khe->hqk", q, k) / 8**0.5).softmax(-1).mean(0)
        for cuts in ([], [3], [2, 5]):
            got = scorer.relevance(queries, blocks(keys, [1] * 7, cuts), 7)
            torch.testing.assert_close(got, mass.mean(0))
            got = scorer.relevance(queries, blocks(keys, [3, 4], cuts), 2)
            torch.testing.assert_close(got, torch.stack([mass.mean(0)[:3].sum(), mass.mean(0)[3:].sum()]))
    assert abs(float(got.sum()) - 1) < 1e-5


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=12), st.integers(0, 40))
def test_choosing_fills_the_budget_best_first(units: list[tuple[int, int]], budget: int) -> None:
    relevance = torch.tensor([float(r) for r, _ in units])
    sizes = torch.tensor([s for _, s in units])
    chosen = choose_units(relevance, sizes, budget).tolist()
    order = sorted(range(len(units)), key=lambda n: (-units[n][0], n))
    expected, used = [], 0
    for n in order:
        used += units[n][1]
        if used > budget:
            break
        expected.append(n)
    assert chosen == expected


class Newest(Scorer):
    """The least that a scorer has to say: here, that later units are more relevant."""

    def keys(self, layer: int, normed: torch.Tensor) -> torch.Tensor:
        return normed[:, :1]

    def queries(self, layer: int, normed: torch.Tensor) -> torch.Tensor:
        return normed[:, :1]

    def relevance(
        self, queries: torch.Tensor, blocks: Iterable[KeyBlock], num_units: int, goes_on: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.arange(float(num_units))


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_three_methods_make_a_scorer(layout: str) -> None:
    config = MemoryConfig(**(TINY.model_dump() | {"layout": layout, "best_sentence_times": 2, "lexical_weight": 4.0}))
    given = tiny_model(memory=config)
    scorer = Newest()
    model = MPlus(replace(given.weights, scorers={"late": scorer}), given.tokenizer, config)
    memory = model.new_memory()
    for n in range(12):
        model.write(memory, f"Box {n} stands in the hall, beside the door to the cellar.", source=f"{n}")
    track = memory.state.tracks[0]
    question = model.weights.question([1, 2, 3], track.recall_layer)
    chosen = recall(scorer, track, config, question)
    assert 0 < len(chosen.index) <= config.recalled_tokens
    assert int(chosen.provenance.ages.max()) < int(track.long_term.provenance.ages.max()), (
        "the newest of what is stored"
    )
    ranked = rank_sources(scorer, memory.state, config, question, None)
    assert ranked[0][0] == len(memory.state.sources) - 1
    assert model.generate(memory, "Which box?", max_new_tokens=2).recalled
