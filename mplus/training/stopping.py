"""A run that is asked to stop (Ctrl+C, SIGTERM) ends behind a checkpoint; asked again, it ends at once."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


class StoppedError(SystemExit):
    """A run has stopped because a signal asked for it; the exit status is 128 and the signal's number."""


@contextmanager
def stop_signals() -> Generator[Callable[[], int]]:
    """Take the first Ctrl+C or SIGTERM as a wish; yields what tells its number, 0 before.

    Signals are left as they are outside the main thread, where Python lets nobody catch them, and where whoever started
    the run has it ignore them, as a shell does with Ctrl+C in the background.
    """
    asked = 0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = (n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None))
        before = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda: asked
    finally:
        restore()
