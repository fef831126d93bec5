"""A prompt on its way to an answer, and the answer."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from mplus.confidence import Calibration, Evidence, TokenTrace, uncalibrated_confidence
from mplus.generation.sampling import SamplingParams
from mplus.memory.memory import Memory
from mplus.read.decode import Reading
from mplus.read.prefill import ReadRequest
from mplus.recall.choose import Recalled

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
        confidence: How likely the answer is to be right, 0 to 1; calibrated where the model has a calibration
            for this memory's scorer (``is_calibrated``), else the mean probability of its tokens.
        is_calibrated: Whether ``confidence`` is the share of such answers that are right.
        abstained: Whether ``text`` is the set reply of ``abstain_below`` instead of the answer.
        evidence: What ``confidence`` goes by; None before the first token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    recalled: tuple[RecalledSource, ...]
    prefix_tokens: int
    confidence: float
    is_calibrated: bool
    abstained: bool
    evidence: Evidence | None


@dataclass
class Row:
    """One prompt of a batch on its way to an answer."""

    memory: Memory
    """What is asked, as it may be when the answer is complete; the read goes by ``request.state``."""
    request: ReadRequest
    params: SamplingParams
    cancelled: threading.Event = field(default_factory=threading.Event)
    """This row's own; closing its stream sets it."""
    cancelled_by: threading.Event | None = None
    """The caller's, which may serve many rows; it is only looked at."""
    processors: tuple[Any, ...] = ()
    """Further logits processors, as for constrained decoding."""
    token_ids: list[int] = field(default_factory=list[int])
    text: str = ""
    finish_reason: FinishReason | None = None
    recalled: tuple[RecalledSource, ...] = ()
    births: tuple[torch.Tensor, ...] = ()
    """Per track, when each recalled token was written: its name for life."""
    prefix_tokens: int = 0
    calibration: Calibration | None = None
    trace: TokenTrace = field(default_factory=TokenTrace)
    started: float = field(default_factory=time.monotonic)
    error: Exception | None = None
    """What ended this row alone."""
    is_read_alone: bool = False
    """Whether its prompt shares no batch while it is read: a shared one failed."""

    @property
    def is_finished(self) -> bool:
        """Whether no more tokens come."""
        return self.finish_reason is not None or self.error is not None

    def has_ended(self) -> bool:
        """Whether no more tokens come; a row that was cancelled or is late finishes here."""
        late = self.params.timeout is not None and time.monotonic() - self.started > self.params.timeout
        asked = self.cancelled.is_set() or (self.cancelled_by is not None and self.cancelled_by.is_set())
        if (late or asked) and not self.is_finished:
            self.finish_reason = "cancelled"
        return self.is_finished

    def take_read(self, reading: Reading, place: int) -> None:
        """Take in what the read of this prompt has used, where it stands at a place of a batch."""
        recalled = reading.recalled[place]
        self.recalled = recalled_sources(self.request, recalled)
        self.births = tuple(self.request.state.written_tokens - track.provenance.ages for track in recalled)
        self.prefix_tokens = reading.layers[0].lengths[place] - len(self.request.input_ids)

    def complete(self) -> None:
        """Raise the error that ended the answer, or tell the memory which of its tokens the answer has used.

        Called once no more tokens come, by the thread that asked and not by a scheduler's: another thread may hold
        the memory for a long write.
        """
        if self.error is not None:
            raise self.error
        if self.births:
            self.memory.note_recalled(self.births)

    def generation(self) -> Generation:
        """What has been answered so far."""
        evidence = self.trace.evidence([source.relevance for source in self.recalled])
        # A calibration is for answers from memory, found by the scorer it was fitted with.
        fits = self.calibration is not None and self.calibration.recall == self.request.config.recall
        calibration = self.calibration if fits and self.prefix_tokens else None
        confidence = 0.0
        if evidence is not None:
            confidence = calibration.confidence(evidence) if calibration else uncalibrated_confidence(evidence)
        limit = self.params.abstain_below
        abstained = limit is not None and evidence is not None and confidence < limit
        return Generation(
            self.params.abstain_reply if abstained else self.text,
            tuple(self.token_ids),
            self.finish_reason or "cancelled",
            len(self.request.input_ids),
            len(self.token_ids),
            self.recalled,
            self.prefix_tokens,
            confidence,
            calibration is not None,
            abstained,
            evidence,
        )

    def said(self, text: str) -> str:
        """What may go out of newly certain text.

        Where the answer may be withheld, nothing goes out before it is complete: half of its evidence is
        how likely all of its words were.
        """
        self.text += text
        if self.params.abstain_below is None:
            return text
        return self.generation().text if self.finish_reason is not None else ""


class Piece(NamedTuple):
    """Newly certain text of one row."""

    row: Row
    text: str


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
