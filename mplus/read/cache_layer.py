"""The cache layer of a read: every row starts with a prefix and grows in place; rows can be added and removed."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mplus.backbone.attention import KeysValues, Rotation, rotate_into
from mplus.backbone.backbone import Backbone
from mplus.backbone.memory_layer import Rotations
from mplus.memory.stacks import stacked

SPARE_TOKENS = 256
"""Free columns of a new cache layer; when they are used up, it is copied into a larger one."""
Prefix = Sequence[KeysValues]
"""The prefix of some layers in parts, [layers, rows, heads, size], each still where it is stored."""


class Slots(NamedTuple):
    """Where new keys and values are put: an index for each of the first three dimensions of a buffer."""

    rows: Int[Tensor, "B 1 1"]
    heads: Int[Tensor, "1 H 1"]
    columns: Int[Tensor, "B 1 S"]


class PrefixLayer(CacheLayerMixin):
    """A cache layer in which each row starts with a prefix. Rows grow in place, and can be added and removed.

    transformers' own dynamic layer copies all keys and values for every new token; over a long prefix
    that costs as much as reading it. Every row begins at column 0, so that a column is a position;
    columns beyond a row's length are masked.
    """

    is_sliding = False

    def __init__(
        self, keys: Float[Tensor, "B H P E"], values: Float[Tensor, "B _ P _"], lengths: Sequence[int]
    ) -> None:
        """Use buffers in which row n has ``lengths[n]`` filled columns; rows beyond ``lengths`` are free."""
        super().__init__()
        self.key_buffer, self.value_buffer, self.lengths = keys, values, list(lengths)
        self.slots: Slots | None = None
        """Where the next tokens go, if that was worked out for all layers at once."""
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    @classmethod
    def empty(
        cls, backbone: Backbone, layers: Sequence[int], lengths: Sequence[int], prompt: int, device: torch.device
    ) -> "list[PrefixLayer]":
        """Layers that are alike, with room for prefixes of these lengths, prompts of ``prompt`` tokens, and answers."""
        columns, heads = max(lengths) + prompt + SPARE_TOKENS, backbone.head_shapes(layers[0])
        shapes = ((heads.key_heads, heads.key_size), (heads.value_heads, heads.value_size))
        # Rows of different length leave gaps, in which numbers must be finite.
        new = torch.empty if len(lengths) == 1 else torch.zeros
        keys, values = (
            new((len(layers), len(lengths), number, columns, size), dtype=backbone.dtype, device=device)
            for number, size in shapes
        )
        return [cls(*pair, lengths) for pair in zip(keys.unbind(0), values.unbind(0), strict=True)]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: a prefix layer is initialised when it is made."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values to every row; returns all columns up to the end of the longest row."""
        rows, new = len(self.lengths), key_states.shape[2]
        end = self.get_seq_length() + new
        self._reserve(rows, end)
        slots, self.slots = self.slots, None
        for buffer, states in ((self.key_buffer, key_states), (self.value_buffer, value_states)):
            if slots is not None and states.dtype == buffer.dtype:
                buffer.index_put_(slots, states)
            elif min(self.lengths) + new == end:
                buffer[:rows, :, end - new : end] = states
            else:
                columns = torch.tensor(self.lengths)[:, None] + torch.arange(new)
                buffer[torch.arange(rows)[:, None], :, columns] = states.transpose(1, 2).to(buffer.dtype)
        self.lengths = [length + new for length in self.lengths]
        self.keys, self.values = self.key_buffer[:rows, :, :end], self.value_buffer[:rows, :, :end]
        return self.keys, self.values

    def join(self, other: "PrefixLayer") -> None:
        """Append copies of the rows of another layer."""
        rows = len(self.lengths)
        self._reserve(rows + len(other.lengths), max(*self.lengths, *other.lengths))
        for row, length in enumerate(other.lengths):
            self.key_buffer[rows + row, :, :length] = other.key_buffer[row, :, :length]
            self.value_buffer[rows + row, :, :length] = other.value_buffer[row, :, :length]
        self.lengths += other.lengths

    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last, length = len(self.lengths) - 1, self.lengths[-1]
        if row != last:
            self.key_buffer[row, :, :length] = self.key_buffer[last, :, :length]
            self.value_buffer[row, :, :length] = self.value_buffer[last, :, :length]
        self.lengths[row] = length
        self.lengths.pop()

    def _reserve(self, rows: int, columns: int) -> None:
        slots, _, capacity, _ = self.key_buffer.shape
        if rows <= slots and columns <= capacity:
            return
        if rows > slots:
            slots = max(rows, 2 * slots)
        if columns > capacity:
            capacity = columns + max(SPARE_TOKENS, columns // 4)
        for name in ("key_buffer", "value_buffer"):
            old: Tensor = getattr(self, name)
            # Zeros: a masked column has weight 0, and 0 times a finite number is 0.
            new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
            for row, length in enumerate(self.lengths):
                new[row, :, :length] = old[row, :, :length]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask for ``query_length`` queries."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns of the longest row, its prefix included."""
        return max(self.lengths)

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No maximum (the name in transformers before 5.20)."""
        return -1


def write_prefixes(
    layers: Sequence[PrefixLayer],
    prefixes: Sequence[Prefix],
    rotation: Rotation | Rotations,
    standing: Collection[int] = (),
) -> None:
    """Rotate and write prefixes at the beginning of the rows of some layers, all in one step if they lie side by side.

    Args:
        layers: Layers that are alike.
        prefixes: One for each row.
        rotation: For every position of the longest prefix.
        standing: Parts of the only prefix that are in place already and are not written.
    """
    keys, values = (stacked([getattr(layer, name) for layer in layers]) for name in ("key_buffer", "value_buffer"))
    if keys is not None and values is not None and isinstance(rotation, Rotation):
        _write(keys, values, prefixes, rotation, standing)
        return
    for place, layer in enumerate(layers):
        here = slice(place, place + 1)
        own = [[KeysValues(part.keys[here], part.values[here]) for part in prefix] for prefix in prefixes]
        _write(layer.key_buffer[None], layer.value_buffer[None], own, rotation, standing)


def _write(
    keys: Float[Tensor, "L B H P E"],
    values: Float[Tensor, "L B _ P _"],
    prefixes: Sequence[Prefix],
    rotation: Rotation | Rotations,
    standing: Collection[int],
) -> None:
    keys, values = keys.transpose(2, 3), values.transpose(2, 3)
    for row, prefix in enumerate(prefixes):
        position = 0
        for number, part in enumerate(prefix):
            here = slice(position, position + part.keys.shape[1])
            position = here.stop
            if number in standing:
                continue
            turned = part.values
            if isinstance(rotation, Rotation):
                rotate_into(keys[:, row, here], part.keys, rotation.at(here))
            else:
                one = rotation.at(here).turned(KeysValues(part.keys[0], part.values[0]))
                keys[:, row, here] = one.keys
                turned = one.values
            values[:, row, here] = turned
