"""Forgetting: tokens are removed from every pool, tier and table, and evicted tokens return to the freed room."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.memory.ledger import Redaction, since
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import MemoryState, SourceRecord, Tail, chained
from mplus.memory.tokens import Tokens

Gone = Callable[[Int[Tensor, " T"], Int[Tensor, " T"]], Bool[Tensor, " T"]]
"""Which tokens go, by their sources and their chunks."""
Pool = TypeVar("Pool", Tokens, LongTermMemory)
BLANK_ROWS = 256
"""So many empty rows of a table of sources, or as many as others, are kept: moving rows up rewrites the table."""


def without_source(state: MemoryState, config: MemoryConfig, redaction: Redaction) -> MemoryState:
    """The state without any token of a source; later chunks stay as they were written.

    In the chunk layout no chunk ever saw another source, so that reads are those of a memory that never had
    it. In the token layout later chunks were written while seeing earlier ones.
    """
    source = redaction.source
    numbers = state.numbers({source})
    if not len(numbers):
        return state
    state = _without(state, config, lambda sources, _: torch.isin(sources, numbers))
    forgotten = replace(
        state,
        tail=_tail_without(state.tail, numbers.tolist()),
        sources=_blanked(state, numbers.tolist()),
        ledger=None if state.ledger is None else redaction(state.ledger),
        pinned=state.pinned - {source},
        digest=chained(state.digest, "forget", source),
    )
    return _without_blank_rows(forgotten)


def within_age_limits(state: MemoryState, config: MemoryConfig, now: float) -> MemoryState:
    """The state without tokens that are past the age limit at ``now``; the same object if there are none."""
    if not config.has_age_limit:
        return state
    earliest = float("-inf") if config.age_limit_seconds is None else now - config.age_limit_seconds
    past = state.chunk_log.num_past(earliest, state.written_tokens, config.age_limit_tokens)
    going = set[int]()
    if state.tail.input_ids and state.tail.since < earliest:
        going = set(state.tail.sources) - set(state.numbers(state.pinned).tolist())
    if not going and not past:
        return state
    tail, log = _tail_without(state.tail, sorted(going)), state.chunk_log.later(past)
    return without_expired(replace(state, tail=tail, chunk_log=log), config)


def without_expired(state: MemoryState, config: MemoryConfig) -> MemoryState:
    """The state without chunks older than its chunk log; chunks of pinned sources stay.

    A source that cannot have any token left is forgotten, with its record and its ledger entries.
    """
    log, pinned = state.chunk_log, state.numbers(state.pinned)

    def gone(sources: Int[Tensor, " T"], chunks: Int[Tensor, " T"]) -> Bool[Tensor, " T"]:
        # Chunk -1 came with a checkpoint; its age is unknown.
        return (chunks >= 0) & (chunks < log.first) & ~torch.isin(sources, pinned)

    horizon = float(log.times[0]) if len(log) else state.tail.since if state.tail.input_ids else float("inf")
    ended = [
        number
        for number, record in enumerate(state.sources)
        if record.last_written < horizon and not record.forgotten and record.name not in state.pinned
    ]
    state = _without(state, config, gone)
    expired = replace(
        state,
        sources=_blanked(state, ended),
        ledger=None if state.ledger is None else since(state.ledger, horizon, pinned=state.pinned),
        digest=chained(state.digest, "age", log.first, len(state.tail.input_ids)),
    )
    return _without_blank_rows(expired)


def _without(state: MemoryState, config: MemoryConfig, gone: Gone) -> MemoryState:
    tracks = tuple(track.keeping(lambda known: ~gone(known.sources, known.chunks), config) for track in state.tracks)
    context = state.context
    if context is not None:
        last = torch.full_like(context.sources, state.num_chunks - 1)
        kept = (~gone(context.sources, last)).nonzero().flatten()
        context = context.take(kept) if len(kept) else None
    moments = state.moments
    if len(moments):
        moments = moments.keeping(torch.cat([track.chunks for track in tracks]))
    return replace(state, tracks=tracks, context=context, moments=moments, replayable=False)


def _tail_without(tail: Tail, numbers: list[int]) -> Tail:
    left = [(i, s) for i, s in zip(tail.input_ids, tail.sources, strict=True) if s not in numbers]
    return replace(tail, input_ids=tuple(i for i, _ in left), sources=tuple(s for _, s in left))


def _blanked(state: MemoryState, numbers: list[int]) -> tuple[SourceRecord, ...]:
    """The table of sources with the given rows emptied; rows are kept, because tokens refer to them by number."""
    going = set(numbers)
    return tuple(SourceRecord.blank() if n in going else s for n, s in enumerate(state.sources))


def _without_blank_rows(state: MemoryState) -> MemoryState:
    """The state with a table of sources that is not mostly empty rows; tokens follow the rows that move up."""
    kept = torch.tensor([not record.forgotten for record in state.sources], dtype=torch.bool)
    blank = int((~kept).sum())
    if blank <= max(BLANK_ROWS, len(kept) // 2):
        return state
    for known in _numbered(state):
        kept[known[known >= 0]] = True
    row = kept.cumsum(0) - 1

    def moved(known: Int[Tensor, " T"]) -> Int[Tensor, " T"]:
        return row[known.clamp(min=0)].where(known >= 0, known)

    def renumbered(pool: Pool) -> Pool:
        known = pool.provenance
        return replace(pool, provenance=known.changed(sources=moved(known.sources)))

    context = state.context
    return replace(
        state,
        tracks=tuple(
            replace(
                track,
                short_term=renumbered(track.short_term),
                pending=renumbered(track.pending),
                long_term=renumbered(track.long_term),
            )
            for track in state.tracks
        ),
        tail=replace(state.tail, sources=tuple(moved(torch.tensor(state.tail.sources, dtype=torch.int64)).tolist())),
        context=None if context is None else replace(context, sources=moved(context.sources)),
        sources=tuple(record for record, stays in zip(state.sources, kept.tolist(), strict=True) if stays),
        removed_rows=state.removed_rows + len(kept) - int(kept.sum()),
    )


def _numbered(state: MemoryState) -> Iterator[Int[Tensor, " T"]]:
    """Rows of the table of sources that something refers to."""
    yield torch.tensor(state.tail.sources, dtype=torch.int64)
    if state.context is not None:
        yield state.context.sources
    for track in state.tracks:
        for pool in track.pools:
            yield pool.provenance.sources
