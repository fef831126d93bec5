"""``MemoryLayer``: a layer of an unknown model whose attention keeps keys and values, and how these turn."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from mplus.backbone.attention import KeysValues, Rotation
from mplus.backbone.backbone import HeadShapes
from mplus.backbone.survey import Call
from mplus.backbone.turning import Turning


@dataclass(frozen=True)
class MemoryLayer:
    """One layer whose attention keeps keys and values.

    Attributes:
        number: Its number in the model.
        attention: Its attention.
        call: How the model called it, for calls of our own.
        key_turning: How its keys turn with position; None: not at all.
        value_turning: The same of its values, which latent attention turns.
        heads: Numbers and sizes of the heads that it keeps.
        query_size: Size of a head of its queries.
    """

    number: int
    attention: nn.Module
    call: Call
    key_turning: Turning | None
    value_turning: Turning | None
    heads: HeadShapes
    query_size: int

    def rotation(self, turning: Turning | None, positions: Int[Tensor, "*positions"]) -> Rotation | None:
        """Cosines and sines of some positions, [*positions, pairs]."""
        if turning is None:
            return None
        if not positions.numel():  # embeddings that depend on the highest position have none
            none = torch.empty(*positions.shape, len(turning.first), device=positions.device)
            return Rotation(none, none)
        rotation = turning.rotation(self.call.angles(positions.flatten()))
        shape = (*positions.shape, rotation.cos.shape[-1])
        return Rotation(rotation.cos.reshape(shape), rotation.sin.reshape(shape)).on(positions.device)

    def rotation_parts(self, positions: Int[Tensor, " P"]) -> Tensor:
        """Cosines and sines of some positions, as numbers to compare."""
        rotation = self.rotation(self.key_turning or self.value_turning, positions)
        assert rotation is not None
        return torch.cat([rotation.cos, rotation.sin], dim=-1)

    def rotations(self, positions: Int[Tensor, "*positions"]) -> "Rotations":
        """Rotations of keys and of values at some positions."""
        return Rotations(self, self.rotation(self.key_turning, positions), self.rotation(self.value_turning, positions))


@dataclass(frozen=True)
class Rotations:
    """Turns keys and values of a memory layer to some positions, and back."""

    layer: MemoryLayer
    keys: Rotation | None
    values: Rotation | None

    def at(self, where: slice) -> "Rotations":
        """The same for some of the positions."""
        return Rotations(self.layer, *(part and part.at(where) for part in (self.keys, self.values)))

    def turned(self, given: KeysValues) -> KeysValues:
        """Keys and values, [*positions, heads, size], at these positions."""
        return self._each(given, back=False)

    def turned_back(self, given: KeysValues) -> KeysValues:
        """Undo ``turned``."""
        return self._each(given, back=True)

    def _each(self, given: KeysValues, *, back: bool) -> KeysValues:
        found: list[Tensor] = []
        for heads, turning, rotation in (
            (given.keys, self.layer.key_turning, self.keys),
            (given.values, self.layer.value_turning, self.values),
        ):
            if turning is None or rotation is None:
                found.append(heads)
            else:
                found.append(turning.turned_back(heads, rotation) if back else turning.turned(heads, rotation))
        return KeysValues(*found)
