"""A run's folder: what was asked for, what happened, what was trained.

settings.json         everything that was asked for; going on takes it from here
log.jsonl             one line per figure that was logged
stages/<name>/        checkpoints of a stage, and parts/ once it is finished
model/                the trained model, for ``MPlus.from_pretrained``
evaluation/           its answers and those of the model that training began with; table.md
"""

import itertools
import json
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mplus.given import path_of
from mplus.progress import Bars, is_watched


class Log:
    """Lines of JSON in a file, and the same in short on standard error."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """Log into ``path``; a process that is not the first one logs nothing."""
        self.path = path
        self._writes = writes

    def write(self, stage: str, step: int, figures: dict[str, float], **more: Any) -> None:
        """One line: a stage's figures after a step."""
        if not self._writes:
            return
        line = {"stage": stage, "step": step} | figures | more
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.say(f"{stage} step {step}: {shown}")

    def say(self, message: str) -> None:
        """Print a line on standard error; only in the first process."""
        if self._writes:
            tqdm.write(message, file=sys.stderr)  # above a bar that is shown
            sys.stderr.flush()

    def cut(self, stage: str, step: int) -> None:
        """Drop lines of a stage after a step: what was done after the last checkpoint is done again."""
        if not self._writes or not self.path.exists():
            return
        kept = [line for line in self._lines() if line["stage"] != stage or line["step"] <= step]
        temporary = self.path.with_suffix(".new")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:  # cut short by a kill
                continue

    @contextmanager
    def progress(self, stage: str, done: int, steps: int) -> Generator[Callable[[], None]]:
        """A bar on a terminal or in a notebook; yields what to call after every step."""
        steps_done = itertools.count(done + 1)
        with Bars("step") as bars:
            is_shown = self._writes and is_watched()
            yield lambda: bars(stage, next(steps_done), steps) if is_shown else None


class RunFolder:
    """Paths of a run.

    Args:
        path: Of the folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.model = path / "model"
        self.states = path / "states"
        self.evaluation = path / "evaluation"

    def stage(self, name: str) -> Path:
        """A stage's folder."""
        return self.path / "stages" / name

    def finished_parts(self, name: str) -> Path:
        """Trained parts of a finished stage; there only once it is."""
        return self.stage(name) / "parts"

    def log(self, *, writes: bool) -> Log:
        """The run's log."""
        return Log(self.path / "log.jsonl", writes=writes)

    def begin(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Note what was asked for, or check that it is what this run was begun with.

        Raises:
            ValueError: The folder holds a run and ``resume`` is not set, or it holds none and it is, or
                settings differ from those of the run.
        """
        path_of("out", self.path)
        if self.path.is_file():
            raise ValueError(f"out={str(self.path)!r} is a file; expected a folder for the run.")
        if resume and not self.settings.exists():
            raise ValueError(f"out={str(self.path)!r}: no run to resume. Leave --resume out to begin one.")
        if not resume:
            if any(self.path.glob("stages/*/*")):
                raise ValueError(f"out={str(self.path)!r} holds a run. Pass --resume to go on, or another --out.")
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "log.jsonl").unlink(missing_ok=True)
            temporary = self.settings.with_suffix(".new")
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            temporary.replace(self.settings)
            return
        known = self.known_settings()
        # Compared as files hold them: a tuple comes back as a list.
        asked = json.loads(json.dumps(settings))
        # What a run is asked at its end may change, and settings that it was begun without are as if not given.
        known["evaluate"] = asked.get("evaluate")
        changed = sorted(name for name in known if known[name] != asked.get(name))
        if changed:
            name = changed[0]
            raise ValueError(
                f"{name}={asked.get(name)!r}, but the run in {self.path} was begun with {known.get(name)!r}. Resume it "
                "with the same settings (or with none but --out), or begin another."
            )

    def known_settings(self) -> dict[str, Any]:
        """Settings that the run was begun with.

        Raises:
            ValueError: There are none, or they cannot be read.
        """
        try:
            return json.loads(self.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.settings}: not the settings of a run ({error}).") from error
