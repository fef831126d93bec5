"""Saving every so often in the background, while a memory is open."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from mplus.errors import MPlusError


@contextmanager
def autosaving(save: Callable[[], None], seconds: float) -> Generator[None]:
    """Call ``save`` every ``seconds`` until the block ends.

    A save that fails is tried again at the next turn; whoever opened the memory saves once more at
    the end, and hears of it then.

    Raises:
        ValueError: ``seconds`` is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"autosave_seconds={seconds!r}: expected a number above 0, or None for no autosave.")
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            try:
                save()
            except (MPlusError, OSError):
                continue

    thread = threading.Thread(target=work, name="mplus autosave", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
