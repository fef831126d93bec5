"""Adapters: what they change, and the mean of several."""

import pytest
import torch
from torch import nn

from mplus.backbone.adapters import LoraLinear, LoraWeights, mean_of, merged, rank_of, widened


def weights(seed: int, rank: int, scale: float) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights(torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator), scale)


def test_the_mean_changes_what_all_change_on_average() -> None:
    base = nn.Linear(6, 5, bias=False)
    several = [weights(0, 2, 2.0), weights(1, 3, 0.5), weights(2, 1, 1.0)]
    mean = mean_of([{"0.linear": one} for one in several])["0.linear"]
    inputs = torch.randn(4, 6)
    expected = torch.stack([LoraLinear(base, one)(inputs) for one in several]).mean(dim=0)
    torch.testing.assert_close(LoraLinear(base, mean)(inputs), expected)
    torch.testing.assert_close(merged(base, mean)(inputs), expected)
    assert mean.down.shape == (6, 6) and mean.up.shape == (5, 6)
    shared = mean_of([{"0.linear": one} for one in several[:2]], [0.75, 0.25])["0.linear"]
    expected = 0.75 * LoraLinear(base, several[0])(inputs) + 0.25 * LoraLinear(base, several[1])(inputs)
    torch.testing.assert_close(LoraLinear(base, shared)(inputs), expected)


def test_a_mean_is_of_adapters_of_one_backbone() -> None:
    one = {"0.linear": weights(0, 2, 1.0)}
    for wrong in ([], [one, {"1.linear": weights(0, 2, 1.0)}]):
        with pytest.raises(ValueError, match="adapters of one backbone"):
            mean_of(wrong)
    with pytest.raises(ValueError, match="1 shares for 2 adapters"):
        mean_of([one, one], [1.0])


def test_a_widened_adapter_changes_the_same_and_has_room() -> None:
    adapter = {"0.a": LoraWeights(torch.randn(2, 5), torch.randn(3, 2), 0.7), "0.b": adapter_of_rank(6)}
    wide = widened(adapter, 4, torch.Generator().manual_seed(0))
    assert [rank_of({name: weights}) for name, weights in wide.items()] == [4, 6]
    for name, weights in adapter.items():
        assert torch.allclose(wide[name].up @ wide[name].down, weights.up @ weights.down)
        assert wide[name].scale == weights.scale
    assert wide["0.a"].down[2:].abs().min() > 0  # else nothing could be learnt there


def adapter_of_rank(rank: int) -> LoraWeights:
    return LoraWeights(torch.randn(rank, 5), torch.randn(3, rank), 0.7)
