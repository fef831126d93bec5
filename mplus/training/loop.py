"""The training loop: steps, learning rates, checkpoints that survive a kill, one log line in a while.

On accelerate: one process or many, each with samples of its own; gradients are averaged over the processes.
Everything random in a step is a function of the seed and the step's number, so a run that was killed goes on
as if it had not been.
"""

import json
import random
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.errors import CheckpointError
from mplus.storage.folder import Folder
from mplus.storage.whole_folder import sync_tree
from mplus.training.run_folder import Log
from mplus.training.run_settings import RunSettings
from mplus.training.stopping import StoppedError, stop_signals
from mplus.training.task import Task

TENSORS, PROGRESS = "training.safetensors", "training.json"


def train(
    task: Task,
    accelerator: Accelerator,
    folder: Path,
    log: Log,
    *,
    seed: int = 0,
    save_every: int = 100,
    log_every: int = 10,
) -> None:
    """Train a task to its last step, from its last checkpoint in ``folder`` if there is one.

    One process saves a checkpoint when a signal asks it to stop; of several, each would stop at a step of its own.

    Raises:
        CheckpointError: A checkpoint is of another number of processes, or cannot be read.
        StoppedError: A signal has asked for it.
    """
    groups = task.groups()
    leaves = {name: leaf for group in groups.values() for name, leaf in group.items()}
    optimizer = torch.optim.AdamW(
        [{"params": list(group.values()), "group": name} for name, group in groups.items()],
        lr=0.0,
        betas=task.betas,
        weight_decay=0.0,
    )
    checkpoints = Checkpoints(folder, accelerator)
    done = checkpoints.load(task, leaves, optimizer)
    log.cut(task.name, done)
    figures: dict[str, list[float]] = {}
    started = time.perf_counter()
    signals = stop_signals() if accelerator.num_processes == 1 else nullcontext(lambda: 0)
    with log.progress(task.name, done, task.steps) as advance, signals as stopping:
        for step in range(done, task.steps):
            for group in optimizer.param_groups:
                group["lr"] = task.learning_rate(group["group"], step)
            optimizer.zero_grad()
            for number in range(task.batch):
                torch.manual_seed(_step_seed(seed, task.name, step, number, accelerator.process_index))
                lowered = task.loss(step, number)
                accelerator.backward(lowered.loss / task.batch)
                for name, value in lowered.figures.items():
                    figures.setdefault(name, []).append(value)
            average_gradients(accelerator, list(leaves.values()))
            accelerator.clip_grad_norm_(leaves.values(), task.clip)
            optimizer.step()
            advance()
            asked = stopping()
            is_measured = (step + 1) % save_every == 0 or step + 1 == task.steps
            is_saved = is_measured or asked  # whoever asks may not wait for figures
            # A checkpoint closes the means of the log, so that a run which goes on from it logs the same.
            if is_saved or (step + 1) % log_every == 0:
                rates = {group["group"]: group["lr"] for group in optimizer.param_groups}
                means = {name: sum(values) / len(values) for name, values in sorted(figures.items())}
                spent = (time.perf_counter() - started) / (step + 1 - done)
                log.write(task.name, step + 1, means, learning_rates=rates, seconds_per_step=round(spent, 3))
                figures = {}
            if is_saved:
                measured = task.measure() if is_measured else {}
                if measured:
                    log.write(task.name, step + 1, measured)
                checkpoints.save(task, leaves, optimizer, step + 1)
            if asked:
                log.say(f"Stopped behind step {step + 1} of {task.steps}; --resume goes on.")
                raise StoppedError(128 + asked)


def train_task(task: Task, accelerator: Accelerator, folder: Path, log: Log, settings: RunSettings) -> TrainedParts:
    """Train a task to its last step, as a run's settings say; returns the parts it left."""
    train(
        task,
        accelerator,
        folder,
        log,
        seed=settings.seed,
        save_every=settings.save_every,
        log_every=settings.log_every,
    )
    return read_parts(Checkpoints(folder, accelerator).parts())


