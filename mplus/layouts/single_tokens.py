"""Single tokens: the layout of the published model, its defects included (spec section 8).

Each layer keeps and recalls its own tokens; tokens are evicted from short-term memory at random.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.layout import Chunks, Eviction, Layout, Ranked, Units, choose_units
from mplus.shapes import Ages, Index


class SingleTokens(Layout):
    """Every token is a unit of its own."""

    chooses_once = False
    units_are_texts = False
    scores_short_term = False
    writes_together = False

    def tracks(self, num_layers: int, recall_layer: int) -> tuple[tuple[tuple[int, ...], int], ...]:
        """One group for each layer, scored by its own states."""
        return tuple(((layer,), layer) for layer in range(num_layers))

    def units(self, chunks: Chunks) -> Units:
        """Each token is a unit."""
        return Units(torch.arange(len(chunks)), torch.ones(len(chunks), dtype=torch.int64))

    def evict(self, chunks: Chunks, num_new: int, capacity: int, generator: torch.Generator) -> Eviction:
        """Evict random tokens."""
        return random_eviction(torch.randperm(len(chunks) - num_new, generator=generator), num_new, capacity)

    def aged(self, ages: Ages, by: int, config: MemoryConfig) -> Ages:
        """With ``ages_stop_in_short_term`` ages do not grow, so long-term memory is not in the order of writing."""
        return ages if config.ages_stop_in_short_term else ages + by

    def choose(self, ranked: Ranked, config: MemoryConfig) -> Int[Tensor, " chosen"]:
        """The most relevant tokens."""
        stored = ranked.num_stored
        best_first = choose_units(ranked.relevance[:stored], ranked.sizes[:stored], config.recalled_tokens)
        return best_first.sort().values

    def unscored(self, ages: Ages, config: MemoryConfig) -> Index | None:
        """With n < R long-term tokens: the last R of 0 … n-1 repeated; pending tokens are ignored. Else None."""
        budget, count = config.recalled_tokens, len(ages)
        if not config.repeat_short_recall or count >= budget:
            return None
        index = torch.arange(count).repeat(-(-budget // max(count, 1)))[-budget:]
        return index[ages[index].argsort(stable=True)].flip(0)


def random_eviction(permutation: Int[Tensor, " T"], num_new: int, capacity: int) -> Eviction:
    """Evict single tokens at random (spec section 4).

    Args:
        permutation: A permutation of the tokens before the new ones; its first (capacity - new) remain, in order.
        num_new: Number of new tokens; all of them stay.
        capacity: Most tokens that stay.
    """
    room = max(capacity - num_new, 0)
    new = torch.arange(len(permutation), len(permutation) + num_new)
    return Eviction(torch.cat([permutation[:room].sort().values, new]), permutation[room:].sort().values)
