"""What belongs to one process: a forked child gets locks of its own, and no work that another process does.

A lock that another thread held at the moment of a fork stays locked in the child for ever, and the threads that would
do some work are not there. So locks are ``ProcessLock``, and what has threads is renewed in the child before it runs.
"""

import os
import sys
import threading
from typing import Protocol, runtime_checkable

from mplus.weak_identity_set import WeakIdentitySet


@runtime_checkable
class Renewed(Protocol):
    """An object with locks or threads of its own process."""

    def after_fork(self) -> None:
        """Begin anew in a child process: new locks, and nothing that a thread of the parent was to do."""
        ...


_OWNERS = WeakIdentitySet[Renewed]()


def renewed_after_fork(owner: Renewed) -> None:
    """Have ``owner.after_fork()`` called in every child process, for as long as ``owner`` lives."""
    _OWNERS.add(owner)


class ProcessLock:
    """A reentrant lock for ``with``, which a forked child never waits for in vain.

    What another thread of the parent holds is free in the child; what the forking thread holds itself it holds there
    too. Objects that have one are renewed by it, and need no ``after_fork`` of their own.
    """

    def __init__(self) -> None:
        self._begin()
        renewed_after_fork(self)

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._holder: int | None = None
        self._depth = 0

    def after_fork(self) -> None:
        """Begin with a free lock, unless the only thread that is left holds it."""
        if self._holder != threading.get_ident():
            self._begin()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = threading.get_ident()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
        self._lock.release()


def _renew() -> None:
    for owner in _OWNERS:
        owner.after_fork()
    torch = sys.modules.get("torch")
    if torch is not None:
        # The threads of a parallel computation are those of the parent; with one thread none is waited for.
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
