"""Processes that die or live beside others: forks, which have imported everything already."""

import os
from collections.abc import Callable


def fork(work: Callable[[], object]) -> int:
    """A child process that does some work."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child
