"""Forcing files to disk without waiting for the disk: milliseconds of every save, and no test cuts the power.

What is killed in ``tests/reliability`` really forces, and at full length all of it does.
"""

import os
from typing import Any


def _only_checked(handle: Any) -> None:
    """Refuse what ``os.fsync`` refuses, and force nothing."""
    os.fstat(handle if isinstance(handle, int) else handle.fileno())


def without_waiting() -> None:
    """From now on ``os.fsync`` of this process waits for nothing."""
    if os.environ.get("MPLUS_RELIABILITY") != "full":
        os.fsync = _only_checked
