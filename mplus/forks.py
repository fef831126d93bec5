"""What belongs to one process: a forked child gets locks of its own, and no work that another process does.

A lock that another thread held at the moment of a fork stays locked in the child for ever, and the threads that would
do some work are not there. So everything that has locks or threads is renewed in the child before it runs.
"""

import os
import sys
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


def _renew() -> None:
    for owner in _OWNERS:
        owner.after_fork()
    torch = sys.modules.get("torch")
    if torch is not None:
        # The threads of a parallel computation are those of the parent; with one thread none is waited for.
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
