"""Long-term memories made of known numbers."""

import torch

from mplus.memory.long_term import LongTermMemory
from mplus.memory.mapped import spilled
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance
from mplus.words import no_words

LAYERS = 3


def store(sizes: list[int], first: int = 0, *, on_disk: bool = False, dtype: str = "float32") -> LongTermMemory:
    """Tokens numbered from ``first`` on; layer n holds the number plus n / 8 as keys, its negative as values."""
    filled = LongTermMemory.empty()
    for size in sizes:
        number = torch.arange(first, first + size)
        keys = tuple((number + layer / 8)[:, None, None].repeat(1, 2, 4) for layer in range(LAYERS))
        segment = Segment.store(Content(keys, tuple(-k for k in keys), number[:, None].float()), dtype)
        known = Provenance(number, torch.ones(size, dtype=torch.float64), number, number, no_words(size))
        filled = filled.append(spilled(segment) if on_disk else segment, known)
        first += size
    return filled
