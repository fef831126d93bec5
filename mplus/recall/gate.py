"""The gate: whether a question needs memory at all, or is one that the plain backbone answers."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mplus.recall.scorer import Normed

NUM_FIGURES = 2
"""Figures of recall that the gate sees beside the question."""


class Gate(nn.Module):
    """Probability that a question is about what was told: about the user, or about texts in memory.

    A small network sees the mean of the question's states at the recall layer, how relevant the best chunk is, and how
    many chunks there are. What was never told about the user still needs memory: it is declined there.
    """

    def __init__(self, mean: Float[Tensor, " D"], deviation: Float[Tensor, " D"], hidden: int = 32) -> None:
        super().__init__()
        self.mean = nn.Buffer(mean)
        self.deviation = nn.Buffer(deviation)
        self.first = nn.Linear(len(mean) + NUM_FIGURES, hidden)
        self.last = nn.Linear(hidden, 1)

    def seen(self, normed: Normed, relevance: float, num_units: int) -> Float[Tensor, " F"]:
        """What the gate looks at.

        Args:
            normed: The question's states at the recall layer, [row, size].
            relevance: Relevance of the best unit above that of an average one.
            num_units: Units in memory.
        """
        question = ((normed.to(self.mean) - self.mean) / self.deviation).mean(dim=0)
        return torch.cat([question, question.new_tensor([10 * relevance, math.log1p(num_units)])])

    def logits(self, seen: Float[Tensor, "B F"]) -> Float[Tensor, " B"]:
        """Log-odds that memory is needed."""
        return self.last(functional.gelu(self.first(seen)))[:, 0]

    @torch.no_grad()
    def probability(self, normed: Normed, relevance: float, num_units: int) -> float:
        """Probability that the question needs memory."""
        return float(self.logits(self.seen(normed, relevance, num_units)[None]).sigmoid())
