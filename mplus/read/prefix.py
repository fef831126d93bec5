"""The prefix of a read, layer by layer: bos, recalled and short-term tokens as ready keys and values in a cache."""

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from mplus.backbone.attention import KeysValues, Rotation, rotate_into
from mplus.backbone.backbone import Backbone
from mplus.memory.tokens import Tokens

SPARE_TOKENS = 256
"""Room a cache layer has for decoding before it must be copied into a larger one."""
READ_BLOCK_TOKENS = 128
"""A lone prompt is read in blocks of this many tokens: what a later read of the same beginning need not read again."""
Prefix = Sequence[KeysValues]
"""What stands before a prompt in one layer, in parts that are still where they were kept."""


@dataclass(frozen=True)
class ReadingOrder:
    """In which order recalled and short-term tokens stand behind bos, and which of them.

    Attributes:
        num_recalled: Tokens recalled.
        rows: Rows of [recalled ; short-term].
    """

    num_recalled: int
    rows: Int[Tensor, " P"]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Rows that follow one another, of one of the two: first and last-plus-one row."""
        rows, first = self.rows, self.num_recalled
        cuts = (rows.diff() != 1) | (rows[1:] == first)
        return [(int(run[0]), int(run[-1]) + 1) for run in rows.tensor_split(cuts.nonzero().flatten() + 1) if len(run)]

    def shared(self, other: "ReadingOrder") -> list[bool]:
        """Which runs are of short-term tokens that stand at the same places in the other order."""
        if len(self.rows) != len(other.rows):
            return [False] * len(self.runs)
        ours, theirs = self.rows - self.num_recalled, other.rows - other.num_recalled
        same = (ours >= 0) & (ours == theirs)
        sizes = [stop - start for start, stop in self.runs]
        return [bool(part.all()) for part in same.split(sizes)]


@dataclass(frozen=True)
class Chosen:
    """What all layers of a read recall, where that is one choice.

    Attributes:
        index: Rows of [long-term ; pending].
        order: In which they are read.
    """

    index: Int[Tensor, " T"]
    order: ReadingOrder

    def equals(self, other: "Chosen | None") -> bool:
        """Whether both make the same prefix of one memory."""
        if other is None or not torch.equal(self.index, other.index):
            return False
        return torch.equal(self.order.rows, other.order.rows)


class PrefixLayer(CacheLayerMixin):
    """A cache layer whose rows start with a prefix each, grow in place, and may join and leave.

    transformers' own dynamic layer copies all keys and values for every new token; over a long prefix
    that costs as much as reading it. Every row begins at column 0, so that a column is a position, and
    what stands behind a row's length is not seen.
    """

    is_sliding = False

    def __init__(
        self, keys: Float[Tensor, "B H P E"], values: Float[Tensor, "B H P E"], lengths: Sequence[int]
    ) -> None:
        """Take over buffers of which row n holds ``lengths[n]`` columns; further rows are free."""
        super().__init__()
        self.key_buffer, self.value_buffer, self.lengths = keys, values, list(lengths)
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: a prefix layer is born initialised."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values to every row; returns all columns up to the end of the longest."""
        rows, new = len(self.lengths), key_states.shape[2]
        end = self.get_seq_length() + new
        self._reserve(rows, end)
        if min(self.lengths) + new == end:
            self.key_buffer[:rows, :, end - new : end] = key_states
            self.value_buffer[:rows, :, end - new : end] = value_states
        else:
            for row, length in enumerate(self.lengths):
                self.key_buffer[row, :, length : length + new] = key_states[row]
                self.value_buffer[row, :, length : length + new] = value_states[row]
        self.lengths = [length + new for length in self.lengths]
        self.keys, self.values = self.key_buffer[:rows, :, :end], self.value_buffer[:rows, :, :end]
        return self.keys, self.values

    def join(self, other: "PrefixLayer") -> None:
        """Copy the rows of another layer behind one's own."""
        rows = len(self.lengths)
        self._reserve(rows + len(other.lengths), max(*self.lengths, *other.lengths))
        for row, length in enumerate(other.lengths):
            self.key_buffer[rows + row, :, :length] = other.key_buffer[row, :, :length]
            self.value_buffer[rows + row, :, :length] = other.value_buffer[row, :, :length]
        self.lengths += other.lengths

    def leave(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
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
            # Zeros: a column that is not seen yet has weight 0, and 0 times anything finite is 0.
            new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
            for row, length in enumerate(self.lengths):
                new[row, :, :length] = old[row, :, :length]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask for that many queries."""
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


@dataclass(frozen=True)
class SparePrefix:
    """What a finished read of one prompt leaves: its prefix and, behind it, the prompt.

    Attributes:
        short_term: Whose prefix it is; all of this pool stands in it.
        chosen: Which long-term tokens stand in it; None where every layer chose its own.
        prompt: What was read behind it.
        orders: In which order it stands, by layer.
        prefix_lengths: By layer.
        buffers: Keys and values, by layer.
    """

    short_term: ref[Tokens]
    chosen: Chosen | None
    prompt: Sequence[int]
    orders: Sequence[ReadingOrder]
    prefix_lengths: Sequence[int]
    buffers: Sequence[tuple[Tensor, Tensor]]

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(t.numel() * t.element_size() for pair in self.buffers for t in pair)

    def is_of(self, chosen: Chosen | None) -> bool:
        """Whether the prefix of a read that recalls this is this one."""
        return chosen is not None and chosen.equals(self.chosen)

    def kept_tokens(self, chosen: Chosen | None, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt have been read behind the same prefix, in whole blocks.

        At least one is left to be read, and a block is only kept if it was read as one, so that the
        answer is bit for bit that of a fresh read.
        """
        if not self.is_of(chosen):
            return 0
        most = min(len(self.prompt), len(prompt) - 1)
        same = next((n for n in range(most) if self.prompt[n] != prompt[n]), most)
        return same // READ_BLOCK_TOKENS * READ_BLOCK_TOKENS

    def layer(self, index: int, kept_tokens: int) -> PrefixLayer:
        """The cache layer of a new read that goes on behind the prefix and what is kept of the prompt."""
        return PrefixLayer(*self.buffers[index], [self.prefix_lengths[index] + kept_tokens])


class SparePrefixes:
    """Prefixes of finished reads, kept for the next read of the same memory.

    Short-term memory does not change until the next write, and stands rotated in a prefix: a later read
    in which it has the same places writes only what it recalls, and one that recalls the same
    tokens goes on where the conversations part. A prefix has one user at a time, goes with the memory it belongs
    to, and the least recently used go first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: list[SparePrefix] = []
        self._guard = threading.RLock()  # a collection of garbage may end a read within

    def take(self, short_term: Tokens, chosen: Chosen | None, prompt: Sequence[int]) -> SparePrefix | None:
        """The prefix of an earlier read of this short-term memory that saves most, now the caller's alone."""
        with self._guard:
            own = [spare for spare in self._kept if spare.short_term() is short_term]
            if not own:
                return None
            # Of equals the latest.
            best = max(reversed(own), key=lambda s: (s.is_of(chosen), s.kept_tokens(chosen, prompt)))
            self._kept = [spare for spare in self._kept if spare is not best]
            return best

    def keep(self, spare: SparePrefix) -> None:
        """Keep what a read that has ended no longer needs."""
        with self._guard:
            self._kept = [known for known in self._kept if known.short_term() is not None]
            if spare.short_term() is not None:
                self._kept.append(spare)
            while sum(known.nbytes for known in self._kept) > self.max_bytes:
                self._kept.pop(0)

    def clear(self) -> None:
        """Keep nothing of what has been read so far."""
        with self._guard:
            self._kept = []


SPARE_PREFIXES = SparePrefixes(2**30)


def prefix_layer(
    backbone: Backbone,
    prefixes: Sequence[Prefix],
    prompt: int,
    rotation: Rotation,
    spare: PrefixLayer | None,
    standing: Collection[int] = (),
) -> PrefixLayer:
    """A cache layer of rotated prefixes with room for the prompt and an answer.

    Args:
        backbone: The model.
        prefixes: By row.
        prompt: Tokens of the longest prompt.
        rotation: Of every position of the longest prefix.
        spare: The layer of an earlier read of one prefix of the same memory.
        standing: Parts of the only prefix that stand at their places there already.
    """
    lengths = [length_of(prefix) for prefix in prefixes]
    reused = spare is not None and spare.lengths == lengths
    if spare is not None and reused:
        layer = spare
    else:
        shape = (
            len(prefixes),
            backbone.num_key_value_heads,
            max(lengths) + prompt + SPARE_TOKENS,
            backbone.head_size,
        )
        # Rows of different length leave gaps, which have to be finite.
        new = torch.empty if len(prefixes) == 1 else torch.zeros
        keys = new(shape, dtype=backbone.dtype, device=rotation.cos.device)
        layer = PrefixLayer(keys, torch.empty_like(keys) if len(prefixes) == 1 else torch.zeros_like(keys), lengths)
    for row, prefix in enumerate(prefixes):
        position = 0
        for number, part in enumerate(prefix):
            after = position + part.keys.shape[0]
            if not (reused and number in standing):
                here = Rotation(rotation.cos[position:after], rotation.sin[position:after])
                rotate_into(layer.key_buffer[row, :, position:after].transpose(0, 1), part.keys, here)
                layer.value_buffer[row, :, position:after] = part.values.transpose(0, 1)
            position = after
    return layer


def length_of(prefix: Prefix) -> int:
    """Columns of a prefix."""
    return sum(part.keys.shape[0] for part in prefix)
