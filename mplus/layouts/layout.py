"""``Layout``: what differs between memories that keep whole chunks and memories that keep single tokens.

A layout decides from chunk numbers, ages and relevance alone; it holds no tokens and computes no relevance.
``mplus.memory`` calls it for eviction and for tokens that return, ``mplus.recall`` for the choice of units, and
``mplus.weights`` for the groups of layers that share a choice.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.computed_once import computed_once
from mplus.config import MemoryConfig
from mplus.shapes import Ages, Index

Chunks = Int[Tensor, " T"]
"""Serial number of the chunk that each token was written with; tokens of one chunk are consecutive."""


@dataclass(frozen=True)
class Units:
    """Runs of tokens of one pool that are recalled together, in the order of the pool."""

    starts: Int[Tensor, " U"]
    sizes: Int[Tensor, " U"]

    def __len__(self) -> int:
        return len(self.starts)

    @computed_once
    def arrays(self) -> tuple[Any, Any]:
        """Starts and sizes as arrays of numpy."""
        return self.starts.numpy(), self.sizes.numpy()

    @computed_once
    def num_tokens(self) -> int:
        """Number of all their tokens."""
        return int(self.arrays[1].sum())

    def take(self, index: Int[Tensor, " u"] | slice) -> "Units":
        """The units at ``index``, in that order."""
        return Units(self.starts[index], self.sizes[index])

    def tokens(self) -> Index:
        """Positions of all their tokens in the pool."""
        starts, sizes = self.arrays
        shift = starts - sizes.cumsum() + sizes
        return torch.from_numpy(np.arange(self.num_tokens) + shift.repeat(sizes))


class Eviction(NamedTuple):
    """What a write does to short-term memory, as positions in [short-term ; new]."""

    remaining: Index
    evicted: Index


@dataclass(frozen=True)
class Ranked:
    """Units of recall with their relevance: first those that can be recalled, then those that are read in any case."""

    relevance: Float[Tensor, " U"]
    average: float
    """Mean relevance over all units."""
    sizes: Int[Tensor, " U"]
    """Number of tokens of each unit."""
    chunks: Int[Tensor, " U"] | None
    """Chunk number of each unit; later chunks have higher numbers. None if units are not texts."""
    goes_on: Bool[Tensor, " U"] | None
    """Whether each unit continues the one before it; None if units are not texts."""
    num_stored: int
    """How many of the units can be recalled; the others are read in any case."""

    def read(self, chosen: Int[Tensor, " chosen"]) -> Int[Tensor, " read"]:
        """The units that are read: the recalled ones, then those that are read in any case."""
        return torch.cat([chosen, torch.arange(self.num_stored, len(self.sizes))])


class Layout(ABC):
    """One way to lay out a memory. Methods with a body are defaults that a layout may override."""

    chooses_once: bool
    """Whether one choice, made before the prompt is read, is used by all layers; else each layer makes its own."""
    units_are_texts: bool
    """Whether a unit is a piece of text, so that its neighbours, words and sentences can be used."""
    scores_short_term: bool
    """Whether units of short-term memory are scored too, so that the most relevant of all can be read last."""
    writes_together: bool
    """Whether several chunks may enter short-term memory at once, with the same result as one after the other."""

    @abstractmethod
    def tracks(self, num_layers: int, recall_layer: int) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Groups of layers that recall the same tokens, each with the layer whose states are scored for it."""

    @abstractmethod
    def units(self, chunks: Chunks) -> Units:
        """The units of a pool: tokens that are recalled together."""

    # --- short-term memory ------------------------------------------------------------------------

    @abstractmethod
    def evict(self, chunks: Chunks, num_new: int, capacity: int, generator: torch.Generator) -> Eviction:
        """Which tokens stay in short-term memory when ``num_new`` tokens have been added at its end.

        Args:
            chunks: Chunk numbers of [short-term ; new].
            num_new: How many of the tokens are new.
            capacity: Most tokens that stay.
            generator: Source of randomness.
        """

    def aged(self, ages: Ages, by: int, config: MemoryConfig) -> Ages:
        """Ages in short-term memory after ``by`` more tokens have been written."""
        return ages + by

    def num_returning(self, chunks: Chunks, room: int) -> int:
        """How many of a pool's newest tokens return to short-term memory after forgetting freed ``room`` tokens."""
        return 0

    def saved_apart(self, chunks: Chunks) -> list[int]:
        """Sizes of the pieces of short-term memory that are saved in separate files, which later saves keep."""
        return [len(chunks)]

    # --- recall -----------------------------------------------------------------------------------

    @abstractmethod
    def choose(self, ranked: Ranked, config: MemoryConfig) -> Int[Tensor, " chosen"]:
        """Which units are recalled, in ascending order."""

    def standing_last(self, ranked: Ranked, chosen: Int[Tensor, " chosen"]) -> list[int]:
        """Units that are read last, next to the prompt, in order; all others are read oldest first."""
        return []

    def unscored(self, ages: Ages, config: MemoryConfig) -> Index | None:
        """Long-term tokens that are recalled regardless of the question, in reading order; None if scores decide."""
        return None


def choose_units(relevance: Float[Tensor, " U"], sizes: Int[Tensor, " U"], budget: int) -> Int[Tensor, " chosen"]:
    """The most relevant units that fit into ``budget`` tokens, the best first, the earlier first among equals.

    A unit that does not fit ends the choice: a smaller, less relevant one must not displace it.
    """
    # Every unit has at least one token, so at most ``budget`` units fit, and only those are sorted.
    most = min(budget, len(relevance))
    if not most:
        return torch.empty(0, dtype=torch.int64)
    known, held = relevance.numpy(), sizes.numpy()
    best = np.flatnonzero(known >= np.partition(known, -most)[-most])
    order = best[(-known[best]).argsort(kind="stable")]
    return torch.from_numpy(order[: int((held[order].cumsum() <= budget).sum())])