def average_gradients(accelerator: Accelerator, leaves: list[nn.Parameter]) -> None:
    """The mean of every leaf's gradient over all processes.

    In one flat message. A leaf without gradient in any process keeps none, so that its optimizer state
    rests; one without gradient in this process alone counts as zero.
    """
    if accelerator.num_processes == 1:
        return
    device = accelerator.device
    has_gradient = torch.tensor([float(leaf.grad is not None) for leaf in leaves], device=device)
    somewhere = _summed(accelerator, has_gradient) > 0
    taking_part = [leaf for leaf, wanted in zip(leaves, somewhere.tolist(), strict=True) if wanted]
    flat = torch.cat([(torch.zeros_like(x) if x.grad is None else x.grad).flatten() for x in taking_part])
    flat = _summed(accelerator, flat) / accelerator.num_processes
    for leaf, gradient in zip(taking_part, flat.split([leaf.numel() for leaf in taking_part]), strict=True):
        leaf.grad = gradient.view_as(leaf).clone()


def _summed(accelerator: Accelerator, tensor: Tensor) -> Tensor:
    summed: Any = accelerator.reduce(tensor, reduction="sum")
    return summed


def _step_seed(*place: object) -> int:
    return random.Random("/".join(map(str, place))).getrandbits(63)


class Checkpoints:
    """Checkpoints of one task in one folder; the last complete one counts.

    A checkpoint is written beside its place and put there by one rename, after everything in it is on disk.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        self._accelerator = accelerator

    def save(self, task: Task, leaves: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
        """Save everything that the next step depends on, and the trained parts."""
        accelerator = self._accelerator
        writing, place = self.folder / f".step-{step:08}", self.folder / f"step-{step:08}"
        if accelerator.is_main_process:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
        accelerator.wait_for_everyone()
        mine = writing / f"process-{accelerator.process_index}"
        mine.mkdir()
        task.save_process(mine)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _save_tensors(writing / TENSORS, leaves, optimizer)
            progress = {"step": step, "processes": accelerator.num_processes}
            (writing / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            (writing / "parts").mkdir()
            write_parts(writing / "parts", task.trained())
            sync_tree(writing)
            shutil.rmtree(place, ignore_errors=True)
            writing.replace(place)
            Folder(self.folder).sync()  # before the older ones go
            for older in self._complete()[:-1]:
                shutil.rmtree(older)
        accelerator.wait_for_everyone()

    def load(self, task: Task, leaves: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Go back to the last checkpoint; returns the steps done then, 0 where there is none."""
        complete = self._complete()
        if not complete:
            return 0
        place, accelerator = complete[-1], self._accelerator
        progress = json.loads((place / PROGRESS).read_text(encoding="utf-8"))
        if progress["processes"] != accelerator.num_processes:
            raise CheckpointError(
                f"{place}: saved by {progress['processes']} processes, this run has {accelerator.num_processes}. Each "
                "has a memory of its own: go on with as many."
            )
        _load_tensors(place / TENSORS, leaves, optimizer)
        task.load_process(place / f"process-{accelerator.process_index}")
        return int(progress["step"])

    def parts(self) -> Path:
        """The trained parts of the last checkpoint."""
        return self._complete()[-1] / "parts"

    def _complete(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _save_tensors(path: Path, leaves: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, leaf in leaves.items():
        tensors[f"leaf.{name}"] = leaf.detach()
        for kind, value in optimizer.state.get(leaf, {}).items():
            tensors[f"optimizer.{kind}.{name}"] = value
    save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, str(path))


def _load_tensors(path: Path, leaves: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(path))
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(tensors[f"leaf.{name}"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit what is trained ({error}). Start another run.") from error
    for name, leaf in leaves.items():
        state: dict[str, Tensor] = {}
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            value = tensors.get(f"optimizer.{kind}.{name}")
            if value is not None:
                state[kind] = value if kind == "step" else value.to(leaf.device)
        if state:
            optimizer.state[leaf] = state
