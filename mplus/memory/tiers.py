"""Where long-term content waits, and in how many bytes: device, host memory or disk; full or int8.

A ``Segment`` is an immutable block of content. Memories share segments with their forks, a save writes
only segments that no file holds yet, and a recall touches only the rows it needs.
"""

import uuid
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.config import StorageDtype
from mplus.memory.tokens import Content

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Plane:
    """One tensor of a segment, as stored: plain, or int8 with a scale per token and head."""

    data: Tensor
    scale: Tensor | None

    @classmethod
    def store(cls, tensor: Tensor, dtype: StorageDtype) -> "Plane":
        """Bring a tensor into its stored form."""
        if dtype == "int8":
            scale = (tensor.abs().amax(dim=-1, keepdim=True).float() / 127).clamp(min=1e-12)
            return cls((tensor / scale).round().clamp(-127, 127).to(torch.int8), scale)
        return cls(tensor if dtype == "auto" else tensor.to(DTYPES[dtype]), None)

    def rows(
        self, index: Int[Tensor, " T"] | slice, dtype: torch.dtype, device: torch.device
    ) -> Float[Tensor, "T ..."]:
        """Some rows, as numbers; only they are read and moved."""
        data = self.data[index].to(device, non_blocking=True)
        if self.scale is None:
            return data.to(dtype)
        return data.to(dtype) * self.scale[index].to(device=device, dtype=dtype)

    def take(self, index: Int[Tensor, " T"]) -> "Plane":
        """Some rows in their stored form, not converted again."""
        return Plane(self.data[index], None if self.scale is None else self.scale[index])

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors, wherever they are."""
        stored = (self.data,) if self.scale is None else (self.data, self.scale)
        return sum(tensor.numel() * tensor.element_size() for tensor in stored)

    def __len__(self) -> int:
        return self.data.shape[0]

    def to(self, device: torch.device) -> "Plane":
        """The same plane on a device."""
        return Plane(self.data.to(device), None if self.scale is None else self.scale.to(device))


@dataclass(frozen=True)
class Segment:
    """An immutable block of long-term content of one track."""

    keys: tuple[Plane, ...]
    values: tuple[Plane, ...]
    retrieval_keys: Plane
    """Stays in host memory whatever the tier: recall scores all of them."""
    states: tuple[Plane, ...] | None
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def store(cls, content: Content, dtype: StorageDtype, device: torch.device | None) -> "Segment":
        """Bring content into its stored form. ``device`` None leaves it where it is."""

        def planes(layers: tuple[Tensor, ...], kind: StorageDtype) -> tuple[Plane, ...]:
            made = (Plane.store(layer, kind) for layer in layers)
            return tuple(made if device is None else (plane.to(device) for plane in made))

        scored = Plane.store(content.retrieval_keys, dtype)
        return cls(
            planes(content.keys, dtype),
            planes(content.values, dtype),
            scored if device is None else scored.to(torch.device("cpu")),
            None if content.states is None else planes(content.states, "auto"),
        )

    def __len__(self) -> int:
        return len(self.retrieval_keys)

    def content(self, index: Int[Tensor, " T"], dtype: torch.dtype, devices: tuple[torch.device, ...]) -> Content:
        """Some rows as content that a pool can hold."""
        return Content(
            tuple(p.rows(index, dtype, d) for p, d in zip(self.keys, devices, strict=True)),
            tuple(p.rows(index, dtype, d) for p, d in zip(self.values, devices, strict=True)),
            self.retrieval_keys.rows(index, dtype, torch.device("cpu")),
            tuple(p.rows(index, dtype, d) for p, d in zip(self.states, devices, strict=True)) if self.states else None,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states, wherever they are kept, and of retrieval keys."""
        planes = (*self.keys, *self.values, *(self.states or ()), self.retrieval_keys)
        return sum(plane.nbytes for plane in planes)
