import pytest
import torch

from mplus.backbone.attention import Rotation
from mplus.backbone.turning import Turning, UnknownTurningError, measured, steady_positions

POSITIONS = torch.tensor([0, 1, 2, 3, 5, 11, 23, 47])
PAIRS = 4
FREQUENCIES = 100.0 ** (-torch.arange(PAIRS) / PAIRS)


def angles(form: str, scale: float = 1.0):
    turned = POSITIONS[:, None].float() * FREQUENCIES
    cos, sin = turned.cos() * scale, turned.sin() * scale
    if form == "complex":
        return torch.complex(cos, sin)[None]
    if form == "halves":
        cos, sin = (torch.cat([part, part], dim=-1) for part in (cos, sin))
    if form == "neighbours":
        cos, sin = (part.repeat_interleave(2, dim=-1) for part in (cos, sin))
    return cos[None], sin[None]


@pytest.mark.parametrize("form", ["halves", "neighbours", "single", "complex"])
@pytest.mark.parametrize("pairing", ["halves", "neighbours"])
@pytest.mark.parametrize(("size", "start"), [(8, 0), (12, 0), (12, 4)])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_how_keys_turn_is_found_and_undone(form: str, pairing: str, size: int, start: int, scale: float) -> None:
    number = torch.arange(PAIRS)
    ones = (number, number + PAIRS) if pairing == "halves" else (2 * number, 2 * number + 1)
    truth = Turning(start + ones[0], start + ones[1], form)
    given = angles(form, scale)
    rotation = truth.rotation(given)
    raw = torch.randn(5, 1, 3, size, generator=torch.Generator().manual_seed(0))
    heads = truth.turned(raw.expand(-1, len(POSITIONS), -1, -1), rotation)
    found = measured(heads, given)
    assert found is not None
    back = found.turned_back(heads, found.rotation(given))
    torch.testing.assert_close(back, raw.expand_as(back), atol=1e-4, rtol=1e-4)


def test_weights_after_turning_are_found() -> None:
    number = torch.arange(PAIRS)
    truth = Turning(number, number + PAIRS, "halves")
    given = angles("halves")
    raw = torch.randn(5, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(8, generator=torch.Generator().manual_seed(1)) + 0.5
    heads = truth.turned(raw.expand(-1, len(POSITIONS), -1, -1), truth.rotation(given)) * weights
    found = measured(heads, given)
    assert found is not None
    rotation = found.rotation(given)
    back = found.turned_back(heads, rotation)
    torch.testing.assert_close(back, back[:, :1].expand_as(back), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.turned(back, rotation), heads, atol=1e-4, rtol=1e-4)


def test_keys_without_positions_do_not_turn() -> None:
    heads = torch.randn(5, 1, 3, 8).expand(-1, len(POSITIONS), -1, -1)
    assert measured(heads, angles("halves")) is None
    assert measured(heads, None) is None


def test_keys_that_change_otherwise_are_refused_with_what_is_left() -> None:
    with pytest.raises(UnknownTurningError, match="is left"):
        measured(torch.randn(5, len(POSITIONS), 3, 8), angles("halves"))


def test_frequencies_that_change_with_length_end_the_window() -> None:
    def switching(positions: torch.Tensor) -> torch.Tensor:
        factor = 1.0 if int(positions.max()) < 40 else 0.5
        return (positions[:, None] * FREQUENCIES * factor).cos()

    assert steady_positions(switching, 512) == 40
    assert steady_positions(lambda positions: (positions[:, None] * FREQUENCIES).cos(), 512) is None


def test_a_turning_to_no_positions_has_no_rows() -> None:
    truth = Turning(torch.arange(2), torch.arange(2) + 2, "single")
    none = truth.rotation((torch.empty(1, 0, 2), torch.empty(1, 0, 2)))
    assert isinstance(none, Rotation)
    assert truth.turned(torch.empty(0, 3, 4), none).shape == (0, 3, 4)
