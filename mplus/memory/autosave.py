"""Saving at an interval while a memory is open."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress


@contextmanager
def autosaving(save: Callable[[], None], seconds: float) -> Generator[None]:
    """Call ``save`` every ``seconds`` until the block ends.

    A save that fails is tried again after the next interval. The save at the end of the block raises its error.
    """
    if not seconds > 0:
        raise ValueError(f"autosave_seconds={seconds!r}: expected a number above 0, or None for no autosave.")
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(seconds):
            with suppress(Exception):  # saving may write texts that wait, and so run the model
                save()

    thread = threading.Thread(target=work, name="mplus autosave", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
