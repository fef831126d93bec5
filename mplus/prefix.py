"""The prefix of a read, layer by layer: [bos ; recalled ; short-term] as ready keys and values in a cache."""

import threading
from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mplus.backbone import Backbone, KeysValues, Rotation, rotate_into
from mplus.memory.state import Track
from mplus.memory.tokens import Tokens

SPARE_TOKENS = 256
"""Room a cache layer has for decoding before it must be copied into a larger one."""
Prefix = Sequence[KeysValues]
"""What stands before a prompt in one layer, in parts that are still where they were kept."""


class PrefixLayer(CacheLayerMixin):
    """A cache layer that starts with a prefix and grows in place.

    transformers' own dynamic layer copies all keys and values for every new token; over a long prefix
    that costs as much as reading it.
    """

    is_sliding = False

    def __init__(self, keys: Float[Tensor, "B H P E"], values: Float[Tensor, "B H P E"], length: int) -> None:
        """Take over buffers whose first ``length`` columns are the prefix."""
        super().__init__()
        self.key_buffer, self.value_buffer, self.length = keys, values, length
        self.prefix_length = length
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: a prefix layer is born initialised."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values; returns all of them."""
        end = self.length + key_states.shape[2]
        if end > self.key_buffer.shape[2]:
            self._grow(end + max(SPARE_TOKENS, end // 4))
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        self.keys, self.values = self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]
        return self.keys, self.values

    def _grow(self, capacity: int) -> None:
        for name in ("key_buffer", "value_buffer"):
            old: Tensor = getattr(self, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def select(self, rows: Int[Tensor, " B"]) -> None:
        """Keep only some sequences of the batch."""
        rows = rows.to(self.key_buffer.device)
        self.key_buffer, self.value_buffer = self.key_buffer[rows], self.value_buffer[rows]
        self.keys, self.values = self.key_buffer[:, :, : self.length], self.value_buffer[:, :, : self.length]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(t.numel() * t.element_size() for t in (self.key_buffer, self.value_buffer))

    def rewound(self) -> "PrefixLayer":
        """A layer of the same buffers that holds the prefix alone."""
        return PrefixLayer(self.key_buffer, self.value_buffer, self.prefix_length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask for that many queries."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use, the prefix included."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No maximum (the name in transformers before 5.20)."""
        return -1


class SparePrefixes:
    """Prefixes of finished reads, kept for the next read of the same memory.

    Short-term memory does not change until the next write, and stands rotated at the end of a prefix: a
    later read that recalls as many tokens writes only what it recalls. A prefix has one user at a time,
    goes with the memory it belongs to, and the least recently used go first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: list[tuple[ref[Tokens], list[PrefixLayer]]] = []
        self._guard = threading.Lock()

    def take(self, short_term: Tokens) -> list[PrefixLayer] | None:
        """The prefix of an earlier read of this short-term memory, now the caller's alone."""
        with self._guard:
            for place in reversed(range(len(self._kept))):
                if self._kept[place][0]() is short_term:
                    return [layer.rewound() for layer in self._kept.pop(place)[1]]
        return None

    def keep(self, short_term: "ref[Tokens]", layers: list[PrefixLayer]) -> None:
        """Keep what a read that has ended no longer needs."""
        with self._guard:
            self._kept = [(known, kept) for known, kept in self._kept if known() is not None]
            if short_term() is not None:
                self._kept.append((short_term, layers))
            while sum(layer.nbytes for _, kept in self._kept for layer in kept) > self.max_bytes:
                self._kept.pop(0)


SPARE_PREFIXES = SparePrefixes(2**30)


def prefix_layer(
    backbone: Backbone, prefixes: Sequence[Prefix], prompt: int, rotation: Rotation, spare: PrefixLayer | None
) -> PrefixLayer:
    """A cache layer of rotated prefixes, padded on the left, with room for the prompt and an answer.

    ``rotation`` is that of every position of the longest prefix; ``spare`` is the layer of an earlier read of one
    prefix that ended with the same part.
    """
    widest = rotation.cos.shape[0]
    reused = spare is not None and spare.prefix_length == widest and spare.dtype == backbone.dtype
    if spare is not None and reused:
        keys, values = spare.key_buffer, spare.value_buffer
    else:
        shape = (
            len(prefixes),
            backbone.num_key_value_heads,
            widest + prompt + SPARE_TOKENS,
            backbone.head_size,
        )
        keys = torch.empty(shape, dtype=backbone.dtype, device=rotation.cos.device)
        values = torch.empty_like(keys)
    for row, prefix in enumerate(prefixes):
        start = widest - length_of(prefix)
        keys[row, :, :start] = 0
        values[row, :, :start] = 0
        position = 0
        for part in prefix[:-1] if reused else prefix:
            after = position + part.keys.shape[0]
            here = Rotation(rotation.cos[position:after], rotation.sin[position:after])
            rotate_into(keys[row, :, start + position : start + after].transpose(0, 1), part.keys, here)
            values[row, :, start + position : start + after] = part.values.transpose(0, 1)
            position = after
    return PrefixLayer(keys, values, widest)


def length_of(prefix: Prefix) -> int:
    """Columns of a prefix."""
    return sum(part.keys.shape[0] for part in prefix)


def gather(
    track: Track, index: Int[Tensor, " T"], at: int, dtype: torch.dtype, where: torch.device
) -> tuple[Tensor, Tensor]:
    """Keys and values of recalled tokens in one layer; only their rows are read and moved."""
    long = len(track.long_term)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for store, inside, shift in (
        (track.long_term, index < long, 0),
        (track.pending, index >= long, long),
    ):
        places = inside.nonzero().flatten()
        if not len(places):
            continue
        rows = index[places] - shift
        segment, row = store.segment[rows], store.row[rows]
        for number in segment.unique().tolist():
            here = (segment == number).nonzero().flatten()
            block = store.segments[number]
            parts.append(
                (
                    places[here],
                    block.keys[at].rows(row[here], dtype, where),
                    block.values[at].rows(row[here], dtype, where),
                )
            )
    order = torch.cat([places for places, _, _ in parts]).argsort().to(where)
    return (
        torch.cat([keys for _, keys, _ in parts])[order],
        torch.cat([values for _, _, values in parts])[order],
    )
