"""Checkpoints, resuming after a kill, and several processes."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mplus.errors import CheckpointError
from mplus.testing import tiny_model
from mplus.training.loop import train
from mplus.training.published.stage_task import PublishedTask
from mplus.training.published.trained_modules import PartSizes, TrainableParts
from mplus.training.run_folder import Log
from tests.training.published.stages import episodes, stage

ROOT = Path(__file__).parent.parent.parent
STEPS = 7


class Killed(Exception):
    """Raised where a test stops a run."""


def task(process: int = 0) -> tuple[PublishedTask, TrainableParts]:
    model = tiny_model(num_hidden_layers=2)
    parts = TrainableParts(model.weights.backbone, PartSizes(rank=3, retriever_size=8))
    drawn = episodes(model.tokenizer)
    layout = stage(steps=STEPS, learning_rate=1e-2, final_learning_rate=1e-3)
    return PublishedTask(parts, layout, drawn, process=process), parts


def run(doing: PublishedTask, folder: Path, accelerator: Accelerator | None = None) -> None:
    folder.mkdir(exist_ok=True)
    accelerator = accelerator or Accelerator(cpu=True)
    log = Log(folder / "log.jsonl", writes=accelerator.is_main_process)
    train(doing, accelerator, folder / "checkpoints", log, save_every=3, log_every=2)


def lines(folder: Path) -> list[dict]:
    read = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in read]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bit for bit holds for one number of threads: the processes that are started here have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[PublishedTask, dict[str, torch.Tensor], Path]:
    """A run that nothing stopped: with dropout, replay, long-term memory and random evictions."""
    doing, parts = task()
    folder = tmp_path_factory.mktemp("whole")
    run(doing, folder)
    return doing, {name: leaf.detach() for name, leaf in parts.named().items()}, folder


def assert_same_leaves(parts: TrainableParts, expected: dict[str, torch.Tensor]) -> None:
    for name, leaf in parts.named().items():
        assert torch.equal(leaf, expected[name]), name


def test_a_run_that_was_stopped_goes_on_bit_for_bit(whole, tmp_path: Path) -> None:
    """Between two checkpoints."""
    doing, expected, folder = whole
    stopped, _ = task()
    loss = stopped.loss

    def dying(step: int, number: int):
        if step == 5:
            raise Killed
        return loss(step, number)

    stopped.loss = dying
    with pytest.raises(Killed):
        run(stopped, tmp_path)
    again, found = task()
    run(again, tmp_path)
    assert_same_leaves(found, expected)
    assert again.objective.memory.fingerprint == doing.objective.memory.fingerprint
    assert again.objective.replayed == doing.objective.replayed
    assert len(doing.objective.memory.state.tracks[0].long_term) and doing.objective.replayed
    assert lines(tmp_path) == lines(folder)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{STEPS:08}"]


def test_half_a_checkpoint_is_none(whole, tmp_path: Path) -> None:
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    place = tmp_path / "checkpoints" / f"step-{STEPS:08}"
    place.rename(place.with_name(f".step-{STEPS:08}"))  # as a kill leaves it, before the rename
    again, found = task()
    taken: list[int] = []
    loss = again.loss
    again.loss = lambda step, number: taken.append(step) or loss(step, number)
    run(again, tmp_path)
    assert taken == list(range(STEPS)), "begun anew"
    assert_same_leaves(found, whole[1])


def test_a_checkpoint_of_other_leaves_or_processes_is_refused(whole, tmp_path: Path) -> None:
    shutil.copytree(whole[2], tmp_path, dirs_exist_ok=True)
    model = tiny_model(num_hidden_layers=2)
    other = TrainableParts(model.weights.backbone, PartSizes(rank=5, retriever_size=8))
    with pytest.raises(CheckpointError, match="does not fit"):
        run(PublishedTask(other, stage(steps=STEPS), episodes(model.tokenizer)), tmp_path)
    progress = tmp_path / "checkpoints" / f"step-{STEPS:08}" / "training.json"
    progress.write_text(json.dumps({"step": STEPS, "processes": 4}))
    with pytest.raises(CheckpointError, match="4 processes, this run has 1"):
        run(task()[0], tmp_path)


def python(*arguments: str, **environment: str) -> subprocess.Popen:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        [sys.executable, *arguments], env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_killed_and_gone_on_with(whole, tmp_path: Path) -> None:
    """SIGKILL, at whatever moment it comes: the run ends as if nothing had happened."""
    if os.name == "nt":
        pytest.skip("no SIGKILL on Windows")
    killed = python("-c", f"from tests.training.test_loop import *; run(task()[0], Path({str(tmp_path / 'killed')!r}))")
    saved = tmp_path / "killed" / "checkpoints"
    limit = time.monotonic() + 120
    while not list(saved.glob("step-*")) and killed.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(random.random() / 3)
    killed.send_signal(signal.SIGKILL)
    output = killed.communicate()[0]
    assert list(saved.glob("step-*")), output
    again, found = task()
    run(again, tmp_path / "killed")
    assert_same_leaves(found, whole[1])
    assert lines(tmp_path / "killed") == lines(whole[2])


TWO = """
from tests.training.test_loop import *
from mplus.training.loop import average_gradients

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
assert accelerator.num_processes == 2

leaves = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
leaves[0].grad = torch.full((3,), float(rank + 1))
if rank == 1:
    leaves[1].grad = torch.ones(3)
average_gradients(accelerator, leaves)
assert leaves[0].grad.tolist() == [1.5] * 3, "the mean"
assert leaves[1].grad.tolist() == [0.5] * 3, "none counts as zero where another has one"
assert leaves[2].grad is None, "none stays none"

doing, parts = task(rank)
run(doing, Path(sys.argv[1]), accelerator)
mine = torch.cat([leaf.detach().flatten() for leaf in parts.named().values()])
both = accelerator.gather(mine[None])
assert torch.equal(both[0], both[1]), "processes parted"
print("fingerprint", doing.objective.memory.fingerprint)
accelerator.wait_for_everyone()  # the first process keeps the store that the others talk to
accelerator.end_training()
sys.stdout.flush()
os._exit(0)  # a thread of the process group may abort the interpreter's end, when all that is asked for is done
"""


def test_two_processes_train_one_model_on_samples_of_their_own(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        python("-c", TWO, str(tmp_path), RANK=str(n), LOCAL_RANK=str(n), ACCELERATE_USE_CPU="true", **shared)
        for n in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    fingerprints = [output.split("fingerprint ")[1].strip() for output in outputs]
    assert fingerprints[0] != fingerprints[1]
    place = tmp_path / "checkpoints" / f"step-{STEPS:08}"
    assert sorted(p.name for p in place.glob("process-*")) == ["process-0", "process-1"]
