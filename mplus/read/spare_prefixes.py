"""Prefixes of finished reads, which later reads of the same memory reuse."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakSet, finalize, ref

from torch import Tensor

from mplus.forks import ProcessLock
from mplus.memory.tokens import Tokens
from mplus.read.cache_layer import PrefixLayer
from mplus.read.prefix import Chosen, ReadingOrder
from mplus.traces import dropped_when_forgotten

READ_BLOCK_TOKENS = 128
"""A single prompt is read in blocks of this many tokens; a later read of the same beginning skips whole blocks."""


@dataclass(frozen=True)
class SparePrefix:
    """The buffers of a finished read of one prompt: the prefix and, behind it, the prompt.

    Attributes:
        short_term: The short-term pool, all of which is in the prefix.
        chosen: The long-term tokens in the prefix; None if every layer chose its own.
        prompt: Token ids of the prompt behind the prefix.
        orders: Order of the prefix in each layer.
        prefix_lengths: Length of the prefix in each layer.
        buffers: Keys and values of each layer.
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
        """The buffers of a read whose layers hold prefix and prompt."""
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
        """Whether a read that recalls ``chosen`` has this same prefix."""
        return chosen is not None and chosen.equals(self.chosen)

    def kept_tokens(self, chosen: Chosen | None, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt have already been read behind the same prefix, in whole blocks.

        At least one token remains to be read. A block counts only if it was read as one block, so that the answer
        equals, bit for bit, that of a new read.
        """
        if not self.is_of(chosen):
            return 0
        most = min(len(self.prompt), len(prompt) - 1)
        same = next((n for n in range(most) if self.prompt[n] != prompt[n]), most)
        return same // READ_BLOCK_TOKENS * READ_BLOCK_TOKENS

    def standing(self, index: int, order: ReadingOrder) -> list[int]:
        """Numbers of the parts of a prefix in another order that are in place already; bos always is."""
        shared = order.shared(self.orders[index])
        return [0, *(part for part, is_shared in enumerate(shared, start=1) if is_shared)]

    def layer(self, index: int, kept_tokens: int = 0) -> PrefixLayer:
        """The cache layer of a new read that continues after the prefix and ``kept_tokens`` of the prompt."""
        return PrefixLayer(*self.buffers[index], [self.prefix_lengths[index] + kept_tokens])


class SparePrefixes:
    """Prefixes of finished reads, kept for the next read of the same memory.

    Short-term memory does not change until the next write, and is stored rotated in a prefix. A later read with
    short-term memory at the same places writes only its recalled tokens; a read that recalls the same tokens
    continues at the first token where the prompts differ. A prefix is used by one read at a time and is dropped with
    its memory; the least recently used ones are dropped first.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: list[SparePrefix] = []
        self._watched: WeakSet[Tokens] = WeakSet()
        self.forgettings = 0
        """How often something was forgotten in this process."""
        self._guard = ProcessLock()  # reentrant: garbage collection can end a read while it is held
        dropped_when_forgotten(self)

    def take(self, short_term: Tokens, chosen: Chosen | None, prompt: Sequence[int]) -> SparePrefix | None:
        """Take out the kept prefix of this short-term memory that saves the most work; None if there is none."""
        with self._guard:
            own = [spare for spare in self._kept if spare.short_term() is short_term]
            if not own:
                return None
            # Among equals the latest.
            best = max(reversed(own), key=lambda s: (s.is_of(chosen), s.kept_tokens(chosen, prompt)))
            self._kept = [spare for spare in self._kept if spare is not best]
            return best

    def keep(self, spare: SparePrefix, forgettings: int | None = None) -> None:
        """Keep the prefix of a finished read.

        Args:
            spare: The prefix.
            forgettings: What ``forgettings`` was when the read was asked for: what was forgotten since may be in it, so
                that it is not kept. None: as often as now.
        """
        with self._guard:
            self._drop_unreadable()
            pool = spare.short_term()
            if pool is not None and forgettings in (None, self.forgettings):
                self._kept.append(spare)
                if pool not in self._watched:
                    self._watched.add(pool)
                    finalize(pool, self._drop_unreadable).atexit = False
            while sum(known.nbytes for known in self._kept) > self.max_bytes:
                self._kept = self._kept[1:]  # empty by now if garbage collection has dropped the rest

    def _drop_unreadable(self) -> None:
        """Drop prefixes of short-term memories that nothing holds any more; what was forgotten may be in them."""
        with self._guard:
            self._kept = [known for known in self._kept if known.short_term() is not None]

    def clear(self) -> None:
        """Drop all kept prefixes."""
        with self._guard:
            self._kept = []

    def drop_traces(self) -> None:
        """Drop all kept prefixes, because something was forgotten: text that stood in a prompt may have been of it."""
        with self._guard:
            self.forgettings += 1
            self._kept = []


def _bytes_allowed() -> int:
    """Most bytes of kept prefixes in this process, from the environment."""
    given = os.environ.get("MPLUS_PREFIX_BYTES", str(2**30))
    if not given.isdecimal():
        raise ValueError(f"MPLUS_PREFIX_BYTES={given!r}: expected a number of bytes, such as {2**30}; 0 keeps none.")
    return int(given)


SPARE_PREFIXES = SparePrefixes(_bytes_allowed())
