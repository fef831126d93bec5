"""The heap of the server's process: one for all threads, so that what one has freed is there for the next."""

import ctypes
import os

_ARENA_MAX = -8
"""glibc's M_ARENA_MAX."""


def share_heap() -> bool:
    """Let all threads take memory from one arena; called before they start.

    By default glibc gives each thread an arena, up to eight for a core, and keeps in each what the thread has freed. A
    server's threads take turns at the same work, so that each arena grows to what an answer needs at most: after 40
    rounds of eight users 135 of 289 MiB were free, and the process still grew.

    Returns:
        Whether it was done: not where another C library is used, or where MALLOC_ARENA_MAX or GLIBC_TUNABLES say how
        many there are.
    """
    if "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    return bool(set_option(_ARENA_MAX, 1))
