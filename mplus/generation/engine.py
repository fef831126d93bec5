"""Decoding: from prompts and memories to answers, one token at a time, for a whole batch.

The loop stops a row at once when it is cancelled and yields text as soon as it is certain.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from mplus.generation.sampling import Sampler, SamplingParams, TextStream
from mplus.read import ReadRequest, has_prefix, prefill
from mplus.reading import Reading
from mplus.recall import Recalled
from mplus.weights import Weights

FinishReason = Literal["stop", "length", "cancelled"]


class RecalledSource(NamedTuple):
    """A source whose long-term tokens a read used.

    Attributes:
        source: Its name.
        share: Its share of the recalled tokens; the shares of an answer add up to 1.
        relevance: Relevance of its best chunk or token, as the scorer counts.
        metadata: What was given when it was written.
    """

    source: str
    share: float
    relevance: float
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        token_ids: Its tokens.
        finish_reason: "stop" (end token or stop string), "length" or "cancelled".
        prompt_tokens: Text tokens of the prompt, what waited in the memory's tail included.
        completion_tokens: Tokens generated.
        recalled: Sources of the long-term tokens that were read, highest share first.
        prefix_tokens: Memory tokens that stood before the prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    recalled: tuple[RecalledSource, ...]
    prefix_tokens: int


@dataclass
class Row:
    """One prompt of a batch on its way to an answer."""

    request: ReadRequest
    params: SamplingParams
    cancelled: threading.Event = field(default_factory=threading.Event)
    """The row's own; whoever closes its stream sets it."""
    cancelled_by: threading.Event | None = None
    """Somebody else's, which may serve many rows; only looked at."""
    processors: tuple[Any, ...] = ()
    """Further logits processors, as for constrained decoding."""
    token_ids: list[int] = field(default_factory=list[int])
    text: str = ""
    finish_reason: FinishReason | None = None
    recalled: tuple[RecalledSource, ...] = ()
    births: tuple[torch.Tensor, ...] = ()
    """Per track, when each recalled token was written, for ``Memory.note_recalled``."""
    prefix_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def generation(self) -> Generation:
        """What has been answered so far."""
        return Generation(
            self.text,
            tuple(self.token_ids),
            self.finish_reason or "cancelled",
            len(self.request.input_ids),
            len(self.token_ids),
            self.recalled,
            self.prefix_tokens,
        )


class Piece(NamedTuple):
    """Newly certain text of one row."""

    row: int
    text: str


def decode(weights: Weights, tokenizer: Any, rows: Sequence[Row], stop_token_ids: frozenset[int]) -> Iterator[Piece]:
    """Answer all rows, yielding text as it becomes certain; each row ends with its ``finish_reason`` set.

    Closing the iterator cancels what is not finished.
    """
    # Rows with and without a prefix go through different layers; within a group they share every step.
    groups = [[n for n, r in enumerate(rows) if has_prefix(r.request) is wanted] for wanted in (True, False)]
    if not weights.backbone.pads_batches:
        groups = [[n] for n in range(len(rows))]
    try:
        for group in filter(None, groups):
            for piece in _decode(weights, tokenizer, [rows[n] for n in group], stop_token_ids):
                yield Piece(group[piece.row], piece.text)
    finally:
        for row in rows:
            row.finish_reason = row.finish_reason or "cancelled"


def _decode(weights: Weights, tokenizer: Any, rows: Sequence[Row], stop_token_ids: frozenset[int]) -> Iterator[Piece]:
    active = [number for number, row in enumerate(rows) if not _cancel(row)]
    if not active:
        return
    logits, reading = prefill(weights, [rows[number].request for number in active])
    _note(rows, active, reading)
    samplers = {n: Sampler(rows[n].params, list(rows[n].request.input_ids), logits.device) for n in active}
    streams = {n: TextStream(tokenizer, rows[n].params.stop) for n in active}
    logits = logits[:, -1]
    while True:
        going: list[int] = []  # places in the present batch
        tokens: list[int] = []
        for place, number in enumerate(active):
            row = rows[number]
            if _cancel(row):
                continue
            scores = logits[place]
            for processor in row.processors:
                scores = processor(row.token_ids, scores)
            token = samplers[number](scores, row.token_ids)
            piece, finished = "", token in stop_token_ids or token in row.params.stop_token_ids
            if finished:
                row.finish_reason = "stop"
            else:
                row.token_ids.append(token)
                piece = streams[number].push(token)
                if streams[number].finished:
                    row.finish_reason = "stop"
                elif len(row.token_ids) >= row.params.max_new_tokens:
                    row.finish_reason = "length"
            if row.finish_reason is not None:
                piece += "" if streams[number].finished else streams[number].finish()
            if piece:
                row.text += piece
                yield Piece(number, piece)
            if row.finish_reason is None:
                going.append(place)
                tokens.append(token)
        # A consumer may have cancelled while it held the last piece.
        kept = [(place, token) for place, token in zip(going, tokens, strict=True) if not _cancel(rows[active[place]])]
        if not kept:
            return
        if len(kept) < len(active):
            reading.select([place for place, _ in kept])
            active = [active[place] for place, _ in kept]
        logits = reading.decode([token for _, token in kept])


def _cancel(row: Row) -> bool:
    late = row.params.timeout is not None and time.monotonic() - row.started > row.params.timeout
    asked = row.cancelled.is_set() or (row.cancelled_by is not None and row.cancelled_by.is_set())
    if (late or asked) and row.finish_reason is None:
        row.finish_reason = "cancelled"
    return row.finish_reason is not None


def _note(rows: Sequence[Row], active: Sequence[int], reading: Reading) -> None:
    for place, number in enumerate(active):
        row, recalled = rows[number], reading.recalled[place]
        state = row.request.state
        row.recalled = recalled_sources(row.request, recalled)
        row.births = tuple(state.written_tokens - track.provenance.ages for track in recalled)
        row.prefix_tokens = int(reading.positions[0][place]) - len(row.request.input_ids)


def recalled_sources(request: ReadRequest, recalled: Sequence[Recalled]) -> tuple[RecalledSource, ...]:
    """Which sources the recalled tokens come from, highest share first."""
    records = request.state.sources
    count = torch.zeros(len(records) + 1, dtype=torch.float64)
    best = torch.full((len(records) + 1,), float("-inf"), dtype=torch.float64)
    for track in recalled:
        # Tokens that came with a checkpoint have no source; they are counted at the end.
        number = track.provenance.sources.where(track.provenance.sources >= 0, len(records))
        count.index_add_(0, number, torch.ones_like(number, dtype=torch.float64))
        best.scatter_reduce_(0, number, track.relevance.double(), reduce="amax")
    total = float(count.sum())
    found = [
        RecalledSource(
            records[n].name if n < len(records) else "(checkpoint)",
            float(count[n]) / total,
            float(best[n]),
            dict(records[n].metadata) if n < len(records) else {},
        )
        for n in count.nonzero().flatten().tolist()
    ]
    return tuple(sorted(found, key=lambda source: (-source.share, -source.relevance)))
