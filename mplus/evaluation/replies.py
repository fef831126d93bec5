"""From a question and a memory to a reply with all that is worth keeping of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from mplus.evaluation.question_prompts import Asked, characters, prompt, stops
from mplus.evaluation.tasks import PromptStyle, Question
from mplus.generation.row import Generation
from mplus.generation.sampling import GateChoice
from mplus.generation.where import Where
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.progress import Progress

RECALLED_KEPT = 8
"""Recalled sources that a reply keeps, most relevant first."""
BATCH_CHARACTERS = 60_000
"""Most characters of prompts that are read at once."""


@dataclass(frozen=True)
class Settings:
    """How questions are put and answered, whatever answers them.

    Attributes:
        style: How a question is put.
        examples: Worked examples before it, for readers of text in plain completion.
        max_new_tokens: Most tokens of an answer.
        batch: Questions answered at once.
        seed: Decides what a random eviction drops.
        abstain_below: Decline where the confidence in an answer is lower; None: never.
        prompt_turns: Latest turns of a conversation that stand in the prompt; None: as many as the model says.
        gate: Whether memory is read: as the model's gate decides, "always" or "never".
        writing: Called while texts are written, with tokens so far and in total.
    """

    style: PromptStyle = "short"
    examples: int = 0
    max_new_tokens: int = 24
    batch: int = 16
    seed: int = 0
    abstain_below: float | None = None
    prompt_turns: int | None = None
    gate: GateChoice = "auto"
    writing: Progress | None = None

    def put(self, question: Question, texts: Sequence[str] | None = None) -> Asked:
        """A question as it is put.

        Args:
            question: What is asked.
            texts: What stands before it in the prompt; None: nothing, for ways of answering that read memory.
        """
        examples = 0 if texts is None else self.examples
        return prompt(question.text, self.style, texts=texts or (), examples=examples, before=question.before)


@dataclass(frozen=True)
class Reply:
    """An answer and how it came about.

    Attributes:
        text: The answer.
        finish_reason: "stop" or "length".
        prompt_tokens: Text tokens that were read.
        prefix_tokens: Memory tokens that stood before them.
        completion_tokens: Tokens of the answer.
        found: Names of what recall or retrieval found, best first, with relevance.
        rank: Place of the first of these that holds the answer, from 1; None where none does or nothing is searched.
        features: Numbers from which a confidence can be fitted.
        used_memory: Whether memory was read.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    prefix_tokens: int
    completion_tokens: int
    found: tuple[tuple[str, float], ...] = ()
    rank: int | None = None
    features: Mapping[str, float] = field(default_factory=dict[str, float])
    used_memory: bool = True

    def as_json(self) -> dict[str, Any]:
        """The fields of this reply in a line of the raw answers."""
        found = [{"name": name, "relevance": round(relevance, 6)} for name, relevance in self.found]
        return {**asdict(self), "found": found, "features": dict(self.features)}


@dataclass(frozen=True)
class Answered:
    """A reply, and the levels at which it is the answer: where nothing it reads differs, it is given once."""

    question: Question
    levels: tuple[int, ...]
    reply: Reply
    distractor_tokens: int | None = None
    """Tokens of other text that came in between, where the stream does not say."""


@runtime_checkable
class Answerer(Protocol):
    """One way of answering.

    Attributes:
        name: As it stands in the raw answers and the table.
    """

    name: str

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        """Answer questions at levels, in any order; those that cannot be read at a level are left out."""
        ...


@dataclass(frozen=True)
class Job:
    """One question to be read with one memory."""

    question: Question
    levels: tuple[int, ...]
    memory: Memory
    asked: Asked
    where: Where | None = None


def generations(model: MPlus, jobs: Iterable[Job], settings: Settings) -> Iterator[tuple[Job, Generation]]:
    """Jobs with their answers, batch by batch."""
    for batch in batches(jobs, settings):
        found = model.generate_batch(
            [job.memory for job in batch],
            [job.asked for job in batch],
            where=[job.where for job in batch],
            max_new_tokens=settings.max_new_tokens,
            temperature=0.0,
            stop=stops(settings.style),
            abstain_below=settings.abstain_below,
            gate=settings.gate,
        )
        yield from zip(batch, found, strict=True)


def batches(jobs: Iterable[Job], settings: Settings) -> Iterator[list[Job]]:
    """Jobs in batches of prompts of like length, so that little is padding.

    Memories are made one after the other, so only some batches' worth of jobs is looked at together.
    """
    waiting: list[Job] = []
    for job in jobs:
        waiting.append(job)
        if len(waiting) == 4 * settings.batch:
            yield from _sorted(waiting, settings.batch)
            waiting = []
    yield from _sorted(waiting, settings.batch)


def _sorted(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    batch: list[Job] = []
    for job in sorted(jobs, key=lambda job: (characters(job.asked), job.question.id)):
        # The longest prompt, the last one, decides what a batch costs.
        if len(batch) == size or (batch and (len(batch) + 1) * characters(job.asked) > BATCH_CHARACTERS):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def reply_of(generation: Generation, found: Sequence[tuple[str, float]] = (), gold: Sequence[str] = ()) -> Reply:
    """A reply, given all that recall or retrieval found for it, best first."""
    return Reply(
        generation.text,
        generation.finish_reason,
        generation.prompt_tokens,
        generation.prefix_tokens,
        generation.completion_tokens,
        tuple(found[:RECALLED_KEPT]),
        rank_of(gold, [name for name, _ in found]),
        features(generation, [relevance for _, relevance in found]),
        generation.used_memory,
    )


def rank_of(gold: Sequence[str], found: Sequence[str]) -> int | None:
    """Place from 1 of the first name that is gold."""
    return next((place for place, name in enumerate(found, 1) if name in gold), None)


def features(generation: Generation, relevances: Sequence[float]) -> dict[str, float]:
    """Numbers that may tell a known answer from a guess: how well recall found it, how sure the words were."""
    found: dict[str, float] = {}
    if relevances:
        found["relevance"] = relevances[0]
        found["relevance_margin"] = relevances[0] - relevances[1] if len(relevances) > 1 else relevances[0]
    found["confidence"] = generation.confidence
    if generation.evidence is not None:
        found |= {f"evidence_{name}": float(value) for name, value in generation.evidence._asdict().items()}
    return found
