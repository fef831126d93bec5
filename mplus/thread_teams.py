"""Thread teams: gives back the helpers with which a thread has computed, so that those of another one stay awake.

torch divides an operation among the threads of a team. Every thread that computes gets a team of its own and keeps it
until it ends. Helpers of GNU's OpenMP wait awake between two operations, but only while the process has no more of them
than cores: beyond, they sleep after each operation, and waking them takes longer than most operations of one token.
A thread that has loaded a model and then waits for a server thread so makes that one a third slower.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
SOFT_PAUSE = 1
"""``omp_pause_soft`` of OpenMP 5.0: threads end, and what was set stays."""
_HOME = os.getpid()
"""The process that imported this."""


def give_back_team() -> None:
    """End the helpers of the calling thread; its next operation gets new ones, which takes a tenth of a millisecond.

    Does nothing where torch does not divide its work by GNU's OpenMP, nor in a forked child: helpers that its parent
    had are not there, and would be waited for.
    """
    if os.getpid() == _HOME and (pause := _pause()) is not None:
        pause(SOFT_PAUSE)


def gives_back_team(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator of what computes: the calling thread keeps no helpers when it returns or raises."""

    @wraps(function)
    def computes(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        finally:
            give_back_team()

    return computes


@cache
def _pause() -> Callable[[int], int] | None:
    """``omp_pause_resource_all`` of the OpenMP that torch brings; None if that is not GNU's."""
    import torch

    for file in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        library = ctypes.CDLL(str(file))  # the one that is loaded already
        return getattr(library, "omp_pause_resource_all", None)
    return None
