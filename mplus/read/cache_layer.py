"""The cache layer of a read: every row starts with a prefix and grows in place; rows can be added and removed."""

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mplus.backbone.attention import KeysValues, RotatedHeads, Rotation
from mplus.backbone.backbone import Backbone
from mplus.backbone.memory_layer import Rotations
from mplus.memory.stacks import stacked

SPARE_TOKENS = 256
"""Free columns of a new cache layer; when they are used up, it is copied into a larger one."""
BUFFERS = ("key_buffer", "value_buffer")
Prefix = Sequence[KeysValues]
"""The prefix of some layers in parts, [layers, rows, heads, size], each still where it is stored."""


class Slots(NamedTuple):
    """Where new keys and values are put: an index for each of the first three dimensions of a buffer."""

    rows: Int[Tensor, "B 1 1"]
    heads: Int[Tensor, "1 H 1"]
    columns: Int[Tensor, "B 1 S"]

    @classmethod
    def after(cls, lengths: Sequence[int], size: int, heads: int, where: torch.device) -> "Slots":
        """Those of ``size`` tokens after the end of each row."""
        rows, numbers = (torch.arange(count, device=where)[:, None] for count in (len(lengths), heads))
        columns = torch.tensor(lengths, device=where)[:, None, None] + torch.arange(size, device=where)
        return cls(rows[:, None], numbers[None], columns)


class Step(NamedTuple):
    """Where the next tokens of a layer go, and what they see, as views of its buffers."""

    slots: Slots | None
    """None: into the same columns of every row, which are ``new_keys`` and ``new_values``."""
    new_keys: Tensor
    new_values: Tensor
    keys: Tensor
    values: Tensor


class PrefixLayer(CacheLayerMixin):
    """A cache layer in which each row starts with a prefix. Rows grow in place, and can be added and removed.

    transformers' own dynamic layer copies all keys and values for every new token; over a long prefix
    that costs as much as reading it. Every row begins at column 0, so that a column is a position;
    columns beyond a row's length are masked. The buffers of several layers mostly lie side by side, and what can be
    done for all of them at once is done by functions beside this class.
    """

    is_sliding = False

    def __init__(
        self, keys: Float[Tensor, "B H P E"], values: Float[Tensor, "B _ P _"], lengths: Sequence[int]
    ) -> None:
        """Use buffers in which row n has ``lengths[n]`` filled columns; rows beyond ``lengths`` are free."""
        super().__init__()
        self.key_buffer, self.value_buffer, self.lengths = keys, values, list(lengths)
        self.step: Step | None = None
        """What was prepared for the next tokens."""
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    @classmethod
    def empty(
        cls,
        backbone: Backbone,
        layers: Sequence[int],
        lengths: Sequence[int],
        prompt: int,
        device: torch.device,
        beside: "Sequence[PrefixLayer]" = (),
    ) -> "list[PrefixLayer]":
        """Layers that are alike, with room for prefixes of these lengths, prompts of ``prompt`` tokens, and answers.

        Args:
            backbone: The model.
            layers: Numbers of the layers.
            lengths: Of the prefix of each row.
            prompt: Tokens of the longest prompt.
            device: Where they are.
            beside: The same layers of a running batch: these rows take free rows of its buffers, so that joining it
                copies nothing.
        """
        columns, heads = max(lengths) + prompt + SPARE_TOKENS, backbone.head_shapes(layers[0])
        run = Run.first(beside) if beside else None
        if run is not None and len(run.layers) == len(layers):
            first = len(beside[0].lengths)
            rows = slice(first, first + len(lengths))
            run = run.reserve(rows.stop, columns)
            keys, values = run.keys[:, rows], run.values[:, rows]
        else:
            shapes = ((heads.key_heads, heads.key_size), (heads.value_heads, heads.value_size))
            keys, values = (
                torch.empty((len(layers), len(lengths), number, columns, size), dtype=backbone.dtype, device=device)
                for number, size in shapes
            )
        if len(lengths) > 1 or beside:
            for row, length in enumerate(lengths):
                clear_beyond(keys[:, row], values[:, row], length)
        return [cls(*pair, lengths) for pair in zip(keys.unbind(0), values.unbind(0), strict=True)]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: a prefix layer is initialised when it is made."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values to every row; returns all columns up to the end of the longest row."""
        new = key_states.shape[2]
        if self.step is None:
            prepare([self], new)
        step, self.step = self.step, None
        assert step is not None
        if step.slots is None:
            # Both in one call; pyright does not know it.
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [step.new_keys, step.new_values], [key_states, value_states]
            )
        else:
            for buffer, states in ((self.key_buffer, key_states), (self.value_buffer, value_states)):
                slots = step.slots
                if slots.heads.shape[1] != states.shape[1]:  # values of some models have other heads
                    slots = Slots.after(self.lengths, new, states.shape[1], states.device)
                buffer.index_put_(slots, states if states.dtype == buffer.dtype else states.to(buffer.dtype))
        self.lengths = [length + new for length in self.lengths]
        self.keys, self.values = step.keys, step.values
        return step.keys, step.values

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


