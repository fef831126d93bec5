"""Answering from short-term memory alone (MemoryLLM): a pool of fixed size in which everything fades."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from mplus.config import MemoryConfig
from mplus.evaluation.replies import Answered, Job, Settings, generations, reply_of
from mplus.evaluation.retention import Stream, WrittenMemory, distractor_names
from mplus.evaluation.tasks import Question
from mplus.model import MPlus

BLOCK_TEXTS = 4
"""Contexts that are written one after the other before their questions are asked together."""
PROMPT_ROOM = 512
"""Positions of the window left for question and answer."""
PREFIX_TOKENS_AT_ONCE = 32_768
"""Most prefix tokens of a batch: every row holds its own copy of the pool."""


def memoryllm(config: MemoryConfig, window: int) -> MemoryConfig:
    """The layout of MemoryLLM for a backbone: no long-term memory, and as large a pool as its window allows.

    Single tokens are evicted at random, layer by layer, as published, so that a text fades instead of being there or
    not. The pool is read whole.
    """
    size = config.tokens_per_write
    pool = max((window - PROMPT_ROOM) // size, 1) * size
    return config.model_copy(
        update={"long_term_capacity": 0, "recalled_tokens": 0, "short_term_tokens": pool, "layout": "token"}
    )


class Due(NamedTuple):
    """Questions of one block that are to be asked once so many tokens have been written."""

    tokens: int
    level: int
    block: int


class Rolling:
    """One stream for all questions and levels, though nothing lasts in it.

    The pool is filled first. Then contexts are written a few at a time, then distractors; each question is asked
    whenever as many tokens as a level says have been written after its contexts. Other questions' contexts in
    between take up room like any text, but the question does not read them.
    """

    def __init__(self, name: str, model: MPlus, config: MemoryConfig, stream: Stream, settings: Settings) -> None:
        self.name = name
        self.model, self.config, self.stream = model, config, stream
        rows = max(PREFIX_TOKENS_AT_ONCE // config.prefix_tokens, 1)
        self.settings = replace(settings, batch=min(settings.batch, rows))

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        """Questions in the order in which they are to be asked."""
        levels: dict[str, set[int]] = {}
        for question, level in wanted:
            levels.setdefault(question.id, set()).add(level)
        blocks = _blocks([question for question, _ in wanted])
        pool = Pool(self.model, self.config, self.stream, self.settings.seed)
        while pool.tokens < self.config.short_term_tokens:
            pool.write_distractor()
        due: list[Due] = []
        for number, block in enumerate(blocks):
            pool.write_contexts(dict.fromkeys(name for question in block for name in question.contexts))
            due += [Due(pool.tokens + level, level, number) for level in {at for q in block for at in levels[q.id]}]
            due = yield from self._asked(pool, due, blocks, levels)
        while due:
            pool.write_distractor()
            due = yield from self._asked(pool, due, blocks, levels)

    def _asked(
        self, pool: "Pool", due: list[Due], blocks: Sequence[Sequence[Question]], levels: dict[str, set[int]]
    ) -> Generator[Answered, None, list[Due]]:
        """Answer the questions that are due; returns the others."""
        for one in sorted(due):
            if one.tokens > pool.tokens:
                break
            jobs = [
                Job(
                    question,
                    (one.level,),
                    pool.written.memory,
                    self.settings.put(question),
                    pool.written.own_and_distractors(question),
                )
                for question in blocks[one.block]
                if one.level in levels[question.id]
            ]
            for job, generation in generations(self.model, jobs, self.settings):
                passed = pool.tokens - one.tokens + one.level
                yield Answered(job.question, job.levels, reply_of(generation), passed)
        return [one for one in due if one.tokens > pool.tokens]


class Pool:
    """A memory, and how many tokens have gone through it."""

    def __init__(self, model: MPlus, config: MemoryConfig, stream: Stream, seed: int) -> None:
        self.written = WrittenMemory(model, config, seed=seed)
        self._stream = stream
        self._distractors = 0

    @property
    def tokens(self) -> int:
        """Text tokens written so far."""
        state = self.written.memory.state
        return state.text_tokens + len(state.tail.input_ids)

    def write_contexts(self, names: Iterable[str]) -> None:
        """Write contexts by name."""
        names = list(names)
        self.written.write(names, [self._stream.task.contexts[name] for name in names])

    def write_distractor(self) -> None:
        """Write the next distractor; after the last one the first again, long gone by then.

        Raises:
            ValueError: There is none.
        """
        texts = self._stream.distractors
        if not texts:
            raise ValueError(
                "memoryllm fills its pool with distractors: name some with --distractors, or ask at levels above 0."
            )
        (name,) = distractor_names(self._distractors, self._distractors + 1)
        self.written.write([name], [texts[self._distractors % len(texts)]])
        self._distractors += 1


def _blocks(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions by a few contexts each, in order, every question once."""
    by_contexts: dict[tuple[str, ...], dict[str, Question]] = {}
    for question in questions:
        by_contexts.setdefault(question.contexts, {})[question.id] = question
    blocks: list[list[Question]] = []
    room = 0
    for contexts, group in by_contexts.items():
        if room <= 0:
            blocks.append([])
            room = BLOCK_TEXTS
        blocks[-1] += group.values()
        room -= len(contexts)
    return blocks
