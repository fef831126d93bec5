"""Answering from text in the prompt, or from nothing: what M+ is compared with.

closed-book     the question alone
full-context    everything that was said, as far as it fits the window
rag             the best passages of a retriever, as text before the question and read by the plain backbone; or
                written into a memory of their own and read through the same trained adapter as M+ reads
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mplus.config import MemoryConfig
from mplus.evaluation.passage_search import PASSAGE_TOKENS, Passage, PassageScorer, cut_passages
from mplus.evaluation.replies import Answered, Job, Settings, generations, reply_of
from mplus.evaluation.retention import Stream, WrittenMemory, distractor_names
from mplus.evaluation.tasks import Question
from mplus.model import MPlus
from mplus.sentences import SentenceEnds


class ClosedBook:
    """The backbone with the question alone: what it knows, or guesses, by itself. The same at every level."""

    def __init__(self, model: MPlus, settings: Settings, *, name: str = "closed-book", only: str | None = None) -> None:
        """Ask questions of one group only, or of all where it is None."""
        self.model, self.settings, self.name, self.only = model, settings, name, only
        self._nothing = model.new_memory()

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        """Answer each question once, for all levels."""
        jobs = [
            Job(question, levels, self._nothing, self.settings.put(question))
            for question, levels in _levels_by_question(wanted)
            if self.only in (None, question.group)
        ]
        yield from _answers(self.model, jobs, self.settings)


class FullContext:
    """The backbone with all contexts and distractors before the question, at levels where they fit its window."""

    name = "full-context"

    def __init__(self, model: MPlus, stream: Stream, settings: Settings) -> None:
        self.model, self.stream, self.settings = model, stream, settings
        self._nothing = model.new_memory()

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        """The questions whose prompts fit the window, shortest first."""
        yield from _answers(self.model, list(self._jobs(wanted)), self.settings)

    def _jobs(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Job]:
        window = self.model.weights.backbone.window - self.settings.max_new_tokens - 1
        contexts = self.stream.task.contexts
        for question, level in wanted:
            if self.stream.tokens(level) >= window:
                continue
            own = [contexts[name] for name in question.contexts]
            texts = [*own, *self.stream.distractors[: self.stream.count(level)]]
            asked = self.settings.put(question, texts)
            if self.model.count_tokens(asked) < window:
                yield Job(question, (level,), self._nothing, asked)


class RetrievalAugmented:
    """RAG: the best passages of everything that has been written so far stand before the question."""

    def __init__(
        self,
        name: str,
        model: MPlus,
        index: "PassageIndex",
        settings: Settings,
        *,
        top: int,
        layout: MemoryConfig | None = None,
    ) -> None:
        """Put together a retriever and a reader.

        Args:
            name: As it stands in the raw answers.
            model: The reader.
            index: Finds passages.
            settings: How questions are put.
            top: How many passages are read.
            layout: Write them into a memory of this layout, with room for all of them in short-term memory, and
                read them through the trained adapter; None reads them as text, with the plain backbone.
        """
        self.name = name
        self.model, self.index, self.settings, self.top = model, index, settings, top
        self._nothing = model.new_memory()
        self._layout = layout
        if layout is not None:
            room = max(layout.short_term_tokens, top * (PASSAGE_TOKENS + layout.chunk_tokens))
            self._layout = layout.model_copy(update={"short_term_tokens": room})

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        """Answer each question once for every set of passages that is found at any level."""
        levels: dict[tuple[str, tuple[int, ...]], list[int]] = {}
        questions = {question.id: question for question, _ in wanted}
        ranked: dict[tuple[str, int], list[tuple[str, float]]] = {}
        for question, level in wanted:
            best = self.index.ranked(question, level)
            # The best passage last: nearest to the question.
            passages = tuple(number for number, _ in reversed(best[: self.top]))
            ranked[question.id, level] = self.index.sources(best)
            levels.setdefault((question.id, passages), []).append(level)
        jobs = (self._job(questions[name], passages, at) for (name, passages), at in levels.items())
        for job, generation in generations(self.model, jobs, self.settings):
            for level in job.levels:
                reply = reply_of(generation, ranked[job.question.id, level], job.question.gold)
                yield Answered(job.question, (level,), reply)

    def _job(self, question: Question, passages: Sequence[int], levels: Sequence[int]) -> Job:
        texts = [self.index.passages[number].text for number in passages]
        if self._layout is None:
            return Job(question, tuple(levels), self._nothing, self.settings.put(question, texts))
        memory = WrittenMemory(self.model, self._layout, seed=self.settings.seed)
        memory.write([f"passage-{place}" for place in range(len(texts))], texts)
        return Job(question, tuple(levels), memory.memory, self.settings.put(question))


class PassageIndex:
    """Every context and distractor of a stream as passages, of which a question meets what has been written."""

    def __init__(self, stream: Stream, tokenizer: Any, make_scorer: Callable[[Sequence[str]], PassageScorer]) -> None:
        """Cut and index all contexts and distractors of the stream."""
        ends = SentenceEnds(tokenizer)
        self.stream = stream
        self.passages: list[Passage] = []
        self._after: list[int] = [0]
        """Number of passages after so many distractors have been written."""
        for name, text in zip(distractor_names(0, len(stream.distractors)), stream.distractors, strict=True):
            self.passages += cut_passages(name, text, tokenizer, ends)
            self._after.append(len(self.passages))
        self._of: dict[str, list[int]] = {}
        for name, text in stream.task.contexts.items():
            start = len(self.passages)
            self.passages += cut_passages(name, text, tokenizer, ends)
            self._of[name] = list(range(start, len(self.passages)))
        self._scorer = make_scorer([passage.text for passage in self.passages])

    def ranked(self, question: Question, level: int) -> list[tuple[int, float]]:
        """Passages by number with their scores, best first."""
        distractors = np.arange(self._after[self.stream.count(level)])
        names = self._of if self.stream.together else question.contexts
        own = np.array([number for name in names for number in self._of[name]], dtype=np.int64)
        candidates = np.concatenate([distractors, own])
        scores = self._scorer.scores(question.text, candidates)
        order = np.argsort(-scores, kind="stable")
        return [(int(candidates[place]), float(scores[place])) for place in order]

    def sources(self, ranked: Sequence[tuple[int, float]]) -> list[tuple[str, float]]:
        """Texts that ranked passages are from, each once, with the score of its best."""
        found: dict[str, float] = {}
        for number, score in ranked:
            found.setdefault(self.passages[number].source, score)
        return list(found.items())


def _levels_by_question(wanted: Sequence[tuple[Question, int]]) -> list[tuple[Question, tuple[int, ...]]]:
    levels: dict[str, list[int]] = {}
    questions = {question.id: question for question, _ in wanted}
    for question, level in wanted:
        levels.setdefault(question.id, []).append(level)
    return [(questions[name], tuple(at)) for name, at in levels.items()]


def _answers(model: MPlus, jobs: Iterable[Job], settings: Settings) -> Iterator[Answered]:
    for job, generation in generations(model, jobs, settings):
        yield Answered(job.question, job.levels, reply_of(generation))
