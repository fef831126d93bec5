"""The ledger: what was written, in order, so that it can be written again without one source.

Token ids cost 4 bytes each; the memory tokens of the same text cost thousands. An entry is immutable and
shared by every state that contains it, so that a snapshot's ledger is recognised as the beginning of a
later one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor

from mplus.storage.json_fields import LATER, Record


@dataclass(frozen=True, eq=False)
class WrittenText:
    """One text of one call of ``write``."""

    source: str
    metadata: Mapping[str, Any]
    input_ids: Int[Tensor, " S"]
    """int32."""
    joined_by: tuple[int, ...] = ()
    """Token ids that separate this text from a waiting tail of the same source."""
    kept: tuple[str, ...] = ()
    """The text itself, if ``keep_text`` was set; else empty."""
    at: float | None = field(default=None, metadata=LATER)
    """Unix time at which it was said; None: when it was written."""


@dataclass(frozen=True, eq=False)
class LedgerEntry(Record):
    """One call of ``write``."""

    texts: tuple[WrittenText, ...]
    time: float
    """Unix time."""

    @property
    def num_tokens(self) -> int:
        """Text tokens of all its texts."""
        return sum(len(text.input_ids) for text in self.texts)


Ledger = tuple[LedgerEntry, ...]


class Redaction:
    """Removes one source from ledgers; the same entry object always becomes the same redacted object."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._redacted: dict[LedgerEntry, LedgerEntry] = {}

    def __call__(self, ledger: Ledger) -> Ledger:
        """The ledger of a memory in which the source was never written."""
        entries = (self._entry(entry) for entry in ledger)
        return tuple(entry for entry in entries if entry.texts)

    def _entry(self, entry: LedgerEntry) -> LedgerEntry:
        if all(text.source != self.source for text in entry.texts):
            return entry
        if entry not in self._redacted:
            kept = tuple(text for text in entry.texts if text.source != self.source)
            self._redacted[entry] = replace(entry, texts=kept)
        return self._redacted[entry]


def since(ledger: Ledger, horizon: float, *, pinned: frozenset[str]) -> Ledger:
    """What was written at ``horizon`` or later, or under a pinned name."""

    def stays(entry: LedgerEntry, text: WrittenText) -> bool:
        return entry.time >= horizon or text.source in pinned

    left: list[LedgerEntry] = []
    for entry in ledger:
        texts = tuple(text for text in entry.texts if stays(entry, text))
        if texts:
            left.append(entry if len(texts) == len(entry.texts) else replace(entry, texts=texts))
    return tuple(left)


def begins(beginning: Ledger, ledger: Ledger) -> bool:
    """Whether ``ledger`` starts with the same entry objects as ``beginning``."""
    return len(beginning) <= len(ledger) and all(a is b for a, b in zip(beginning, ledger, strict=False))
