"""The read adapter of the default layout as the loop trains it."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from mplus.backbone.cpu import computes_bfloat16
from mplus.checkpoint.parts import TrainedParts
from mplus.training.ahead import Batches
from mplus.training.chunk.read_adapter import Reader, ReaderSettings, in_half
from mplus.training.chunk.sample import SampleSource
from mplus.training.task import StepLoss, Task


class ReaderTask(Task):
    """Trains a read adapter on samples of what recall brings.

    Args:
        reader: The backbone with the adapter.
        samples: Where samples come from.
        settings: Steps, batch and rates.
        start: Parts of the model that stay as they are.
        name: Of the stage, for the log.
        processes: That draw samples ahead of the steps; 0: none but this one.
    """

    betas = (0.9, 0.98)

    def __init__(
        self,
        reader: Reader,
        samples: SampleSource,
        settings: ReaderSettings,
        start: TrainedParts,
        *,
        name: str = "reader",
        processes: int = 0,
    ) -> None:
        self.name = name
        self.steps = settings.steps
        self._reader, self._settings, self._start = reader, settings, start
        self._batches = Batches(samples, settings, processes)
        kind = reader.device.type
        is_lowered = computes_bfloat16() if kind == "cpu" else torch.cuda.is_bf16_supported()
        self._autocast = lambda: torch.autocast(kind, dtype=torch.bfloat16, enabled=is_lowered)
        reader.drop(settings.dropout)

    def groups(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """One group: the adapter."""
        return {"adapter": self._reader.parameters()}

    def learning_rate(self, group: str, step: int) -> float:
        """Rises over the warm-up, stays, and falls over the last steps."""
        settings = self._settings
        rising = (step + 1) / max(settings.warmup, 1)
        falling = max((settings.steps - step) / max(settings.decay, 1), 0.02)
        return settings.learning_rate * min(rising, falling, 1.0)

    def loss(self, step: int, number: int) -> StepLoss:
        """Mean loss of a batch, and of each kind of sample in it."""
        batch = self._batches.of(step)
        with self._autocast():
            losses = self._reader.loss(batch)
        kinds: dict[str, list[float]] = {}
        for sample, loss in zip(batch, losses.tolist(), strict=True):
            kinds.setdefault(sample.kind or "sample", []).append(loss)
        return StepLoss(losses.mean(), {kind: sum(seen) / len(seen) for kind, seen in kinds.items()})

    def trained(self) -> TrainedParts:
        """The model's parts, with this adapter for reading."""
        return replace(self._start, read_adapter=in_half(self._reader.linears))
