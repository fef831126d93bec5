"""The tiers of long-term content: device, host memory or disk.

A ``Segment`` is an immutable block of content. Memories share segments with their forks, a save writes
only segments that no file holds yet, and a recall touches only the rows it needs. ``precision.py`` says in which
form its tensors are stored.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.config import StorageDtype
from mplus.memory.precision import Plane, side_by_side
from mplus.memory.stacks import paired
from mplus.memory.tokens import Content
from mplus.memory.transfer import HOST

SegmentTier = Literal["device", "host", "disk"]


@dataclass(frozen=True)
class Segment:
    """An immutable block of long-term content of one track."""

    keys: tuple[Plane, ...]
    values: tuple[Plane, ...]
    retrieval_keys: Plane
    """On the layer's device in the device tier, else in host memory, since recall scores all of them."""
    states: tuple[Plane, ...] | None
    tier: SegmentTier = "host"
    input_ids: Plane | None = None
    """Token ids, if keys and values are made from them when a read needs them."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def store(cls, content: Content, dtype: StorageDtype, tier: SegmentTier = "host") -> "Segment":
        """Bring content into its stored form, in host memory or, on the device tier, where its layers are."""
        # A model on the CPU has its layers in host memory, so there is no other device.
        beside = tier == "device" and bool(content.keys) and content.keys[0].device.type != "cpu"

        def planes(layers: Sequence[Tensor], kind: StorageDtype) -> tuple[Plane, ...]:
            return side_by_side([Plane.store(layer, kind) for layer in layers], in_host_memory=not beside)

        # Retrieval keys decide recall and are of one layer only (chunk layout), so int4 is too coarse for them.
        scored = Plane.store(content.retrieval_keys, "int8" if dtype == "int4" else dtype)
        made = planes(paired(content.keys, content.values), dtype)
        return cls(
            made[::2],
            made[1::2],
            scored.to(made[0].data.device) if beside else scored.in_host_memory(),
            None if content.states is None else planes(content.states, "auto"),
            "device" if beside else "host",
            None if content.input_ids is None else Plane(content.input_ids, None),
        )

    @classmethod
    def of_latents(
        cls, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], dtype: StorageDtype, tier: SegmentTier
    ) -> "Segment":
        """Keys and values alone, in their stored form: what a read fetches."""
        nothing = torch.empty(len(keys[0]), 0)
        made = cls.store(Content(keys, values, nothing), "auto", tier)
        return made if dtype == "auto" else made.converted(dtype)

    def converted(self, dtype: StorageDtype) -> "Segment":
        """Keys and values, kept in the model's own dtype, in another one."""
        stored = [Plane.store(plane.data, dtype) for pair in zip(self.keys, self.values, strict=True) for plane in pair]
        made = side_by_side(stored, in_host_memory=self.tier != "device")
        return replace(self, keys=made[::2], values=made[1::2])

    def in_host_memory(self) -> "Segment":
        """The same segment in host memory."""
        if self.tier == "host":
            return self

        made = side_by_side([plane for pair in zip(self.keys, self.values, strict=True) for plane in pair])
        return replace(
            self,
            keys=made[::2],
            values=made[1::2],
            retrieval_keys=self.retrieval_keys.in_host_memory(),
            states=None if self.states is None else side_by_side(self.states),
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
            None if self.input_ids is None else self.input_ids.take(index).data,
        )

    @property
    def is_cold(self) -> bool:
        """Whether keys and values have to be made before a read."""
        return not self.keys

    @property
    def planes(self) -> tuple[Plane, ...]:
        """All planes of the segment."""
        ids = () if self.input_ids is None else (self.input_ids,)
        return (*self.keys, *self.values, *(self.states or ()), self.retrieval_keys, *ids)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and states, wherever they are kept, and of retrieval keys."""
        return sum(plane.nbytes for plane in self.planes)