class Run(NamedTuple):
    """Layers whose buffers lie side by side and whose rows have the same lengths."""

    layers: Sequence[PrefixLayer]
    keys: Float[Tensor, "L B H P E"]
    values: Float[Tensor, "L B _ P _"]

    @classmethod
    def first(cls, layers: Sequence[PrefixLayer]) -> "Run":
        """The first run of some layers."""
        first, storage = layers[0], layers[0].key_buffer.untyped_storage().data_ptr()
        end = 1
        while end < len(layers) and layers[end].lengths == first.lengths:
            if layers[end].key_buffer.untyped_storage().data_ptr() != storage:
                break
            end += 1
        for run in (layers[:end], layers[:1]):
            keys, values = (stacked([getattr(layer, name) for layer in run]) for name in BUFFERS)
            if keys is not None and values is not None:
                return cls(run, keys, values)
        raise AssertionError("one layer is a run")

    def goes_on_in(self, other: "Run") -> bool:
        """Whether the rows of another run are those behind this one's, in the same buffers."""
        rows = slice(len(self.layers[0].lengths), None)
        pairs = ((self.keys[:, rows], other.keys), (self.values[:, rows], other.values))
        first = int(len(self.layers) == 1)  # a distance between layers means nothing then
        return all(
            mine.shape[1] >= theirs.shape[1]
            and mine.data_ptr() == theirs.data_ptr()
            and mine.stride()[first:] == theirs.stride()[first:]
            for mine, theirs in pairs
        )

    def reserve(self, rows: int, columns: int) -> "Run":
        """The same with room for so many rows and columns."""
        _, slots, _, capacity, _ = self.keys.shape
        if rows <= slots and columns <= capacity:
            return self
        # Buckets: rows that come one after the other find room. On a CPU rows that nobody has taken cost no memory.
        slots = slots if rows <= slots else 2 ** (rows - 1).bit_length()
        capacity = capacity if columns <= capacity else columns + max(SPARE_TOKENS, columns // 4)
        lengths, made = self.layers[0].lengths, list[Tensor]()
        for old in (self.keys, self.values):
            new = old.new_empty(old.shape[0], slots, old.shape[2], capacity, old.shape[4])
            for row, length in enumerate(lengths):
                new[:, row, :, :length] = old[:, row, :, :length]
            made.append(new)
        for row, length in enumerate(lengths):
            clear_beyond(made[0][:, row], made[1][:, row], length)
        for layer, keys, values in zip(self.layers, *made, strict=True):
            layer.key_buffer, layer.value_buffer = keys, values
        return Run(self.layers, *made)


def clear_beyond(keys: Float[Tensor, "L H P E"], values: Float[Tensor, "L _ P _"], length: int) -> None:
    """Make the columns of a row from its end on zeros: a masked column weighs 0, and 0 times a finite number is 0."""
    for buffer in (keys, values):
        buffer[:, :, length:] = 0


def prepare(layers: Sequence[PrefixLayer], size: int, slots: Slots | None = None) -> None:
    """Prepare the first of some layers, and those beside it, for ``size`` new tokens in every row.

    Args:
        layers: Cache layers, in order.
        size: Number of new tokens.
        slots: Where they go, if rows are of unequal length and that was worked out already.
    """
    lengths, first = layers[0].lengths, layers[0]
    rows, end = len(lengths), max(lengths) + size
    run = Run.first(layers).reserve(rows, end)
    if slots is None and len(set(lengths)) > 1:
        slots = Slots.after(lengths, size, run.keys.shape[2], first.device)
    seen = [buffer[:, :rows, :, :end].unbind(0) for buffer in run[1:]]
    new = seen if slots is not None else [buffer[:, :rows, :, end - size : end].unbind(0) for buffer in run[1:]]
    for place, layer in enumerate(run.layers):
        layer.step = Step(slots, new[0][place], new[1][place], seen[0][place], seen[1][place])


def join(layers: Sequence[PrefixLayer], others: Sequence[PrefixLayer]) -> None:
    """Append the rows of other layers: copies, unless these stand in the next rows already (``PrefixLayer.empty``)."""
    place = 0
    while place < len(layers):
        run = Run.first(layers[place:])
        theirs = Run.first(others[place : place + len(run.layers)])
        if len(theirs.layers) < len(run.layers):
            run = Run(
                run.layers[: len(theirs.layers)], run.keys[: len(theirs.layers)], run.values[: len(theirs.layers)]
            )
        mine, more = run.layers[0].lengths, theirs.layers[0].lengths
        if not run.goes_on_in(theirs):
            run = run.reserve(len(mine) + len(more), max(*mine, *more))
            for row, length in enumerate(more, len(mine)):
                for buffer, other in zip(run[1:], theirs[1:], strict=True):
                    buffer[:, row, :, :length] = other[:, row - len(mine), :, :length]
                clear_beyond(run.keys[:, row], run.values[:, row], length)
        for layer in run.layers:
            layer.lengths = [*mine, *more]
        place += len(run.layers)


def leave(layers: Sequence[PrefixLayer], row: int) -> None:
    """Remove a row; the last row takes its place."""
    place = 0
    while place < len(layers):
        run = Run.first(layers[place:])
        lengths = list(run.layers[0].lengths)
        last, length = len(lengths) - 1, lengths[-1]
        if row != last:
            for buffer in run[1:]:
                buffer[:, row, :, :length] = buffer[:, last, :, :length]
        lengths[row] = length
        for layer in run.layers:
            layer.lengths = lengths[:-1]
        place += len(run.layers)


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
    keys, values = (stacked([getattr(layer, name) for layer in layers]) for name in BUFFERS)
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
        sizes = [part.keys.shape[1] for part in prefix]
        if isinstance(rotation, Rotation):
            heads = RotatedHeads.of(keys[:, row], rotation).parts(sizes)
            places = values[:, row].split([*sizes, values.shape[2] - sum(sizes)], dim=1)
            for number, part in enumerate(prefix):
                if number not in standing:
                    heads[number].write(part.keys)
                    places[number].copy_(part.values)
            continue
        ends = list(accumulate(sizes))
        for number, (part, size, end) in enumerate(zip(prefix, sizes, ends, strict=True)):
            if number not in standing:
                here = slice(end - size, end)
                turned = rotation.at(here).turned(KeysValues(part.keys[0], part.values[0]))
                keys[:, row, here], values[:, row, here] = turned
