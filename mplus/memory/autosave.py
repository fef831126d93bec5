"""Saving at an interval while a memory is open."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from mplus.given import check_number, refused


@contextmanager
def autosaving(save: Callable[[], None], seconds: float) -> Generator[None]:
    """Call ``save`` every ``seconds`` until the block ends.

    A save that fails is tried again after the next interval. The save at the end of the block raises its error.
    """
    expected = "a number above 0, or None for no autosave"
    check_number("autosave_seconds", seconds, expected)
    if not seconds:
        raise refused("autosave_seconds", seconds, expected)
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
