"""The gate: whether a question needs memory at all, or is one that the plain backbone answers."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mplus.recall.scorer import Normed

NUM_FIGURES = 4
"""Figures of recall that the gate sees beside the question."""


class BestUnit(NamedTuple):
    """How well the best unit of a memory matches a question.

    Attributes:
        relevance: Above that of an average unit; says little where there are few.
        match: The same without an average taken off.
        shared: Largest share of the question's words that stand in one unit.
        num_units: Units in memory.
    """

    relevance: float
    match: float
    shared: float
    num_units: int


NOTHING = BestUnit(0.0, 0.0, 0.0, 0)
"""Of an empty memory."""


class Gate(nn.Module):
    """Probability that a question is about what was told: about the user, or about texts in memory.

    A small network sees the mean of the question's states at the recall layer, how well the best chunk matches, how
    many of its words stand in one chunk, and how many chunks there are. What was never told about the user still needs
    memory: it is declined there.
    """

    def __init__(self, mean: Float[Tensor, " D"], deviation: Float[Tensor, " D"], hidden: int = 32) -> None:
        super().__init__()
        self.mean = nn.Buffer(mean)
        self.deviation = nn.Buffer(deviation)
        self.first = nn.Linear(len(mean) + NUM_FIGURES, hidden)
        self.last = nn.Linear(hidden, 1)

    def seen(self, normed: Normed, best: BestUnit) -> Float[Tensor, " F"]:
        """What the gate looks at.

        Args:
            normed: The question's states at the recall layer, [row, size].
            best: How well memory matches it.
        """
        question = ((normed.to(self.mean) - self.mean) / self.deviation).mean(dim=0)
        figures = [10 * best.relevance, 10 * best.match, 4 * best.shared, math.log1p(best.num_units)]
        return torch.cat([question, question.new_tensor(figures)])

    def logits(self, seen: Float[Tensor, "B F"]) -> Float[Tensor, " B"]:
        """Log-odds that memory is needed."""
        return self.last(functional.gelu(self.first(seen)))[:, 0]

    @torch.no_grad()
    def probability(self, normed: Normed, best: BestUnit) -> float:
        """Probability that the question needs memory."""
        return float(self.logits(self.seen(normed, best)[None]).sigmoid())
