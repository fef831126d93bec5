"""Single tokens: the layout of the published model, its defects included (spec section 8).

Each layer remembers and recalls for itself; which tokens leave short-term memory is random.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.layout import Chunks, Eviction, Layout, Pool, Ranked, Units, choose_units
from mplus.shapes import Ages, Index


class SingleTokens(Layout):
    """Every token is a unit of its own."""

    chooses_once = False
    writes_together = False

    def tracks(self, num_layers: int, recall_layer: int) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Every layer by itself, scored by its own states."""
        return tuple(((layer,), layer) for layer in range(num_layers))

    def units(self, chunks: Chunks) -> Units:
        """Its tokens."""
        return Units(torch.arange(len(chunks)), torch.ones(len(chunks), dtype=torch.int64))

    def evict(self, chunks: Chunks, num_new: int, capacity: int, generator: torch.Generator) -> Eviction:
        """Random tokens leave."""
        return random_eviction(torch.randperm(len(chunks) - num_new, generator=generator), num_new, capacity)

    def aged(self, ages: Ages, by: int, config: MemoryConfig) -> Ages:
        """In the published model they stop, so that the order of long-term memory is not that of writing."""
        return ages if config.ages_stop_in_short_term else ages + by

    def scored(self, stored: tuple[Pool, ...], short_term: Pool) -> tuple[Pool, ...]:
        """Only what can be recalled."""
        return stored

    def goes_on(self, chunks: Int[Tensor, " U"], sources: Int[Tensor, " U"]) -> Bool[Tensor, " U"] | None:
        """A token is no text."""
        return None

    def choose(self, ranked: Ranked, config: MemoryConfig) -> Int[Tensor, " chosen"]:
        """The most relevant tokens."""
        stored = ranked.num_stored
        best_first = choose_units(ranked.relevance[:stored], ranked.sizes[:stored], config.recalled_tokens)
        return best_first.sort().values

    def unscored(self, ages: Ages, config: MemoryConfig) -> Index | None:
        """Where fewer than R are there: 0 … n-1 over and over, the last R of them; pending is ignored."""
        budget, count = config.recalled_tokens, len(ages)
        if not config.repeat_short_recall or count >= budget:
            return None
        index = torch.arange(count).repeat(-(-budget // max(count, 1)))[-budget:]
        return index[ages[index].argsort(stable=True)].flip(0)


def random_eviction(permutation: Int[Tensor, " T"], num_new: int, capacity: int) -> Eviction:
    """Single tokens leave at random (spec section 4).

    Args:
        permutation: Of the tokens before the new ones; the first capacity - new of them remain, in order.
        num_new: How many are new; they all stay.
        capacity: Most tokens that stay.
    """
    room = max(capacity - num_new, 0)
    new = torch.arange(len(permutation), len(permutation) + num_new)
    return Eviction(torch.cat([permutation[:room].sort().values, new]), permutation[room:].sort().values)
