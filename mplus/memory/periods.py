"""Periods: a memory as it is without what was said before or after, as if that had never been written.

A text counts from when it was said, if it was written with ``at``, else from when it was written.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.memory.ledger import Ledger, LedgerEntry, WrittenText
from mplus.memory.state import Context, MemoryState, SourceRecord, Tail, Track, chained
from mplus.memory.tokens import Provenance
from mplus.moments import seconds_of


@dataclass(frozen=True)
class Period:
    """A stretch of time; both ends belong to it.

    Attributes:
        since: Unix time at which it begins.
        until: Unix time at which it ends.
    """

    since: float = -math.inf
    until: float = math.inf

    @classmethod
    def of(cls, since: Any = None, until: Any = None, as_of: Any = None) -> "Period | None":
        """The period between moments; None where none of them is given.

        A date stands for its whole day. ``as_of`` and ``until`` both end it; the earlier one counts.

        Raises:
            ValueError: One is no moment, or it ends before it begins.
        """
        if since is None and until is None and as_of is None:
            return None
        begin = -math.inf if since is None else seconds_of(since, "since")
        ends = [
            seconds_of(end, name, end=True) for name, end in (("until", until), ("as_of", as_of)) if end is not None
        ]
        period = cls(begin, min(ends, default=math.inf))
        if period.until < period.since:
            raise ValueError(
                f"since={since!r} is later than {'until' if as_of is None else 'as_of'}="
                f"{until if as_of is None else as_of!r}: expected a period that begins before it ends."
            )
        return period

    def __contains__(self, time: float) -> bool:
        return self.since <= time <= self.until

    def holds(self, record: SourceRecord) -> bool:
        """Whether all texts of a source are of this period."""
        first, last = record.span
        return first in self and last in self


def within(state: MemoryState, config: MemoryConfig, period: Period, *, purged: bool = False) -> MemoryState:
    """The state without what was said outside of a period; the same object if there is nothing.

    In the chunk layout its reads are those of a memory that never had what was said later. A later part of a source saw
    the part before it when it was written, so that it may hold traces of what was said before the period.

    Args:
        state: The state.
        config: The memory's layout.
        period: The period.
        purged: Whether no tensor may hold anything of the rest, so that it can be saved; else tensors are shared.
    """
    ledger = None if state.ledger is None else _ledger_within(state.ledger, period)
    sources = _sources_within(state, ledger, period)
    gone = torch.tensor([record.forgotten for record in sources], dtype=torch.bool)
    outside = _outside(state, period)

    def keeps(known: Provenance) -> Bool[Tensor, " T"]:
        return ~(_at(gone, known.sources, absent=False) | _at(outside, known.chunks, absent=period.since > -math.inf))

    tail = state.tail
    if tail.input_ids and (tail.time not in period or all(_at(gone, torch.tensor(tail.sources), absent=False))):
        tail = Tail()
    stays = sources == state.sources and tail is state.tail
    if stays and all(bool(keeps(pool.provenance).all()) for track in state.tracks for pool in track.pools):
        return state
    return replace(
        state,
        tracks=tuple(_track_within(track, config, keeps, purged=purged) for track in state.tracks),
        context=_context_within(state, gone, outside),
        tail=tail,
        sources=sources,
        ledger=ledger,
        pinned=state.pinned & {record.name for record in sources if not record.forgotten},
        replayable=False,
        digest=chained(state.digest, "period", period.since, period.until),
    )


def _context_within(state: MemoryState, gone: Bool[Tensor, " n"], outside: Bool[Tensor, " m"]) -> Context | None:
    context = state.context
    if context is None or not len(outside) or bool(outside[-1]):
        return None
    kept = (~_at(gone, context.sources, absent=False)).nonzero().flatten()
    return context.take(kept) if len(kept) else None


def _track_within(track: Track, config: MemoryConfig, keeps: Any, *, purged: bool) -> Track:
    if all(bool(keeps(pool.provenance).all()) for pool in track.pools):
        return replace(track, short_term=replace(track.short_term))  # buffers of reads are kept by pool
    return track.keeping(keeps, config, purged=purged)


def _at(rows: Bool[Tensor, " n"], numbers: Int[Tensor, " T"], *, absent: bool) -> Bool[Tensor, " T"]:
    """What a table says of numbered rows; ``absent`` for the number -1, which stands for none."""
    return torch.cat([rows, torch.tensor([absent])])[numbers]


def _outside(state: MemoryState, period: Period) -> Bool[Tensor, " n"]:
    """Which chunks, by serial number, were said outside of the period.

    Of a chunk that nothing is known of, its source has outlived an age limit because it is pinned; then the latest time
    of its source counts.
    """
    times = state.moments.of(state.chunk_log, state.num_chunks)
    unknown = times.isnan()
    if bool(unknown.any()):
        latest = torch.tensor([record.span[1] for record in state.sources] or [math.nan], dtype=torch.float64)
        for track in state.tracks:
            for pool in track.pools:
                chunks, sources = pool.provenance.chunks, pool.provenance.sources
                rows = ((chunks >= 0) & (sources >= 0)).nonzero().flatten()
                rows = rows[unknown[chunks[rows]]]
                times[chunks[rows]] = latest[sources[rows]]
    return ~((times >= period.since) & (times <= period.until))


def _ledger_within(ledger: Ledger, period: Period) -> Ledger:
    found: list[LedgerEntry] = []
    for entry in ledger:
        texts = tuple(text for text in entry.texts if _time(text, entry) in period)
        if texts:
            found.append(entry if len(texts) == len(entry.texts) else replace(entry, texts=texts))
    return tuple(found)


def _time(text: WrittenText, entry: LedgerEntry) -> float:
    return entry.time if text.at is None else text.at


def _sources_within(state: MemoryState, ledger: Ledger | None, period: Period) -> tuple[SourceRecord, ...]:
    """The sources as the texts of a period made it; without a ledger, a source is in it whole or not at all."""
    partly = {r.name for r in state.sources if not r.forgotten and not period.holds(r)}
    said: dict[str, list[tuple[WrittenText, float]]] = {name: [] for name in partly}
    for entry in ledger or ():
        for text in entry.texts:
            if text.source in said:
                said[text.source].append((text, entry.time))
    return tuple(
        _record_of(record.name, said[record.name]) if not record.forgotten and record.name in partly else record
        for record in state.sources
    )


def _record_of(name: str, said: list[tuple[WrittenText, float]]) -> SourceRecord:
    """The record of a source that has only these texts, each with when it was written."""
    if not said:
        return SourceRecord.blank()
    metadata: dict[str, Any] = {}
    for text, _ in said:
        metadata |= text.metadata
    written = [time for _, time in said]
    moments = [time if text.at is None else text.at for text, time in said]
    is_dated = any(text.at is not None for text, _ in said)
    return SourceRecord(
        name,
        metadata,
        written[0],
        written[-1],
        sum(len(text.input_ids) for text, _ in said),
        texts=tuple(kept for text, _ in said for kept in text.kept),
        earliest=min(moments) if is_dated else None,
        latest=max(moments) if is_dated else None,
    )
