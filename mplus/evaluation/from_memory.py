"""Answering from latent memory: M+ with each of its scorers."""

from collections.abc import Iterator, Sequence

from mplus.config import MemoryConfig
from mplus.evaluation.question_prompts import prompt, query
from mplus.evaluation.replies import Answered, Job, Reply, Settings, generations, reply_of
from mplus.evaluation.retention import Stream, WrittenMemory, distractor_names
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
        by_level: dict[int, list[Question]] = {}
        for question, level in wanted:
            by_level.setdefault(level, []).append(question)
        near = {level for level in by_level if self._is_near(level)}
        for level in sorted(near):
            yield from self._near(level, by_level[level])
        if by_level.keys() - near:
            yield from self._far({level: by_level[level] for level in sorted(by_level.keys() - near)})

    def _is_near(self, level: int) -> bool:
        """Whether other questions' contexts would still be in short-term memory."""
        if self.stream.together:
            return False
        return self.stream.tokens(level) < self.config.short_term_tokens + 2 * self.config.chunk_tokens

    def _near(self, level: int, questions: Sequence[Question]) -> Iterator[Answered]:
        together: dict[tuple[str, ...], list[Question]] = {}
        for question in questions:
            together.setdefault(question.contexts, []).append(question)

        written: dict[str, WrittenMemory] = {}

        def jobs() -> Iterator[Job]:
            for contexts, group in together.items():
                memory = WrittenMemory(self.model, self.config, seed=self.settings.seed)
                memory.write(contexts, [self.stream.task.contexts[name] for name in contexts])
                self._write_distractors(memory, 0, self.stream.count(level))
                for question in group:
                    written[question.id] = memory
                    yield Job(question, (level,), memory.memory, prompt(question.text, self.settings.style))

        for job, generation in generations(self.model, jobs(), self.settings):
            memory = written.pop(job.question.id)
            yield Answered(job.question, job.levels, self._reply(memory, job, generation))

    def _far(self, by_level: dict[int, list[Question]]) -> Iterator[Answered]:
        memory = WrittenMemory(self.model, self.config, seed=self.settings.seed)
        contexts = self.stream.task.contexts
        memory.write(list(contexts), list(contexts.values()), progress=self.settings.writing)
        count = 0
        for level, questions in by_level.items():
            self._write_distractors(memory, count, self.stream.count(level))
            count = self.stream.count(level)
            jobs = [
                Job(
                    question,
                    (level,),
                    memory.memory,
                    prompt(question.text, self.settings.style),
                    None if self.stream.together else memory.own_and_distractors(question),
                )
                for question in questions
            ]
            for job, generation in generations(self.model, jobs, self.settings):
                yield Answered(job.question, job.levels, self._reply(memory, job, generation))

    def _write_distractors(self, memory: WrittenMemory, start: int, stop: int) -> None:
        texts = self.stream.distractors[start:stop]
        memory.write(distractor_names(start, stop), texts, progress=self.settings.writing)

    def _reply(self, memory: WrittenMemory, job: Job, generation: Generation) -> Reply:
        ranked = self.model.search(memory.memory, query(job.asked), limit=None, where=job.where)
        found = [(memory.name_of[one.source], one.relevance) for one in ranked]
        return reply_of(generation, found, job.question.gold)
