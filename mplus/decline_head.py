"""The decline head: the probability that nothing of what was read answers a question."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

ReadAs = Literal["latent", "text"]


class DeclineHead(nn.Module):
    """Log-odds that memory does not answer, from the state of the prompt's last token within the model.

    A right answer can begin in many ways, so the probability of declining's first token says less than this state.
    A model that never learnt to decline knows there, too, whether it has found what it was asked for.

    Args:
        size: Size of a state [D].
        layer: Layer at whose input the state is taken.
        read: How memory was read where it was fitted; it does not count for other reads.
    """

    def __init__(self, size: int, layer: int, read: ReadAs) -> None:
        super().__init__()
        self.layer, self.read = layer, read
        self.state = nn.Linear(size, 1)
        self.own = nn.Parameter(torch.zeros(()))
        """Weight of the log-odds that the model itself gives to the first token of declining."""

    @torch.no_grad()
    def log_odds(self, states: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Log-odds by the states alone; the model's own, times ``own``, come on top.

        Args:
            states: The layer's normed input at the last token of each prompt.
        """
        return self.state(states.to(self.state.weight))[:, 0]
