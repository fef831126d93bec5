"""Texts that wait to be written, so that many small ones go through the model together.

A memory writes them before anything of it is read, changed, copied or saved, so that nobody can tell that they waited.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mplus.memory.ledger import LedgerEntry, WrittenText
from mplus.memory.state import MemoryState

WAIT_SECONDS = 60.0
"""Texts that are given later than this after the first of those that wait are not written with them: all of one pass
are written with the time of the first."""


class Told(NamedTuple):
    """What a memory was told under a name.

    Attributes:
        metadata: Its metadata.
        texts: The texts that were kept.
        latest: Unix time at which its latest text was said, where one was given.
    """

    metadata: Mapping[str, Any]
    texts: tuple[str, ...]
    latest: float | None = None


@dataclass
class Waiting:
    """Texts that wait, in the order in which they were given.

    Attributes:
        write: Writes them.
        time: When the first was given; Unix time.
        texts: The texts.
        is_running: Whether they are being written.
    """

    write: Callable[[LedgerEntry], None]
    time: float
    texts: list[WrittenText] = field(default_factory=list[WrittenText])
    is_running: bool = False

    @property
    def num_tokens(self) -> int:
        """Text tokens of all of them."""
        return sum(len(text.input_ids) for text in self.texts)

    def done(self) -> None:
        """Write them; after an error they still wait."""
        self.is_running = True
        try:
            self.write(LedgerEntry(tuple(self.texts), self.time))
        finally:
            self.is_running = False


def told(state: MemoryState, waiting: Sequence[WrittenText]) -> dict[str, Told]:
    """What a memory was told under each name, by what is written and what waits."""
    found = {one.name: Told(one.metadata, one.texts, one.latest) for one in state.sources if not one.forgotten}
    for text in waiting:
        before = found.get(text.source, Told({}, ()))
        latest = before.latest if text.at is None else max(text.at, before.latest or text.at)
        found[text.source] = Told({**before.metadata, **text.metadata}, before.texts + text.kept, latest)
    return found
