"""What the training loop trains."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from mplus.checkpoint.parts import TrainedParts


class StepLoss(NamedTuple):
    """The loss of one step, and its figures for the log."""

    loss: Float[Tensor, ""]
    figures: dict[str, float]


@runtime_checkable
class Task(Protocol):
    """Leaves in groups, a loss per step, and whatever else must be saved."""

    name: str
    """Name of the stage, for the log."""
    steps: int
    """Steps in all."""
    batch: int = 1
    """Samples per step and process."""
    clip: float = 1.0
    """Largest norm of all gradients together."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the mean gradient and mean squared gradient."""

    def groups(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """Leaves by name, in groups that share a learning rate."""
        ...

    def learning_rate(self, group: str, step: int) -> float:
        """Learning rate of a group in a step."""
        ...

    def loss(self, step: int, number: int) -> StepLoss:
        """The loss of one of a step's samples."""
        ...

    def trained(self) -> TrainedParts:
        """The trained parts as they stand."""
        ...

    def measure(self) -> dict[str, float]:
        """Figures on held-out texts; may be empty."""
        return {}

    def save_process(self, folder: Path) -> None:
        """Save this process's own state: everything that the next step depends on beside the trained parameters."""

    def load_process(self, folder: Path) -> None:
        """Load what ``save_process`` saved."""
