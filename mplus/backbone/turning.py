"""Turning: how a layer turns its keys by position, found by measurement and undone.

Rotary embeddings differ in which numbers of a head form pairs (halves or neighbours), in whether all numbers turn, in
their frequencies and in a scale; latent attention turns what it keeps beside its latents. Instead of a list of models,
one row is given to the layer at several positions, and what comes out is compared with each way to turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.backbone.attention import Rotation

TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Turning:
    """Pairs of numbers in a head that turn together, and the form in which their cosines come.

    Attributes:
        first: The first number of each pair.
        second: The second.
        form: "halves", "neighbours", "single" or "complex": where the rotary module's result has a pair's cosine.
        ratios: For each pair, the weight of its first number over that of its second, where a layer weighs after
            turning; None: no weights.
    """

    first: Int[Tensor, " N"]
    second: Int[Tensor, " N"]
    form: str
    ratios: Float[Tensor, " N"] | None = None

    def rotation(self, angles: Any) -> Rotation:
        """Cosines and sines of every pair, [P, N] in float32, of what a rotary module returned."""
        if self.form == "complex":
            return Rotation(angles.real.float().flatten(0, -2), angles.imag.float().flatten(0, -2))
        cos, sin = (part.float().flatten(0, -2) for part in angles)
        size = cos.shape[-1]
        where = {"halves": slice(0, size // 2), "neighbours": slice(0, size, 2), "single": slice(0, size)}[self.form]
        return Rotation(cos[..., where], sin[..., where])

    def turned(self, heads: Float[Tensor, "*rows H _"], rotation: Rotation) -> Float[Tensor, "*rows H _"]:
        """Heads turned to the positions of ``rotation``, [rows, heads, size]."""
        return self._mixed(heads, rotation.cos, rotation.sin)

    def turned_back(self, heads: Float[Tensor, "*rows H _"], rotation: Rotation) -> Float[Tensor, "*rows H _"]:
        """Undo ``turned``."""
        length = rotation.cos.square() + rotation.sin.square()
        return self._mixed(heads, rotation.cos / length, -rotation.sin / length)

    def _mixed(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        one, two = self.first.to(heads.device), self.second.to(heads.device)
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        a, b = heads[..., one].float(), heads[..., two].float()
        ratio = 1.0 if self.ratios is None else self.ratios.to(heads.device)
        result = heads.clone()
        result[..., one] = (a * cos - b * sin * ratio).to(heads.dtype)
        result[..., two] = (b * cos + a * sin / ratio).to(heads.dtype)
        return result


class UnknownTurningError(Exception):
    """No known way to turn explains what a layer does; the message has the difference that is left."""


def measured(heads: Float[Tensor, "rows P H _"], angles: Any) -> Turning | None:
    """How a layer turns: the way that explains what it made of the same rows at several positions.

    Args:
        heads: For each row, its heads at every position; the first position is 0.
        angles: What the rotary module returned for these positions; None if the layer was given nothing.

    Returns:
        The turning; None if position changes nothing.

    Raises:
        UnknownTurningError: None of the known ways explains it.
    """
    heads = heads.detach()
    tolerance, scale = TOLERANCE.get(heads.dtype, 5e-2), heads.float().norm().clamp_min(1e-12)

    def error(made: Tensor) -> float:
        return float((made.float() - heads.float()).norm() / scale)

    still = error(heads[:, :1].expand_as(heads))
    if still < min(tolerance, 1e-4):
        return None
    best, least = None, still
    for turning in _candidates(heads.shape[-1], angles):
        rotation = turning.rotation(angles)
        if rotation.cos.shape[0] != heads.shape[1]:
            continue
        for found in (turning, _weighed(turning, heads, rotation)):
            plain = found.turned_back(heads[:, :1], Rotation(rotation.cos[:1], rotation.sin[:1]))
            left = error(found.turned(plain.expand_as(heads), rotation))
            if left < least:
                best, least = found, left
            if left < tolerance:
                return found
    raise UnknownTurningError(
        f"keys at positions 0 to some hundred differ by {still:.2g} of their size, and no known rotary embedding "
        f"explains it: {least:.2g} is left" + ("" if best is None else f" of the nearest one ({best.form})")
    )


def steady_positions(angles: Callable[[Int[Tensor, " P"]], Float[Tensor, "P N"]], most: int) -> int | None:
    """Up to how many positions a model turns a key the same whatever comes later; None: as many as there are.

    Embeddings that change their frequencies with the length of a text cannot turn a stored key on the other side.

    Args:
        angles: Cosines and sines of some positions, which a model may make dependent on the highest of them.
        most: Number of positions of the model.
    """

    def first_of(last: int) -> Tensor:
        return angles(torch.tensor([0, 1, 2, 3, last]))[:4]

    known = first_of(4)
    if most < 8 or torch.allclose(known, first_of(most - 1), atol=1e-5):
        return None
    low, high = 4, most - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if torch.allclose(known, first_of(middle), atol=1e-5) else (low, middle)
    first_of(4)
    return low + 1


def _candidates(size: int, angles: Any) -> Sequence[Turning]:
    """Ways to turn that fit a head of some size and what the rotary module returns."""
    forms: list[tuple[str, int]] = []
    if isinstance(angles, Tensor) and angles.is_complex():
        forms = [("complex", angles.shape[-1])]
    elif isinstance(angles, tuple | list) and len(angles) == 2 and all(isinstance(part, Tensor) for part in angles):
        width = angles[0].shape[-1]
        forms = [("halves", width // 2), ("neighbours", width // 2), ("single", width)]
    found: list[Turning] = []
    for form, pairs in forms:
        for start in dict.fromkeys((0, size - 2 * pairs)):
            if not pairs or start < 0 or start + 2 * pairs > size:
                continue
            number = torch.arange(pairs)
            found.append(Turning(start + number, start + number + pairs, form))
            found.append(Turning(start + 2 * number, start + 2 * number + 1, form))
    return found


def _weighed(turning: Turning, heads: Tensor, rotation: Rotation) -> Turning:
    """The same turning with the weights after it that explain the heads best."""
    a, b = (heads[..., part].float() for part in (turning.first, turning.second))
    scale = rotation.cos[:1].clamp_min(1e-6)
    cos, sin = (rotation.cos / scale)[:, None], (rotation.sin / scale)[:, None]
    moved, share = a - a[:, :1] * cos, -b[:, :1] * sin
    ratios = (moved * share).sum(dim=(0, 1, 2)) / share.square().sum(dim=(0, 1, 2)).clamp_min(1e-12)
    ratios = torch.where(ratios.abs() < 1e-6, torch.ones_like(ratios), ratios)
    return Turning(turning.first, turning.second, turning.form, ratios)
