"""Prefixes of finished reads, which later reads of the same memory go on with."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import ref

from torch import Tensor

from mplus.memory.tokens import Tokens
from mplus.read.cache_layer import PrefixLayer
from mplus.read.prefix import Chosen, ReadingOrder

READ_BLOCK_TOKENS = 128
"""A lone prompt is read in blocks of this many tokens: a later read of the same beginning skips whole blocks."""


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

    @classmethod
    def of(
        cls,
        short_term: Tokens,
        chosen: Chosen | None,
        prompt: Sequence[int],
        orders: Sequence[ReadingOrder],
        layers: Sequence[PrefixLayer],
    ) -> "SparePrefix":
        """What a read leaves whose layers hold prefix and prompt."""
        return cls(
            ref(short_term),
            chosen,
            tuple(prompt),
            orders,
            [layer.lengths[0] - len(prompt) for layer in layers],
            [(layer.key_buffer, layer.value_buffer) for layer in layers],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for pair in self.buffers for buffer in pair)

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

    def standing(self, index: int, order: ReadingOrder) -> list[int]:
        """Parts of a prefix in another order that stand at their places in a layer already: bos always does."""
        shared = order.shared(self.orders[index])
        return [0, *(part for part, is_shared in enumerate(shared, start=1) if is_shared)]

    def layer(self, index: int, kept_tokens: int = 0) -> PrefixLayer:
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
