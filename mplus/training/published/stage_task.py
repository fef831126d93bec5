"""A stage of the published recipe as the loop trains it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from mplus.checkpoint.parts import TrainedParts
from mplus.memory.memory import Memory
from mplus.training.chunk.plain_text import Episodes
from mplus.training.published.objective import Autocast, PublishedObjective, Remembered
from mplus.training.published.stages import Stage
from mplus.training.published.trained_modules import TrainableParts
from mplus.training.task import StepLoss, Task

REPLAYED = "replayed.json"
HELD_OUT_EPISODES = 8


class PublishedTask(Task):
    """One stage: its objective, what belongs to this process, and the parts as they stand.

    Args:
        parts: What is trained.
        stage: Shares, sizes and rates.
        episodes: To train on.
        held_out: To measure on; None measures nothing.
        start: Parts of the model that this stage leaves as they are.
        seed: Decides all that is random.
        process: Number of this process.
        autocast: Mixed precision for whatever is computed.
    """

    def __init__(
        self,
        parts: TrainableParts,
        stage: Stage,
        episodes: Episodes,
        *,
        held_out: Episodes | None = None,
        start: TrainedParts | None = None,
        seed: int = 0,
        process: int = 0,
        autocast: Autocast | None = None,
    ) -> None:
        self.name, self.steps, self.batch, self.clip = stage.name, stage.steps, stage.batch, stage.clip
        self._parts, self._stage, self._held_out = parts, stage, held_out
        self._start = start or TrainedParts()
        memory = parts.new_memory(seed=seed + process, config=stage.memory_in_training)
        self.objective = PublishedObjective(
            parts, stage, episodes, memory, seed=seed, process=process, autocast=autocast
        )

    def groups(self) -> Mapping[str, Mapping[str, nn.Parameter]]:
        """Adapters and vectors; the retriever, where this stage trains it."""
        named = self._parts.named()
        retriever = {name: leaf for name, leaf in named.items() if name.startswith("published.")}
        adapters = {name: leaf for name, leaf in named.items() if name not in retriever}
        return {"adapters": adapters, "retriever": retriever} if self._stage.has_retriever else {"adapters": adapters}

    def learning_rate(self, group: str, step: int) -> float:
        """Falls in a straight line; the retriever's stays."""
        stage = self._stage
        if group == "retriever":
            return stage.retriever_learning_rate
        return stage.learning_rate + (stage.final_learning_rate - stage.learning_rate) * step / max(stage.steps - 1, 1)

    def loss(self, step: int, number: int) -> StepLoss:
        """The loss of one of a step's samples."""
        return self.objective.loss(step, number)

    def measure(self) -> dict[str, float]:
        """Loss on held-out texts, with and without their beginning in memory."""
        return {} if self._held_out is None else self.objective.held_out(self._held_out, HELD_OUT_EPISODES)

    def save_process(self, folder: Path) -> None:
        """This process's memory, and what it may replay."""
        self.objective.memory.save(folder / "memory")
        replayed = [asdict(remembered) for remembered in self.objective.replayed]
        (folder / REPLAYED).write_text(json.dumps(replayed), encoding="utf-8")

    def load_process(self, folder: Path) -> None:
        """Load what ``save_process`` saved."""
        self.objective.memory = Memory.load(folder / "memory", self._parts)
        saved: list[dict[str, Any]] = json.loads((folder / REPLAYED).read_text(encoding="utf-8"))
        self.objective.replayed = [
            Remembered(tuple(r["target"]), int(r["first_chunk"]), int(r["stop_chunk"])) for r in saved
        ]

    def trained(self) -> TrainedParts:
        """The trained parts as they stand."""
        return self._parts.trained(self._start, self._stage.memory)
