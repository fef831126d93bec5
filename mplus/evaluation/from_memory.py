"""Answering from latent memory: M+ with each of its scorers."""

from collections.abc import Iterator, Sequence

from mplus.config import MemoryConfig
from mplus.evaluation.question_prompts import query
from mplus.evaluation.replies import Answered, Job, Reply, Settings, generations, reply_of
from mplus.evaluation.retention import Stream, WrittenMemory
from mplus.evaluation.tasks import Question
from mplus.generation.row import Generation
from mplus.model import MPlus


class Recalling:
    """M+: contexts and distractors are written, and what answers a question is recalled while it is read."""

    def __init__(self, name: str, model: MPlus, config: MemoryConfig, stream: Stream, settings: Settings) -> None:
        self.name = name
        self.model, self.config, self.stream, self.settings = model, config, stream, settings

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        """Answer low levels from a memory for each question, the others from one stream."""
        levels = by_level(wanted)
        near = {level: asked for level, asked in levels.items() if self._is_near(level)}
        far = {level: asked for level, asked in levels.items() if level not in near}
        if near:
            yield from self._near(near)
        if far:
            yield from self._far(far)

    def _is_near(self, level: int) -> bool:
        """Whether other questions' contexts would still be in short-term memory."""
        if self.stream.together:
            return False
        return self.stream.tokens(level) < self.config.short_term_tokens + 2 * self.config.chunk_tokens

    def _near(self, levels: dict[int, list[Question]]) -> Iterator[Answered]:
        written: dict[tuple[str, tuple[int, ...]], WrittenMemory] = {}

        def jobs() -> Iterator[Job]:
            for memory, group in self._memories([question for asked in levels.values() for question in asked]):
                count = 0
                for level, asked in levels.items():
                    memory = memory.fork()
                    memory.write_distractors(self.stream, count, self.stream.count(level), self.settings.writing)
                    count = self.stream.count(level)
                    for question in asked:
                        if question.id in group:
                            written[question.id, (level,)] = memory
                            yield Job(question, (level,), memory.memory, self.settings.put(question))

        for job, generation in generations(self.model, jobs(), self.settings):
            memory = written.pop((job.question.id, job.levels))
            yield Answered(job.question, job.levels, self._reply(memory, job, generation))

    def _memories(self, questions: Sequence[Question]) -> Iterator[tuple[WrittenMemory, set[str]]]:
        """Memories of contexts, each with the questions about them by id.

        Contexts that begin with those of the memory before are written on from there, so a conversation that is
        asked about after many of its messages is written once, whatever is asked at whatever levels.
        """
        begun: tuple[str, ...] = ()
        memory = self._empty()
        for contexts, group in _by_contexts(questions).items():
            if contexts[: len(begun)] != begun:
                begun, memory = (), self._empty()
            more = contexts[len(begun) :]
            memory.write(more, [self.stream.task.contexts[name] for name in more], progress=self.settings.writing)
            begun = contexts
            yield memory.fork(), group

    def _empty(self) -> WrittenMemory:
        return WrittenMemory(self.model, self.config, seed=self.settings.seed)

    def _far(self, levels: dict[int, list[Question]]) -> Iterator[Answered]:
        memory = self._empty()
        contexts = self.stream.task.contexts
        memory.write(list(contexts), list(contexts.values()), progress=self.settings.writing)
        count = 0
        for level, questions in levels.items():
            memory.write_distractors(self.stream, count, self.stream.count(level), self.settings.writing)
            count = self.stream.count(level)
            jobs = [
                Job(
                    question,
                    (level,),
                    memory.memory,
                    self.settings.put(question),
                    None if self.stream.together else memory.own_and_distractors(question),
                )
                for question in questions
            ]
            for job, generation in generations(self.model, jobs, self.settings):
                yield Answered(job.question, job.levels, self._reply(memory, job, generation))

    def _reply(self, memory: WrittenMemory, job: Job, generation: Generation) -> Reply:
        ranked = self.model.search(memory.memory, query(job.asked), limit=None, where=job.where)
        found = [(memory.name_of[one.source], one.relevance) for one in ranked]
        return reply_of(generation, found, job.question.gold)


def by_level(wanted: Sequence[tuple[Question, int]]) -> dict[int, list[Question]]:
    """Questions by the level at which they are asked, lowest first."""
    found: dict[int, list[Question]] = {}
    for question, level in sorted(wanted, key=lambda one: one[1]):
        found.setdefault(level, []).append(question)
    return found


def _by_contexts(questions: Sequence[Question]) -> dict[tuple[str, ...], set[str]]:
    """Ids of questions by their contexts, in the order in which they came; longer contexts follow their beginning."""
    found: dict[tuple[str, ...], set[str]] = {}
    first: dict[str, int] = {}
    for place, question in enumerate(questions):
        found.setdefault(question.contexts, set()).add(question.id)
        first.setdefault(question.contexts[0] if question.contexts else "", place)
    return dict(sorted(found.items(), key=lambda item: (first[item[0][0] if item[0] else ""], item[0])))
