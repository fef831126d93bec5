"""``Row``: a prompt that is being answered; ``Generation``: the answer."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from mplus.confidence import Calibration, Evidence, TokenTrace, uncalibrated_confidence
from mplus.generation.declining import DeclineThreshold, HeadThreshold
from mplus.generation.passages import PassageReader, ReadPassage
from mplus.generation.polarity import YesOdds
from mplus.generation.sampling import SamplingParams
from mplus.generation.sources_read import RecalledSource, recalled_sources, relevance_of_sources
from mplus.memory.memory import Memory
from mplus.memory.together import Member
from mplus.read.decode import Reading
from mplus.read.prefill import ReadRequest
from mplus.recall.choose import Recalled
from mplus.thread_teams import gives_back_team

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        text: The answer, without special tokens and without the stop string.
        token_ids: Its tokens.
        finish_reason: "stop" (end token or stop string), "length" or "cancelled".
        prompt_tokens: Text tokens of the prompt, including those of memory that is read as text.
        completion_tokens: Tokens generated.
        recalled: Every source that was read, from any pool, the most relevant first; where memory is read as text, the
            sources of that text.
        prefix_tokens: Number of memory tokens before the prompt; 0 where memory is read as text.
        used_memory: Whether memory was read; else the answer is the plain backbone's, as with an empty memory.
        confidence: Probability that the answer is right, 0 to 1, if the model has a calibration for this memory's
            scorer (``is_calibrated``); else the geometric mean of its tokens' probabilities.
        is_calibrated: Whether ``confidence`` is calibrated: the expected share of such answers that are right.
        abstained: Whether ``text`` is ``abstain_reply`` instead of the answer.
        evidence: What ``confidence`` is computed from; None before the first token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    recalled: tuple[RecalledSource, ...]
    prefix_tokens: int
    used_memory: bool
    confidence: float
    is_calibrated: bool
    abstained: bool
    evidence: Evidence | None


@dataclass(eq=False)
class Row:
    """One prompt of a batch that is being answered; equal only to itself."""

    memories: tuple[Memory, ...]
    """The memories that are read together, mostly one; they may change before the answer is complete, but the read uses
    ``request.state``."""
    request: ReadRequest
    params: SamplingParams
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Cancels this row; set when its stream is closed."""
    cancelled_by: threading.Event | None = None
    """The caller's event, which may be shared by rows; it is never set here."""
    processors: tuple[Any, ...] = ()
    """Additional logits processors, such as constrained decoding."""
    declining: int | None = None
    """The first token of declining, with which the row turns to ``request.otherwise``, if there is such a request."""
    token_ids: list[int] = field(default_factory=list[int])
    text: str = ""
    finish_reason: FinishReason | None = None
    recalled: tuple[RecalledSource, ...] = ()
    reader: PassageReader | None = None
    """Finds the text of what was read."""
    read: tuple[Recalled, ...] = ()
    """What each track recalled."""
    chosen_relevance: tuple[float, ...] = ()
    """Relevance of each source that recall chose, which confidence depends on."""
    births: tuple[tuple[torch.Tensor, ...], ...] = ()
    """For each memory and track, how many tokens had been written when each recalled token was; it never changes."""
    prefix_tokens: int = 0
    calibration: Calibration | None = None
    trace: TokenTrace = field(default_factory=TokenTrace)
    started: float = field(default_factory=time.monotonic)
    error: Exception | None = None
    """The error that ended this row."""
    is_read_alone: bool = False
    """Whether its prompt is read alone, because reading it in a batch failed."""

    @property
    def is_finished(self) -> bool:
        """Whether no more tokens come."""
        return self.finish_reason is not None or self.error is not None

    def has_ended(self) -> bool:
        """Whether no more tokens come. This call finishes a row that was cancelled or is past its timeout."""
        late = self.params.timeout is not None and time.monotonic() - self.started > self.params.timeout
        asked = self.cancelled.is_set() or (self.cancelled_by is not None and self.cancelled_by.is_set())
        if (late or asked) and not self.is_finished:
            self.finish_reason = "cancelled"
        return self.is_finished

    def take_read(self, reading: Reading, place: int) -> None:
        """Store what the read of this prompt recalled; ``place`` is its row in the batch."""
        told = self.request.told
        recalled = reading.recalled[place] if told is None else (told,)
        self.read = tuple(recalled)
        self.recalled = recalled_sources(self.request, recalled)
        self.chosen_relevance = relevance_of_sources(self.request, recalled)
        self.births = tuple(tuple(_born(member, track) for track in recalled) for member in self.request.members)
        self.prefix_tokens = reading.layers[0].lengths[place] - len(self.request.input_ids)
        for processor in self.processors:
            if isinstance(processor, HeadThreshold) and reading.decline_odds is not None:
                processor.log_odds = reading.decline_odds[place]

    def turns_away(self, token: int) -> bool:
        """Whether the answer from memory begins by declining, and something else is to be read then."""
        begins = self.request.otherwise is not None and not self.token_ids and token == self.declining
        return begins and all(p.declines for p in self.processors if isinstance(p, HeadThreshold))

    def turn_away(self) -> None:
        """Answer ``request.otherwise`` instead; nothing has been said yet."""
        assert self.request.otherwise is not None
        self.request = self.request.otherwise
        self.processors = tuple(p for p in self.processors if not isinstance(p, DeclineThreshold | YesOdds))

    @gives_back_team
    def complete(self) -> None:
        """Raise the error that ended the answer, or raise the recall frequency of the tokens it has used.

        Called after the last token in the caller's thread, not in the scheduler's: another thread may hold the memory
        for a long write.
        """
        if self.error is not None:
            raise self.error
        for memory, births in zip(self.memories, self.births, strict=False):
            memory.note_recalled(births)

    def passages(self) -> tuple[ReadPassage, ...]:
        """The sentences that are read, the most relevant first; nothing before the prompt has been read."""
        return self.reader(self.request, self.read) if self.reader is not None and self.read else ()

    @gives_back_team
    def generation(self) -> Generation:
        """The answer so far."""
        evidence = self.trace.evidence(self.chosen_relevance)
        # A calibration is valid only for answers from memory, read and recalled as in those that it was fitted on.
        how = (self.request.config.recall, "latent" if self.request.told is None else "text")
        fits = self.calibration is not None and (self.calibration.recall, self.calibration.read) == how
        calibration = self.calibration if fits and (self.prefix_tokens or self.recalled) else None
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
            self.prefix_tokens > 0 or bool(self.recalled),
            confidence,
            calibration is not None,
            abstained,
            evidence,
        )

    def said(self, text: str) -> str:
        """The part of newly certain text that may be sent.

        If the answer may be withheld (``abstain_below``), nothing is sent before it is complete, because the
        confidence depends on all of its tokens.
        """
        self.text += text
        if self.params.abstain_below is None:
            return text
        return self.generation().text if self.finish_reason is not None else ""


class Piece(NamedTuple):
    """Newly certain text of one row."""

    row: Row
    text: str


def _born(member: Member, recalled: Recalled) -> torch.Tensor:
    """How many tokens had been written into one memory when each of its recalled tokens was."""
    sources, ages = recalled.provenance.sources, recalled.provenance.ages
    mine = (sources >= member.first_source) & (sources < member.first_source + member.num_sources)
    return member.written_tokens - ages[mine | (sources < 0)]
