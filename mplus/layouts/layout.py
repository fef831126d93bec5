"""``Layout``: what differs between memories that keep whole chunks and memories that keep single tokens.

A layout decides by numbers alone: which tokens stand together, how old they are, how relevant. It holds no tokens and
computes no relevance. ``mplus.memory`` asks it what leaves and what comes back, ``mplus.recall`` what is chosen,
``mplus.weights`` which layers share a choice.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.shapes import Ages, Index

Pool = TypeVar("Pool")
Chunks = Int[Tensor, " T"]
"""Serial number of the chunk that each token was written with; tokens of one chunk follow one another."""


@dataclass(frozen=True)
class Units:
    """Runs of tokens of one pool that are recalled together, in the order in which they stand there."""

    starts: Int[Tensor, " U"]
    sizes: Int[Tensor, " U"]

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, index: Int[Tensor, " u"]) -> "Units":
        """The units at ``index``, in that order."""
        return Units(self.starts[index], self.sizes[index])

    def tokens(self) -> Index:
        """Places of all their tokens in the pool."""
        first = self.sizes.cumsum(0) - self.sizes
        return torch.arange(int(self.sizes.sum())) + (self.starts - first).repeat_interleave(self.sizes)


class Eviction(NamedTuple):
    """What a write does to short-term memory, as places in [short-term ; new]."""

    remaining: Index
    evicted: Index


@dataclass(frozen=True)
class Ranked:
    """Units of recall and how relevant each is: first those that can be recalled, then those that are read anyway."""

    relevance: Float[Tensor, " U"]
    average: float
    """Relevance of an average unit."""
    sizes: Int[Tensor, " U"]
    """Tokens of each."""
    chunks: Int[Tensor, " U"]
    """Serial number of the chunk that each belongs to: higher ones were written later."""
    goes_on: Bool[Tensor, " U"] | None
    """Which units go on where the one before them ends; None where units are no texts."""
    num_stored: int
    """How many can be recalled."""

    def read(self, chosen: Int[Tensor, " chosen"]) -> Int[Tensor, " read"]:
        """What is recalled, and what is read anyway."""
        return torch.cat([chosen, torch.arange(self.num_stored, len(self.sizes))])


class Layout(ABC):
    """One way to lay out a memory. Methods with a body say what holds unless a layout says otherwise."""

    chooses_once: bool
    """Whether one choice, made before the prompt is read, serves all layers; else each layer makes its own."""
    writes_together: bool
    """Whether several chunks may enter short-term memory at once, as if one after the other."""

    @abstractmethod
    def tracks(self, num_layers: int, recall_layer: int) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Groups of layers that share their choices, each with the layer whose states are scored for it."""

    @abstractmethod
    def units(self, chunks: Chunks) -> Units:
        """What of a pool is recalled together."""

    # --- short-term memory ------------------------------------------------------------------------

    @abstractmethod
    def evict(self, chunks: Chunks, num_new: int, capacity: int, generator: torch.Generator) -> Eviction:
        """What stays in short-term memory when ``num_new`` tokens have come in at its end.

        Args:
            chunks: Of [short-term ; new].
            num_new: How many of them are new.
            capacity: Most tokens that stay.
            generator: For what is random.
        """

    def aged(self, ages: Ages, by: int, config: MemoryConfig) -> Ages:
        """Ages in short-term memory after ``by`` more tokens have been written."""
        return ages + by

    def num_returning(self, chunks: Chunks, room: int) -> int:
        """How many of a pool's newest tokens come back to short-term memory where forgetting made room."""
        return 0

    def saved_apart(self, chunks: Chunks) -> list[int]:
        """Sizes of the pieces of short-term memory that are saved each by itself, so that later saves keep them."""
        return [len(chunks)]

    # --- recall -----------------------------------------------------------------------------------

    @abstractmethod
    def scored(self, stored: tuple[Pool, ...], short_term: Pool) -> tuple[Pool, ...]:
        """The pools whose units are scored: the stored ones, and short-term memory where its units are compared too."""

    @abstractmethod
    def goes_on(self, chunks: Int[Tensor, " U"], sources: Int[Tensor, " U"]) -> Bool[Tensor, " U"] | None:
        """Which units go on where the one before them ends, by chunk and source; None where units are no texts."""

    @abstractmethod
    def choose(self, ranked: Ranked, config: MemoryConfig) -> Int[Tensor, " chosen"]:
        """Which units are recalled, in ascending order."""

    def standing_last(self, ranked: Ranked, chosen: Int[Tensor, " chosen"]) -> list[int]:
        """Units that stand nearest to the prompt, in order; all others stand oldest first."""
        return []

    def unscored(self, ages: Ages, config: MemoryConfig) -> Index | None:
        """What is recalled whatever is asked, of long-term tokens of these ages, as it is read; None: scores decide."""
        return None


def choose_units(relevance: Float[Tensor, " U"], sizes: Int[Tensor, " U"], budget: int) -> Int[Tensor, " chosen"]:
    """The most relevant units that fit into ``budget`` tokens, best first, the earlier one among equals.

    A unit that does not fit ends the choice: a smaller, less relevant one must not displace it.
    """
    # Every unit has a token, so no more than ``budget`` units fit: only those are put in order.
    most = min(budget, len(relevance))
    if not most:
        return torch.empty(0, dtype=torch.int64)
    worst = relevance.topk(most).values[-1]
    best = (relevance >= worst).nonzero().flatten()
    order = best[relevance[best].argsort(descending=True, stable=True)]
    fits = sizes[order].cumsum(0) <= budget
    return order[: int(fits.sum())]
