"""Attention: the pattern of which rows see which, and the kernels that compute it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

GROUPED_ATTENTION = "mplus_grouped"
"""Its name for transformers, which refuses names with "sdpa" in them for models that need another formula."""


class KeysValues(NamedTuple):
    """Attention keys (before rotary embedding) and values of packed rows."""

    keys: Float[Tensor, "*rows H E"]
    values: Float[Tensor, "*rows _ _"]

    def take(self, rows: Int[Tensor, " n"] | slice) -> "KeysValues":
        """Some of the rows."""
        where = rows.to(self.keys.device) if isinstance(rows, Tensor) else rows
        return KeysValues(self.keys[where], self.values[where])


class Rotation(NamedTuple):
    """Cosines and sines of some positions."""

    cos: Float[Tensor, "*positions E"]
    sin: Float[Tensor, "*positions E"]

    def at(self, index: Int[Tensor, "*places"] | slice) -> "Rotation":
        """The cosines and sines at ``index`` of a table of positions."""
        return Rotation(self.cos[index], self.sin[index])

    def on(self, device: torch.device) -> "Rotation":
        """The same on a device. It is not called ``to``, because accelerate calls any method of that name."""
        return Rotation(self.cos.to(device), self.sin.to(device))


class LayerInput(NamedTuple):
    """Packed rows at the input of a layer, with their attention keys and values."""

    rows: Float[Tensor, "T D"]
    normed: Float[Tensor, "T D"]
    keys: Float[Tensor, "T H E"]
    """Before rotary embedding."""
    values: Float[Tensor, "T H E"]


@dataclass(frozen=True)
class Packing:
    """How packed rows are laid out for attention.

    Linear layers process all rows of a batch packed one after the other, [T]. Attention takes them as [B, Q]
    queries over [B, P] keys. Rows before ``first`` are attended to, but have no queries themselves.

    Attributes:
        first: The first row with a query.
        queries: Row of each query, counted from ``first``.
        query_rotation: Rotation of each query's position.
        keys: Row of each key.
        key_rotation: Rotation of each key's position.
        mask: Which keys a query sees.
        places: Position in [B * Q] of each row with a query.
    """

    first: int
    queries: Int[Tensor, "B Q"]
    query_rotation: Rotation
    keys: Int[Tensor, "B P"]
    key_rotation: Rotation
    mask: Bool[Tensor, "B 1 Q P"]
    places: Int[Tensor, " S"]

    @classmethod
    def single(cls, rotation: Rotation, first: int = 0) -> "Packing":
        """One sequence: every row sees itself and those before it.

        Args:
            rotation: Rotation of positions 0, 1, …, one for each row.
            first: The first row with a query.
        """
        rows = torch.arange(len(rotation.cos), device=rotation.cos.device)
        mask = (rows <= rows[first:, None])[None, None]
        own = rows[first:] - first
        return cls(first, own[None], rotation.at(rows[None, first:]), rows[None], rotation.at(rows[None]), mask, own)

    def to(self, device: torch.device) -> "Packing":
        """The same on a device; the same object if it is there already."""
        if self.mask.device == device:
            return self
        return Packing(
            self.first,
            self.queries.to(device),
            self.query_rotation.on(device),
            self.keys.to(device),
            self.key_rotation.on(device),
            self.mask.to(device),
            self.places.to(device),
        )


Projection = Callable[[str, Tensor], Tensor]
"""Makes queries ("q") or keys ("k") of rows, before they turn with position, [rows, heads, size]."""


def project_heads(attention: Any, kind: str, normed: Tensor, head_size: int) -> Tensor:
    """Queries ("q"), keys ("k") or values ("v") of rows, [rows, heads, size], normed if the layer norms them."""
    heads = getattr(attention, f"{kind}_proj")(normed).unflatten(-1, (-1, head_size))
    norm = getattr(attention, f"{kind}_norm", None)
    return heads if norm is None else norm(heads)


def rotate(heads: Float[Tensor, "*rows H E"], rotation: Rotation) -> Float[Tensor, "*rows H E"]:
    """Rotary embedding of heads laid out [rows, heads, size]."""
    cos, sin = rotation.cos.unsqueeze(-2), rotation.sin.unsqueeze(-2)
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


def turned_heads(heads: Float[Tensor, "B H S E"], rotation: Rotation) -> Float[Tensor, "B H S E"]:
    """``rotate`` of heads laid out [batch, heads, rows, size]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation.cos + torch.cat((-second, first), dim=-1) * rotation.sin


