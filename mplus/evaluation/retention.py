"""What is written before questions are asked: the contexts of all questions, then distractors, level by level.

One stream serves every question. Where each question is to meet its own contexts and the distractors only, as if
nobody else's had been written, its read is limited to those sources (``where``): a source that may not be read is
not there for recall, nor in the prefix. That is exact once distractors fill short-term memory; below that, a
memory of its own is small and quick to write.
"""

from bisect import bisect_left
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from mplus.config import MemoryConfig
from mplus.evaluation.tasks import Question, Task
from mplus.generation.where import Where
from mplus.inert import encode_inert
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.progress import Progress


@dataclass(frozen=True)
class Stream:
    """Contexts, distractors and the levels at which is asked.

    Attributes:
        task: For the contexts.
        distractors: Texts in the order of writing.
        totals: Tokens written once each of them has been.
        levels: Distractor tokens at which is asked, ascending.
        together: Whether other questions' contexts may be read too.
    """

    task: Task
    distractors: tuple[str, ...]
    totals: tuple[int, ...]
    levels: tuple[int, ...]
    together: bool = False

    @classmethod
    def of(
        cls,
        task: Task,
        extra: Sequence[str],
        tokenizer: Any,
        levels: Sequence[int],
        *,
        together: bool = False,
    ) -> "Stream":
        """The stream of a task: distractors are its spare texts, then ``extra`` ones, as far as they are needed.

        Raises:
            ValueError: A negative level, or too few distractors for the highest.
        """
        if not levels or min(levels) < 0:
            raise ValueError(f"levels={list(levels)}: expected numbers of distractor tokens, none of them negative.")
        contexts = set(task.contexts.values())
        distractors: list[str] = []
        sizes: list[int] = []
        for text in dict.fromkeys((*task.spare, *extra)):
            if sum(sizes) >= max(levels):
                break
            if text not in contexts:
                distractors.append(text)
                sizes.append(len(encode_inert(tokenizer, text)))
        if sum(sizes) < max(levels):
            raise ValueError(
                f"The highest level is {max(levels):,} distractor tokens, but there are {sum(sizes):,}. Name more "
                "texts with --distractors (as often as you like), or ask at lower --levels."
            )
        return cls(task, tuple(distractors), tuple(accumulate(sizes)), tuple(sorted(set(levels))), together)

    def count(self, level: int) -> int:
        """How many distractors are written at a level: the fewest that have its tokens."""
        return 0 if level == 0 else bisect_left(self.totals, level) + 1

    def tokens(self, level: int) -> int:
        """Distractor tokens written at a level; never fewer than it says."""
        count = self.count(level)
        return self.totals[count - 1] if count else 0


class WrittenMemory:
    """A memory and the names of what was written into it.

    Texts are handed over many at a time, which is quickest; each is a source of its own.
    """

    def __init__(self, model: MPlus, config: MemoryConfig, *, seed: int = 0) -> None:
        """An empty memory. Reads leave no trace in it, so that no question changes what another recalls."""
        self.model = model
        self.memory: Memory = model.new_memory(
            seed=seed, config=config.model_copy(update={"recall_frequency_gain": 0.0})
        )
        self.name_of: dict[str, str] = {}
        self.source_of: dict[str, str] = {}

    def write(self, names: Sequence[str], texts: Sequence[str], *, progress: Progress | None = None) -> None:
        """Write texts, each under a name of its own."""
        if not texts:
            return
        for name in names:
            source = f"text-{len(self.name_of) + 1}"
            self.name_of[source], self.source_of[name] = name, source
        self.model.write(self.memory, list(texts), progress=progress)

    def write_distractors(self, stream: Stream, start: int, stop: int, progress: Progress | None = None) -> None:
        """Write the distractors of a stream from one place to another."""
        self.write(distractor_names(start, stop), stream.distractors[start:stop], progress=progress)

    def fork(self) -> "WrittenMemory":
        """An independent memory with the same content; what is written into one is not in the other."""
        other = copy(self)
        other.memory, other.name_of, other.source_of = self.memory.fork(), dict(self.name_of), dict(self.source_of)
        return other

    def own_and_distractors(self, question: Question) -> Where:
        """Which sources a question meets that is to see no other question's contexts."""
        own = {self.source_of[name] for name in question.contexts}
        return lambda source, _: source in own or self.name_of[source].startswith("distractor-")


def distractor_names(start: int, stop: int) -> list[str]:
    """Names of distractors by place."""
    return [f"distractor-{place}" for place in range(start, stop)]
