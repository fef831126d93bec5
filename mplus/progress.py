"""Progress of long operations, passed to a callback or shown as a bar in terminals and notebooks."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from mplus.given import refused

Progress = Callable[[int, int], None]
"""Called with the work done and the total."""
StageProgress = Callable[[str, int, int], None]
"""Called with the name of the stage, the work done and the total."""


class Bars:
    """tqdm bars, one for each stage; called with the stage, the work done and the total.

        with Bars("token") as bars:
            bars("writing", 128, 4096)

    In a notebook bars are widgets (``pip install ipywidgets``), elsewhere lines on standard error.

    Args:
        unit: What is counted.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage; a new stage begins a new bar."""
        if self._bar is None or stage != self._stage:
            from tqdm.auto import tqdm  # slow to import: it looks for a notebook

            self.close()
            self._stage = stage
            self._bar = tqdm(desc=stage, total=total, initial=done, unit=self.unit, unit_scale=True)
        elif total != self._bar.total:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """End the present bar, which stays visible."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def followed(progress: bool | Progress | None, stage: str, unit: str) -> Generator[Progress | None]:
    """The callback of an operation: the given one, a bar for True, None for False and None."""
    _check(progress)
    with Bars(unit) as bars:
        yield partial(bars, stage) if progress is True else progress or None


@contextmanager
def followed_by_stage(progress: bool | StageProgress | None, unit: str) -> Generator[StageProgress | None]:
    """The callback of an operation with several stages; see ``followed``."""
    _check(progress)
    with Bars(unit) as bars:
        yield bars if progress is True else progress or None


def _check(progress: Any) -> None:
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise refused("progress", progress, "True for a bar, a function, or None")


def is_watched() -> bool:
    """Whether standard error is a terminal or a notebook, where bars can be drawn."""
    kernel = sys.modules.get("ipykernel.zmqshell")
    ipython = sys.modules.get("IPython")
    is_notebook = kernel is not None and ipython is not None and ipython.get_ipython() is not None
    return is_notebook or sys.stderr.isatty()
