"""Asking in the conversation in which it was told, as somebody who goes on chatting does."""

from collections.abc import Iterator, Sequence

from mplus.config import MemoryConfig
from mplus.evaluation.from_memory import by_level
from mplus.evaluation.question_prompts import exchanges
from mplus.evaluation.replies import Answered, Job, Settings, generations, reply_of
from mplus.evaluation.retention import Stream, WrittenMemory
from mplus.evaluation.tasks import Question
from mplus.model import MPlus
from mplus.turns import prompt_start, turn_text

Turns = list[dict[str, str]]


class InConversation:
    """Earlier turns are read from memory and the latest stand in the prompt, before the question.

    Memory also holds what else was written before: the distractors of the level.
    """

    name = "chat"

    def __init__(self, model: MPlus, config: MemoryConfig, stream: Stream, settings: Settings) -> None:
        self.model, self.config, self.stream, self.settings = model, config, stream, settings

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        """Questions that are asked in a conversation; the others are left out."""
        for job, generation in generations(self.model, self._jobs(wanted), self.settings):
            yield Answered(job.question, job.levels, reply_of(generation))

    def _jobs(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Job]:
        written, count = WrittenMemory(self.model, self.config, seed=self.settings.seed), 0
        for level, questions in by_level(wanted).items():
            written.write_distractors(self.stream, count, self.stream.count(level))
            count = self.stream.count(level)
            told = _Told(written.fork())
            for question in sorted(questions, key=lambda question: (question.contexts[:1], len(question.turns))):
                if question.turns:
                    turns = [{"role": role, "content": text} for role, text in question.turns]
                    turns += exchanges(question.before)
                    asked = {"role": "user", "content": question.text}
                    start = self._start(turns, asked)
                    yield Job(question, (level,), told.memory_of(turns[:start]).memory, [*turns[start:], asked])

    def _start(self, turns: Turns, asked: dict[str, str]) -> int:
        """Place of the first turn that stands in the prompt: of as many as are to, those that fit."""
        kept = self.model.prompt_turns if self.settings.prompt_turns is None else self.settings.prompt_turns
        room = self.model.prompt_room(self.config) - self.settings.max_new_tokens
        start = prompt_start(turns, len(turns), kept)
        while start < len(turns) and self.model.count_tokens([*turns[start:], asked]) > room:
            start += 1
        return start


class _Told:
    """Memories of conversations; one that goes on where the last one ended is written on from there."""

    def __init__(self, empty: WrittenMemory) -> None:
        self._empty, self._last = empty, empty
        self._begun: Turns = []

    def memory_of(self, turns: Turns) -> WrittenMemory:
        """A memory of what was written before and of these turns."""
        if turns[: len(self._begun)] != self._begun:
            self._begun, self._last = [], self._empty
        if more := turns[len(self._begun) :]:
            self._last = self._last.fork()
            texts = list(map(turn_text, more))
            self._last.write([f"turn-{len(self._begun) + place}" for place in range(len(more))], texts)
            self._begun = turns
        return self._last
