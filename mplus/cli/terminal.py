"""Tables, times and a progress bar on a terminal."""

import sys
import time
from collections.abc import Sequence
from typing import Any


def show(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table; not cut where standard output is no terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*headings, title=title and escape(title))
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def moment(seconds: float) -> str:
    """A time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


class AnswerBar:
    """A bar of answers on a terminal; elsewhere a line now and then."""

    EVERY = 20.0

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = ""
        self._last = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        """So many of a way's answers are there."""
        if not sys.stderr.isatty():
            self._line(f"{name}: {done:,} of {total:,} answers", is_last=done == total)
            return
        from tqdm import tqdm

        if name != self._name:
            self.close()
            self._bar, self._name = tqdm(total=total, unit="answer", desc=name), name
        self._bar.update(done - self._bar.n)

    def writing(self, done: int, total: int) -> None:
        """Texts are being written, which answers nothing yet."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"writing {done:,} of {total:,} tokens" if done < total else "")
        else:
            self._line(f"writing: {done:,} of {total:,} tokens", is_last=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, text: str, *, is_last: bool) -> None:
        if is_last or time.monotonic() - self._last > self.EVERY:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)