class RotatedHeads(NamedTuple):
    """Buffers into which ``rotate`` writes without temporary tensors, for prefixes of many thousand rows."""

    first: Float[Tensor, "L P H _"]
    """The first half of every head."""
    second: Float[Tensor, "L P H _"]
    cos: Float[Tensor, "_ 1 _"]
    sin: Float[Tensor, "_ 1 _"]

    @classmethod
    def of(cls, buffer: Float[Tensor, "L P H E"], rotation: Rotation) -> "RotatedHeads":
        """The halves of a buffer, and the rotation of its first positions."""
        half = buffer.shape[-1] // 2
        cos, sin = rotation.cos[:, None, :half], rotation.sin[:, None, :half]
        first, second = buffer.split(half, dim=-1)
        return cls(first, second, cos, sin)

    def parts(self, sizes: Sequence[int]) -> "list[RotatedHeads]":
        """Parts of so many positions each, from the first on."""
        room, known = self.first.shape[1] - sum(sizes), self.cos.shape[0] - sum(sizes)
        first, second = (half.split([*sizes, room], dim=1) for half in (self.first, self.second))
        cos, sin = (part.split([*sizes, known]) for part in (self.cos, self.sin))
        return [RotatedHeads(*part) for part in zip(first, second, cos, sin, strict=True)]

    def write(self, heads: Float[Tensor, "L P H E"]) -> None:
        """Rotate heads and write them to all positions.

        In half precision each product is rounded, as in ``rotate``: keys with a large bias would else be other numbers
        here than in the prompt, and attention would lean to one of the two.
        """
        first, second = heads.chunk(2, dim=-1)
        torch.mul(first, self.cos, out=self.first)
        torch.mul(second, self.cos, out=self.second)
        if heads.dtype.itemsize < 4:
            self.first.sub_(second * self.sin)
            self.second.add_(first * self.sin)
        else:
            self.first.addcmul_(second, self.sin, value=-1)
            self.second.addcmul_(first, self.sin)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float = 1.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention computed step by step, grouped over key-value heads; the reference for the fast kernels."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    scores = torch.einsum("bhgqe,bhpe->bhgqp", grouped, key).float() * scaling
    if attention_mask is not None:
        mask = attention_mask[:, :, None]
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(dim=-1).to(value.dtype)
    output = torch.einsum("bhgqp,bhpe->bqhge", weights, value)
    return output.flatten(2, 3), None


def stacked_mask(mask: Bool[Tensor, "B 1 Q P"], groups: int, dtype: torch.dtype) -> Float[Tensor, "B 1 GQ P"]:
    """A mask as a summand, for the queries of ``groups`` heads stacked as rows of one head."""
    summand = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    return summand.repeat(1, 1, groups, 1) if mask.shape[2] > 1 else summand.expand(-1, -1, groups, -1)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention that never repeats key-value heads.

    The queries that share a key-value head are stacked as rows of one head. transformers' own
    sdpa path copies keys and values once per query head as soon as a mask is given, which over a long
    prefix costs more than attention itself. A mask is for the rows of one head, or for the stacked rows.
    The result is [B, Q, heads, size], or [B, Q, key heads, groups, size] where nothing is learnt from it.
    """
    batch, heads, rows, size = query.shape
    if attention_mask is None and rows > 1:
        # transformers passes no mask for plain causal attention.
        attention_mask = torch.ones(rows, key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = attention_mask.tril(key.shape[2] - rows)[None, None]
    groups = heads // key.shape[1]
    if groups > 1:
        query = query.reshape(batch, key.shape[1], groups * rows, size)
        if attention_mask is not None and attention_mask.shape[2] != groups * rows:
            wide = attention_mask.repeat(1, 1, groups, 1) if rows > 1 else attention_mask.expand(-1, -1, groups, -1)
            attention_mask = wide
    output = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, is_causal=False
    )
    if rows == 1:
        return output.reshape(batch, 1, heads, -1), None
    if groups > 1 and not output.requires_grad:
        # Heads in groups, as a view in one step; the layer makes one dimension of all of them.
        size, (by_row, by_head, by_query, by_number) = output.shape[3], output.stride()
        strides = (by_row, by_query, by_head, rows * by_query, by_number)
        return output.as_strided((batch, rows, key.shape[1], groups, size), strides), None
    return output.reshape(batch, heads, rows, -1).transpose(1, 2), None


def register_attention() -> None:
    """Make ``grouped_attention`` known to transformers under its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
    AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)
