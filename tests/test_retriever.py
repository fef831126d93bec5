import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.retriever import AttentionScorer, LateInteraction, PublishedRetriever, choose_units
from mplus.testing import tiny_backbone


def split(keys: torch.Tensor, units: torch.Tensor, at: int):
    return [keys[:at], keys[at:]], [units[:at], units[at:]]


def test_late_interaction_is_maxsim_less_the_mean_over_units() -> None:
    torch.manual_seed(0)
    keys, queries = (torch.nn.functional.normalize(torch.randn(n, 6), dim=-1) for n in (11, 3))
    units = torch.tensor([0, 0, 0, 2, 2, -1, 1, 1, 1, 1, 3])
    scorer = LateInteraction(torch.zeros(1, 6), torch.ones(1, 6))
    for at in (0, 4, 11):
        got = scorer.relevance(queries, *split(keys, units, at), 4)
        best = torch.tensor(
            [
                [max(float(q @ k) for k, u in zip(keys, units, strict=True) if u == unit) for q in queries]
                for unit in range(4)
            ]
        )
        torch.testing.assert_close(got, (best - best.mean(0)).mean(1))


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
    got = scorer.relevance(queries, *split(keys, torch.arange(9), 4), 9)
    torch.testing.assert_close(got, expected)
    units = torch.tensor([0, 0, 1, 1, 1, -1, 2, 2, 2])
    got = scorer.relevance(queries, *split(keys, units, 3), 3)
    torch.testing.assert_close(got, torch.stack([expected[:2].mean(), expected[2:5].mean(), expected[6:].mean()]))


def test_attention_relevance_is_attention_mass_over_living_tokens() -> None:
    torch.manual_seed(0)
    model = tiny_backbone()
    scorer = AttentionScorer([layer.self_attn for layer in model.model.layers], 2, 8)
    rows, text = torch.randn(7, 48), torch.randn(3, 48)
    with torch.no_grad():
        keys, queries = scorer.keys(2, rows), scorer.queries(2, text)
        units = torch.tensor([0, 1, 2, -1, 3, 4, 5])
        got = scorer.relevance(queries, *split(keys, units, 3), 6)
        attention = model.model.layers[2].self_attn
        k = attention.k_proj(rows).view(7, 2, 8).repeat_interleave(3, 1)[units >= 0]
        q = attention.q_proj(text).view(3, 6, 8)
        weights = (torch.einsum("qhe,khe->hqk", q, k) / 8**0.5).softmax(-1).mean((0, 1))
    torch.testing.assert_close(got, weights)
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
