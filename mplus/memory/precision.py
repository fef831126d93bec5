"""The precision of stored content: plain, or in 8 or 4 bits with a scale per token and head."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.config import StorageDtype
from mplus.memory import stacks
from mplus.memory.transfer import in_pinned_memory, moved


@dataclass(frozen=True)
class Plane:
    """One tensor of a segment, as stored: plain, or in 8 or 4 bits with a scale per token and head.

    Four-bit numbers are stored two to a byte (uint8), of heads transformed by ``spread``.
    """

    data: Tensor
    scale: Tensor | None

    @classmethod
    def store(cls, tensor: Tensor, dtype: StorageDtype) -> "Plane":
        """Bring a tensor into its stored form."""
        if dtype == "int8":
            scale = _scale(tensor, 127)
            return cls((tensor / scale.float()).round_().to(torch.int8), scale)
        if dtype == "int4":
            turned = tensor.float() @ spread(tensor.shape[-1]).to(tensor.device)
            scale = _scale(turned, 7)
            low, high = ((turned / scale.float()).round_() + 8).to(torch.uint8).chunk(2, dim=-1)
            return cls(low | high << 4, scale)
        return cls(tensor if dtype == "auto" else tensor.to(getattr(torch, dtype)), None)

    def prefetch(self, index: Int[Tensor, " T"] | slice) -> None:
        """Start fetching the rows at ``index`` in the background; does nothing for rows in memory."""

    def rows(
        self, index: Int[Tensor, " T"] | slice, dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "T ..."]:
        """The rows at ``index`` as numbers of ``dtype``; other rows are neither read nor moved."""
        stored = self.take(index)
        data = moved(stored.data, device)
        if stored.scale is None:
            return data.to(dtype)
        scale = moved(stored.scale, device).to(dtype)
        if data.dtype != torch.uint8:
            return data.to(dtype) * scale
        turned = torch.cat([data & 15, data >> 4], dim=-1).to(dtype).sub_(8).mul_(scale)
        return turned @ spread(turned.shape[-1]).T.to(turned)

    @staticmethod
    def cat(parts: "Sequence[Plane]", dtype: torch.dtype, device: torch.device) -> Float[Tensor, "T ..."]:
        """The rows of all parts, in order, as numbers of ``dtype``; one conversion if all are stored alike."""
        if len({(part.data.dtype, part.data.device) for part in parts}) > 1:
            return torch.cat([part.rows(slice(None), dtype, device) for part in parts])
        data = torch.cat([part.data for part in parts]) if len(parts) > 1 else parts[0].data
        scales = [part.scale for part in parts if part.scale is not None]
        scale = torch.cat(scales) if len(scales) > 1 else next(iter(scales), None)
        return Plane(data, scale).rows(slice(None), dtype, device)

    def take(self, index: Int[Tensor, " T"] | slice) -> "Plane":
        """The rows at ``index`` in their stored form, without another conversion."""
        return Plane(self.data[index], None if self.scale is None else self.scale[index])

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which it is stored."""
        return self.data.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors, wherever they are."""
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def __len__(self) -> int:
        return self.data.shape[0]

    def to(self, device: torch.device) -> "Plane":
        """The same plane on a device."""
        return Plane(self.data.to(device), None if self.scale is None else self.scale.to(device))

    def in_host_memory(self) -> "Plane":
        """The same plane in host memory, pinned if a GPU will read its rows."""
        data, scale = self.data, self.scale
        return Plane(in_pinned_memory(data), None if scale is None else in_pinned_memory(scale))


def side_by_side(planes: Sequence[Plane], *, in_host_memory: bool = True) -> tuple[Plane, ...]:
    """The same planes, side by side where they are alike, so that rows of all of them are gathered at once.

    Args:
        planes: Planes in memory.
        in_host_memory: Bring them into host memory, pinned if a GPU will read their rows; else leave them in place.
    """
    place = in_pinned_memory if in_host_memory else lambda stack: stack
    data = stacks.side_by_side([plane.data for plane in planes], place)
    scales = stacks.side_by_side([plane.scale for plane in planes if plane.scale is not None], place)
    return tuple(map(Plane, data, scales or [None] * len(data)))


def _scale(tensor: Float[Tensor, "*rows E"], steps: int) -> Float[Tensor, "*rows 1"]:
    """A scale per row in bfloat16, to save half the bytes; rounded up, so that no number is clipped."""
    exact = tensor.abs().amax(dim=-1, keepdim=True).float() / steps
    return (exact * (1 + 2**-8)).clamp(min=1e-12).to(torch.bfloat16)


@cache
@torch.inference_mode(False)
def spread(size: int) -> Float[Tensor, "E E"]:
    """The orthonormal cosine transform of a head.

    A few dimensions of attention keys are far larger than the rest. With one scale and sixteen steps, the small
    dimensions would all round to zero. The transform spreads large values over all dimensions.
    """
    at = torch.arange(size, dtype=torch.float64)
    wave = torch.cos(torch.pi / size * (at[:, None] + 0.5) * at[None, :]) * (2 / size) ** 0.5
    wave[:, 0] *= 0.5**0.5
    return wave.float()
