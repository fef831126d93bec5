"""From settings to what is asked of what: the task, the model, the stream of texts, and the answers on disk."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mplus.evaluation.common_questions import common_questions
from mplus.evaluation.data_files import passages
from mplus.evaluation.datasets import READERS
from mplus.evaluation.datasets.talk import talk, talk_task
from mplus.evaluation.evaluation_settings import LEVELS, PERPLEXITY, EvaluationSettings
from mplus.evaluation.facts_task import facts
from mplus.evaluation.modes import EMPTY, MODES, answerers, chosen
from mplus.evaluation.opening import open_model
from mplus.evaluation.perplexity import CONDITIONS, SHORTEST_TOKENS, Condition, documents
from mplus.evaluation.question_prompts import ANSWER_TOKENS
from mplus.evaluation.raw_answers import RawAnswers
from mplus.evaluation.replies import Settings
from mplus.evaluation.retention import Stream
from mplus.evaluation.tasks import Task
from mplus.model import MPlus
from mplus.progress import Progress, StageProgress

TOPS = (1, 2, 3)
"""How many passages rag reads unless the user says otherwise."""
QUESTIONS = 300
"""Answerable questions unless the user says otherwise."""
GENERATED = ("facts", "talk")
"""Tasks that need no file."""


class Experiment:
    """One task, one model, and everything that is needed to ask the one of the other.

    Args:
        asked: What to measure.
        out: Folder of the raw answers; None: one below ``runs/``, named by task and model.
        writing: Called while texts are written, with tokens so far and in total.
        model: The model, where it has been opened; None: opened by its name.
        task: The questions, where they have been read; None: read as the settings say.
        talk_files: What ``talk`` asks about where no file is named.

    Raises:
        ValueError: The task's file is missing or not of its format, a memory setting is wrong, or there are too few
            distractors.
        ModelNotFoundError: Nothing under the model's name.
    """

    def __init__(
        self,
        asked: EvaluationSettings,
        out: Path | None = None,
        writing: Progress | None = None,
        *,
        model: MPlus | None = None,
        task: Task | None = None,
        talk_files: Sequence[Path] = (),
    ) -> None:
        for name in asked.at_most:
            if name not in MODES:
                raise ValueError(f"at_most: {name!r}: expected one of {', '.join(MODES)}.")
        self.asked = asked
        self.task = task or read_task(asked, talk_files)
        self.model = model or open_model(asked.model, backbone=asked.backbone, dtype=asked.dtype)
        usual = self.model.memory_config
        self.layout = type(usual).model_validate(usual.model_dump() | asked.layout)
        style = asked.prompt or self.task.style
        tokens = asked.max_new_tokens or ANSWER_TOKENS[style]
        self.settings = Settings(
            style,
            asked.examples,
            tokens,
            asked.batch,
            asked.seed,
            asked.abstain_below,
            asked.prompt_turns,
            asked.gate,
            writing,
        )
        extra = [text for path in asked.distractors for text in passages(path)]
        random.Random(asked.seed).shuffle(extra)
        levels = asked.levels if asked.levels is not None else self.task.levels or LEVELS
        self.stream = Stream.of(self.task, extra, self.model.tokenizer, levels, together=asked.together)
        self._fingerprint = self.model.weights.fingerprints[self.layout.recall]
        self._out = out or Path("runs") / f"{asked.task}-{self._fingerprint[:8]}"
        self._files = talk_files
        self._drawn = None if task is None else _drawn(task)

    def answered(self, progress: StageProgress) -> RawAnswers:
        """Ask every question in every way."""
        names = chosen(self.asked.mode or self.task.modes, self.model, self.layout)
        answers = RawAnswers(self._out, self._described())
        for one in answerers(names, self.model, self.layout, self.stream, self.settings, tops=self.asked.top or TOPS):
            # "rag-bm25 top-1" is capped as "rag-bm25".
            at_most = self.asked.at_most.get(one.name.split(" ")[0])
            answers.ask(one, self.stream, at_most=at_most, progress=progress)
        return answers

    def scored(self, progress: StageProgress) -> RawAnswers:
        """Score every document in every condition, for perplexity."""
        read = documents(self.task.contexts, self.model.tokenizer)
        answers = RawAnswers(self._out, self._described())
        batch, seed = self.settings.batch, self.settings.seed
        for name in CONDITIONS:
            condition = Condition(name, self.model, self.layout, self.stream, batch=batch, seed=seed)
            wanted = {
                level: [document for document in read if (name, level, document.id) not in answers.done]
                for level in condition.levels()
            }
            total = len(read) * len(wanted)
            count = total - sum(map(len, wanted.values()))
            for scored in condition.scored({level: some for level, some in wanted.items() if some}):
                answers.add([{"task": PERPLEXITY, "mode": name, **scored._asdict()}])
                count += 1
                progress(name, count, total)
        return answers

    def _described(self) -> dict[str, Any]:
        """What makes answers comparable."""
        asked, settings = self.asked, self.settings
        same = {"task", "together", "examples", "abstain_below", "seed"}
        return asked.model_dump(include=same) | {
            "questions": sum(question.is_answerable for question in self.task.questions),
            "drawn": self._drawn,
            "prompt_turns": asked.prompt_turns if asked.prompt_turns is not None else self.model.prompt_turns,
            "gate": None if asked.gate == "auto" else asked.gate,
            "data": _digest(asked.data) or ",".join(filter(None, map(_digest, self._files))) or None,
            "common": [_digest(path) for path in asked.common],
            "distractors": [_digest(path) for path in asked.distractors],
            "unanswerable": sum(not question.is_answerable for question in self.task.questions),
            "split": asked.own_split if asked.task in GENERATED and asked.data is None else None,
            "model": self._fingerprint,
            "layout": self.layout.model_dump(),
            "prompt": settings.style,
            "max_new_tokens": settings.max_new_tokens,
        }


def read_task(asked: EvaluationSettings, talk_files: Sequence[Path] = ()) -> Task:
    """The questions that are asked for, read from their file or generated.

    Args:
        asked: Which, and how many.
        talk_files: What ``talk`` asks about where no file is named.

    Raises:
        ValueError: A file is missing, not to be had or not of the task's format.
    """
    name, data, rng = asked.task, asked.data, random.Random(asked.seed)
    if name == "talk" and (data is not None or talk_files):
        read = partial(talk, data) if data is not None else partial(talk_task, talk_files)
        return _with_common(read(asked.questions, asked.unanswerable, rng), asked)
    count = QUESTIONS if asked.questions is None else asked.questions
    if name == "suite":
        raise ValueError(
            "suite: expected one task; a suite is run by mplus evaluate suite FOLDER, or mplus.evaluation.suite."
        )
    if name == "facts":
        if data is not None:
            raise ValueError(f"--data {data}: facts are generated. Name texts to stand in between with --distractors.")
        unanswerable = count // 3 if asked.unanswerable is None else asked.unanswerable
        return facts(count, unanswerable, asked.seed, split=asked.own_split)
    if data is None:
        raise ValueError(
            f"{name} is read from a file that you name: pass --data FILE (docs/reference/evaluation.md says which)."
        )
    if name == PERPLEXITY:
        return _documents(data, count, asked.seed)
    return READERS[name](data, count, asked.unanswerable or 0, rng)


def _with_common(task: Task, asked: EvaluationSettings) -> Task:
    """A task with common questions, asked beside its texts and with an empty memory."""
    if not asked.common:
        return task
    rng = random.Random(f"{asked.seed} common")
    more = [
        question
        for path in asked.common
        for question in common_questions(path, asked.common_questions, task.questions, rng)
    ]
    return replace(task, questions=(*task.questions, *more), modes=(*task.modes, EMPTY))


def _documents(data: Path, count: int, seed: int) -> Task:
    """Texts whose second halves are scored; those that are too short are spare."""
    # A token is hardly ever longer than a word.
    texts = [text for text in passages(data) if len(text.split()) >= SHORTEST_TOKENS]
    if len(texts) < count or not count:
        raise ValueError(f"--questions {count}: {data} has {len(texts)} texts long enough; ask for 1 to {len(texts)}.")
    random.Random(seed).shuffle(texts)
    taken: Mapping[str, str] = {f"document-{place}": text for place, text in enumerate(texts[:count])}
    return Task(PERPLEXITY, taken, (), tuple(texts[count:]), levels=(0, 16_000))


def _drawn(task: Task) -> str:
    """Names what is asked, where file, numbers and seed alone do not decide it."""
    return hashlib.sha256(repr([(q.id, q.text, q.contexts) for q in task.questions]).encode()).hexdigest()[:16]


def _digest(path: Path | None) -> str | None:
    """Names a file by its content, so that a run goes on only with the same."""
    if path is None:
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return f"{path.name}:{digest.hexdigest()[:16]}"
