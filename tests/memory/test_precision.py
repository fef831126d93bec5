import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mplus.memory.precision import Plane, spread
from mplus.memory.transfer import HOST


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 8))
def test_int8_is_within_half_a_step_of_each_row(rows: int, heads: int, size: int) -> None:
    tensor = torch.randn(rows, heads, size) * torch.logspace(-3, 3, rows)[:, None, None]
    plane = Plane.store(tensor, "int8")
    back = plane.rows(torch.arange(rows), torch.float32, HOST)
    step = tensor.abs().amax(-1, keepdim=True) / 127
    assert bool(((back - tensor).abs() <= step * 0.505 + 1e-9).all())
    assert plane.data.dtype == torch.int8


@given(st.integers(1, 20), st.integers(1, 4), st.sampled_from([2, 8, 20, 64]))
def test_int4_is_within_half_a_step_of_each_rotated_row(rows: int, heads: int, size: int) -> None:
    tensor = torch.randn(rows, heads, size) * torch.logspace(-3, 3, rows)[:, None, None]
    plane = Plane.store(tensor, "int4")
    assert plane.data.dtype == torch.uint8
    assert plane.data.numel() == tensor.numel() // 2
    turned = tensor @ spread(size)
    back = plane.rows(slice(0, rows), torch.float32, HOST) @ spread(size)
    step = turned.abs().amax(-1, keepdim=True) / 7
    assert bool(((back - turned).abs() <= step * 0.505 + 1e-9).all())
    picked = torch.tensor([rows - 1, 0])
    assert torch.equal(
        plane.take(picked).rows(slice(None), torch.float32, HOST), plane.rows(picked, torch.float32, HOST)
    )


@pytest.mark.parametrize("size", [2, 8, 64, 80, 128])
def test_spreading_is_a_rotation_that_evens_out_a_large_dimension(size: int) -> None:
    matrix = spread(size).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-6, rtol=0)
    spike = torch.zeros(size, dtype=torch.float64)
    spike[size // 3] = 1.0
    assert float((spike @ matrix).abs().max()) <= (2 / size) ** 0.5 + 1e-6
