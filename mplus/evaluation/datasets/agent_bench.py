"""MemoryAgentBench: many questions about one long context, such as facts of which the latest counts."""

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from mplus.evaluation.data_files import PASSAGE_WORDS, answer_texts, field_of, numbered_records
from mplus.evaluation.datasets.drawing import enough, spread
from mplus.evaluation.metrics import contains_answer
from mplus.evaluation.tasks import Question, Task

ABILITIES = (
    ("factconsolidation", "selective forgetting"),
    ("icl", "learning"),
    ("recsys", "learning"),
    ("infbench", "understanding"),
    ("detective", "understanding"),
)
"""What a source of contexts asks for, by how its name begins; the others ask for retrieval."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def memory_agent_bench(path: Path, questions: int, unanswerable: int, rng: random.Random) -> Task:
    """Records of ``context``, ``questions``, ``answers`` and ``metadata``, as parquet or JSON lines.

    A context is written in parts of about a hundred words, each a source. The parts that hold an accepted answer word
    for word are the right ones. None is unanswerable.
    """
    if unanswerable:
        raise ValueError(
            f"--unanswerable {unanswerable}: every question of MemoryAgentBench has an answer. Leave it out."
        )
    contexts: dict[str, str] = {}
    by_context: list[list[Question]] = []
    for number, record in numbered_records(path):
        where = f"{path}, record {number}"
        about = record.get("metadata") or {}
        source = str(about.get("source") or "context") if isinstance(about, dict) else "context"
        named = {
            f"{source}-{number}/{place}": part
            for place, part in enumerate(parts(str(field_of(record, "context", path))))
        }
        if not named:
            raise ValueError(f"{where}: the context is empty.")
        contexts |= named
        asked, accepted = (field_of(record, name, path) for name in ("questions", "answers"))
        if not isinstance(asked, list) or not isinstance(accepted, list) or len(asked) != len(accepted):
            raise ValueError(f"{where}: expected questions and answers as lists of one length.")
        ability = next((kind for begin, kind in ABILITIES if source.lower().startswith(begin)), "retrieval")
        mine: list[Question] = []
        for place, (text, given) in enumerate(zip(cast("list[Any]", asked), cast("list[Any]", accepted), strict=True)):
            answers = answer_texts(given)
            if not answers:
                raise ValueError(f"{where}: question {place} has no answer.")
            gold = tuple(name for name, part in named.items() if contains_answer(part, answers))
            name = f"{source}-{number}/q{place}"
            mine.append(Question(name, str(text).strip(), answers, tuple(named), gold, source, ability))
        by_context.append(mine)
    found = spread(by_context, questions, rng)
    enough(path, "questions", questions, len(found))
    used = {name for question in found for name in question.contexts}
    kept = {name: text for name, text in contexts.items() if name in used}
    return Task("memoryagentbench", kept, tuple(found), levels=(0,))


def parts(text: str) -> Iterator[str]:
    """A text in parts of about ``PASSAGE_WORDS`` words that end with a line or a sentence, where these are short."""
    waiting, words = list[str](), 0
    for piece in _pieces(text):
        size = len(piece.split())
        if waiting and words + size > PASSAGE_WORDS:
            yield "\n".join(waiting)
            waiting, words = [], 0
        waiting.append(piece)
        words += size
    if waiting:
        yield "\n".join(waiting)


def _pieces(text: str) -> Iterator[str]:
    """Lines, and of longer ones sentences, and of longer sentences so many words."""
    for line in filter(None, map(str.strip, text.splitlines())):
        if len(line.split()) <= PASSAGE_WORDS:
            yield line
            continue
        for sentence in SENTENCE_END.split(line):
            words = sentence.split()
            for begin in range(0, len(words), PASSAGE_WORDS):
                yield " ".join(words[begin : begin + PASSAGE_WORDS])
