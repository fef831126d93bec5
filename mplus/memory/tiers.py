"""Storage of long-term content: the tier (device, host memory or disk) and the dtype (full, int8 or int4).

A ``Segment`` is an immutable block of content. Memories share segments with their forks, a save writes
only segments that no file holds yet, and a recall touches only the rows it needs.
"""

import uuid
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.config import StorageDtype
from mplus.memory.tokens import Content

HOST = torch.device("cpu")
SegmentTier = Literal["device", "host", "disk"]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, copied through pinned memory if the copy can then run beside computation."""
    if device.type != "cuda":
        return tensor.to(device)  # Not asynchronous: readers in host memory do not wait for a CUDA stream.
    if tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@cache
def side_stream(device: torch.device) -> "torch.cuda.Stream":
    """The stream on which content is copied to a GPU while it computes.

    All reads share one stream, since every stream keeps device memory of its own for the tensors copied on it.
    """
    return torch.cuda.Stream(device)


def in_pinned_memory(tensor: Tensor) -> Tensor:
    """A tensor in host memory, pinned if a GPU is in use that will read it."""
    # Do not start CUDA for a model that runs on the CPU of a machine with a GPU.
    if not torch.cuda.is_initialized():
        return tensor.to(HOST)
    if tensor.device.type == "cpu":
        return tensor if tensor.is_pinned() else tensor.pin_memory()
    return torch.empty_like(tensor, device=HOST, pin_memory=True).copy_(tensor)


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


@dataclass(frozen=True)
class Segment:
    """An immutable block of long-term content of one track."""

    keys: tuple[Plane, ...]
    values: tuple[Plane, ...]
    retrieval_keys: Plane
    """On the layer's device in the device tier, else in host memory, since recall scores all of them."""
    states: tuple[Plane, ...] | None
    tier: SegmentTier = "host"
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def store(cls, content: Content, dtype: StorageDtype, tier: SegmentTier = "host") -> "Segment":
        """Bring content into its stored form, in host memory or, on the device tier, where its layers are."""
        # A model on the CPU has its layers in host memory, so there is no other device.
        beside = tier == "device" and content.keys[0].device.type != "cpu"

        def planes(layers: tuple[Tensor, ...], kind: StorageDtype) -> tuple[Plane, ...]:
            made = (Plane.store(layer, kind) for layer in layers)
            return tuple(made if beside else (plane.in_host_memory() for plane in made))

        # Retrieval keys decide recall and are of one layer only (chunk layout), so int4 is too coarse for them.
        scored = Plane.store(content.retrieval_keys, "int8" if dtype == "int4" else dtype)
        keys = planes(content.keys, dtype)
        return cls(
            keys,
            planes(content.values, dtype),
            scored.to(keys[0].data.device) if beside else scored.in_host_memory(),
            None if content.states is None else planes(content.states, "auto"),
            "device" if beside else "host",
        )

    def in_host_memory(self) -> "Segment":
        """The same segment in host memory."""
        if self.tier == "host":
            return self

        def planes(layers: tuple[Plane, ...]) -> tuple[Plane, ...]:
            return tuple(plane.in_host_memory() for plane in layers)

        return replace(
            self,
            keys=planes(self.keys),
            values=planes(self.values),
            retrieval_keys=self.retrieval_keys.in_host_memory(),
            states=None if self.states is None else planes(self.states),
            tier="host",
        )

    def __len__(self) -> int:
        return len(self.retrieval_keys)

    def content(self, index: Int[Tensor, " T"], dtype: torch.dtype, devices: tuple[torch.device, ...]) -> Content:
        """The rows at ``index`` as content of a pool."""
        return Content(
            tuple(p.rows(index, dtype, d) for p, d in zip(self.keys, devices, strict=True)),
            tuple(p.rows(index, dtype, d) for p, d in zip(self.values, devices, strict=True)),
            self.retrieval_keys.rows(index, dtype, HOST),
            tuple(p.rows(index, dtype, d) for p, d in zip(self.states, devices, strict=True)) if self.states else None,
        )

    @property
    def planes(self) -> tuple[Plane, ...]:
        """All planes of the segment."""
        return (*self.keys, *self.values, *(self.states or ()), self.retrieval_keys)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states, wherever they are kept, and of retrieval keys."""
        return sum(plane.nbytes for plane in self.planes)
