"""Every data set of a folder in one run: M+ beside RAG, on the same questions.

FOLDER/*.json, *.jsonl, *.gz, …    data sets, each recognised by what is in it
FOLDER/suite.toml                  optional: which files, their format, split, levels, numbers of questions
OUT/NAME/                          raw answers of one set, so that a run goes on where it was stopped
OUT/suite.md, suite.json           its tables and figures
"""

import json
import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mplus.evaluation.comparison import as_json, markdown
from mplus.evaluation.data_files import passages
from mplus.evaluation.datasets.drawing import TooFewError, spread
from mplus.evaluation.evaluation_settings import EvaluationSettings
from mplus.evaluation.experiment import Experiment, read_task
from mplus.evaluation.formats import BABI_FILE, TEXTS, recognised
from mplus.evaluation.modes import has_adapter, lacking
from mplus.evaluation.opening import open_model
from mplus.evaluation.tasks import COMMON, Question, Task
from mplus.inert import encode_inert
from mplus.model import MPlus
from mplus.progress import Progress, StageProgress

MANIFEST = "suite.toml"
MODES = ("mplus", *(f"rag-{name}{reader}" for name in ("bm25", "minilm", "e5") for reader in ("", "+adapter")))
QUESTIONS = 150
FAR = 64_000
"""Distractor tokens, beside none, where a set has passages to find."""
FAR_TASKS = ("squad", "nq", "rows", "dialogue")
SPLITS = {"dev": "dev", "valid": "dev", "validation": "dev", "test": "test", "train": "train"}
"""What words in the path of a file say about it."""
EVERYTHING = 1_000_000_000
DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".gz", ".txt", ".md", ".tar", ".tgz")
Number = Annotated[int, Field(ge=0)]


class DataSet(BaseModel):
    """One file of a suite.

    Raises:
        ValueError: An unknown field, format or split, or a number out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    name: str = ""
    format: Literal[
        "",
        "squad",
        "nq",
        "rows",
        "dialogue",
        "babi",
        "locomo",
        "longmemeval",
        "memoryagentbench",
        "beam",
        "longdoc",
        "talk",
        "common",
        "texts",
    ] = ""
    split: Literal["", "dev", "test", "train"] = ""
    levels: tuple[Number, ...] | None = None
    questions: Number | None = None
    unanswerable: Number | None = None
    kinds: tuple[str, ...] = ()


class Manifest(BaseModel):
    """``suite.toml``: what holds for all sets, and the sets.

    Raises:
        ValueError: An unknown field, or one out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    levels: tuple[Number, ...] | None = None
    questions: Number | None = None
    set: tuple[DataSet, ...] = ()


class Ran(NamedTuple):
    """What a suite leaves behind.

    Attributes:
        answers: Raw answers by name of the data set.
        skipped: What was not done, and why.
        folder: Where it all is.
    """

    answers: dict[str, list[dict[str, Any]]]
    skipped: list[str]
    folder: Path


def data_sets(folder: Path, split: str | None) -> tuple[list[DataSet], list[str]]:
    """The data sets of a folder that belong to a split (None: all but train), and what is left out.

    Raises:
        ValueError: No such folder, nothing in it, a bad manifest, or a file that is of no known format.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder. Pass a folder of data sets: mplus evaluate suite FOLDER.")
    manifest = folder / MANIFEST
    listed = _listed(manifest) if manifest.exists() else [DataSet(file=file) for file in _files(folder)]
    kept: list[DataSet] = []
    skipped: list[str] = []
    for one in listed:
        path = folder / one.file
        if not path.exists():
            raise ValueError(f"{manifest}: {one.file}: no such file. Paths are relative to {folder}.")
        known = one.split or _split_of(one.file)
        task = one.format or recognised(path)
        name = one.name or _name(one.file)
        given = one.model_copy(update={"file": path, "format": task, "split": known, "name": name})
        if task == TEXTS or known == split or (split is None and known != "train"):
            kept.append(given)
        else:
            skipped.append(f"{one.file}: of split {known or 'none'}, asked for is {split or 'dev and test'}")
    if all(one.format == TEXTS for one in kept):
        left_out = f" Left out: {'; '.join(skipped)}." if skipped else ""
        raise ValueError(
            f"{folder}: no data set of split {split or 'dev or test'}.{left_out} A file's split is a word of its path "
            f"(dev, test, train), or split = in {MANIFEST}."
        )
    return _named_apart(kept), skipped


def _listed(manifest: Path) -> list[DataSet]:
    try:
        given = Manifest.model_validate(tomllib.loads(manifest.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        said = error if isinstance(error, tomllib.TOMLDecodeError) else _first(error)
        raise ValueError(f"{manifest}: {said}") from error
    if not given.set:
        raise ValueError(f'{manifest}: names no file; expected some of [[set]] with file = "NAME".')
    common = {name: value for name in ("levels", "questions") if (value := getattr(given, name)) is not None}
    return [
        one.model_copy(update={name: value for name, value in common.items() if getattr(one, name) is None})
        for one in given.set
    ]


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: found {first['input']!r:.60}; {first['msg']}."


def _files(folder: Path) -> list[Path]:
    """Files that may be data sets, and folders of bAbI, relative to a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name.endswith(DATA_SUFFIXES)]
    named = [p for p in files if not p.name.startswith((".", "README", "LICENSE"))]
    babi = {path.parent for path in named if BABI_FILE.fullmatch(path.name) and path.parent != folder}
    return sorted(path.relative_to(folder) for path in {*babi, *(p for p in named if p.parent not in babi)})


def _split_of(path: Path) -> Literal["", "dev", "test", "train"]:
    found = [SPLITS[word] for word in re.findall(r"[a-z]+", str(path).lower()) if word in SPLITS]
    return found[-1] if found else ""  # pyright: ignore[reportReturnType]


def _name(path: Path) -> str:
    return re.sub(r"[^\w-]+", "-", str(path).split(".")[0]).strip("-") or "set"


def _named_apart(sets: Sequence[DataSet]) -> list[DataSet]:
    names = [one.name for one in sets]
    return [
        one
        if names.count(one.name) == 1
        else one.model_copy(update={"name": _name(Path(one.file.name.replace(".", "-")))})
        for one in sets
    ]


class Suite:
    """A folder of data sets, and the model that they are asked of.

    Args:
        asked: What to ask how; ``data`` is the folder. What is not given is the suite's own, or the manifest's.
        out: Folder of the answers; None: one below ``runs/``.
        writing: Called while texts are written, with tokens so far and in total.
        model: The model, where it has been opened; None: opened by its name.

    Raises:
        ValueError: No folder, or data sets that cannot be read.
        ModelNotFoundError: Nothing under the model's name.
    """

    def __init__(
        self,
        asked: EvaluationSettings,
        out: Path | None = None,
        writing: Progress | None = None,
        *,
        model: MPlus | None = None,
    ) -> None:
        if asked.data is None:
            raise ValueError("suite: expected a folder of data sets: mplus evaluate suite FOLDER.")
        self.asked, self._writing = asked, writing
        self.sets, self.skipped = data_sets(asked.data, asked.split)
        self.model = model or open_model(asked.model, backbone=asked.backbone, dtype=asked.dtype)
        self.folder = out or Path("runs") / f"suite-{self.model.fingerprint[:8]}"
        self.modes = tuple(self._modes())

    def _modes(self) -> Iterator[str]:
        """Ways of answering that are possible here; of the others it is noted why they are not."""
        wanted = self.asked.mode or MODES
        missing = lacking([name for name in wanted if name != "all"])
        for name in wanted:
            if name in missing:
                self.skipped.append(f"{name}: its embedder is not installed; {missing[name]}")
            elif "+" in name and not has_adapter(self.model) and self.asked.mode is None:
                self.skipped.append(f"{name}: this model has no read adapter")
            else:
                yield name

    def run(self, progress: StageProgress) -> Ran:
        """Ask every set in every way; after each the tables are written anew."""
        answers: dict[str, list[dict[str, Any]]] = {}
        for one in self.sets:
            if one.format == TEXTS:
                continue
            experiment = self._experiment(one)
            told = lambda stage, done, total, name=one.name: progress(f"{name}: {stage}", done, total)
            answers[one.name] = experiment.answered(told).rows
            self._keep(answers)
        return Ran(answers, self.skipped, self.folder)

    def _keep(self, answers: dict[str, list[dict[str, Any]]]) -> None:
        left_out = "".join(f"- {line}\n" for line in self.skipped)
        text = markdown(answers) + (f"\nNot asked:\n\n{left_out}" if left_out else "")
        (self.folder / "suite.md").write_text(text, encoding="utf-8")
        figures = as_json(answers) | {"skipped": self.skipped}
        (self.folder / "suite.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")

    def _experiment(self, one: DataSet) -> Experiment:
        asked = self.asked
        task = self._task(one)
        modes = (*self.modes, *(mode for mode in task.modes if mode not in self.modes and asked.mode is None))
        if one.format == COMMON:
            modes = task.modes
        others = self._distractors(one) if one.format in FAR_TASKS or (asked.levels or one.levels) else ()
        settings = asked.model_copy(
            update={
                "task": one.format,
                "data": one.file,
                "mode": modes,
                "top": asked.top or (1,),
                "levels": self._levels(one, task, others),
                "distractors": (*others, *asked.distractors),
                "split": None,
            }
        )
        return Experiment(settings, self.folder / one.name, self._writing, model=self.model, task=task)

    def _task(self, one: DataSet) -> Task:
        asked = self.asked
        most = asked.questions if asked.questions is not None else one.questions
        if most is None and one.format != "talk":
            most = QUESTIONS
        declined = asked.unanswerable if asked.unanswerable is not None else one.unanswerable
        settings = asked.model_copy(update={"task": one.format, "data": one.file, "unanswerable": declined})
        task = _read(settings, most if not one.kinds else EVERYTHING)
        return _of_kinds(task, one, most, random.Random(asked.seed)) if one.kinds else task

    def _distractors(self, one: DataSet) -> tuple[Path, ...]:
        """Texts of the folder that may stand between: those that are only texts, then those of other data sets."""
        texts = [other.file for other in self.sets if other.format == TEXTS]
        others = [o.file for o in self.sets if o.format in FAR_TASKS and o.file != one.file and o.format != one.format]
        return (*texts, *others)

    def _levels(self, one: DataSet, task: Task, others: Sequence[Path]) -> tuple[int, ...]:
        """Levels as asked for; those for which there are too few distractors are left out, and noted."""
        usual = (0, FAR) if one.format in FAR_TASKS else (0,)
        levels = self.asked.levels or one.levels or usual
        if one.format == COMMON or not any(levels):
            return (0,)
        texts = dict.fromkeys(
            (*task.spare, *(t for path in (*others, *self.asked.distractors) for t in passages(path)))
        )
        room, contexts = 0, set(task.contexts.values())
        for text in texts:
            if room >= max(levels):
                break
            room += 0 if text in contexts else len(encode_inert(self.model.tokenizer, text))
        for level in levels:
            if level > room:
                self.skipped.append(f"{one.name} after {level:,} tokens: the folder has {room:,} of other texts")
        return tuple(level for level in levels if level <= room) or (0,)


def _read(settings: EvaluationSettings, most: int | None) -> Task:
    """A task with at most so many questions."""
    declined = settings.unanswerable
    while True:
        try:
            return read_task(settings.model_copy(update={"questions": most, "unanswerable": declined}))
        except TooFewError as few:
            if few.found == 0 or (most == 0 and not declined):
                raise
            if declined and few.wanted == declined:
                declined = few.found
            else:
                share = few.found / few.wanted
                most = int((most or 0) * share)
                declined = None if declined is None else int(declined * share)


def _of_kinds(task: Task, one: DataSet, most: int | None, rng: random.Random) -> Task:
    by_kind: dict[str, list[Question]] = {kind: [] for kind in one.kinds}
    for question in task.questions:
        if question.kind in by_kind:
            by_kind[question.kind].append(question)
    if empty := [kind for kind, found in by_kind.items() if not found]:
        known = ", ".join(sorted({question.kind for question in task.questions}))
        raise ValueError(f"{one.file}: kinds {empty}: no question is of that kind; expected some of {known}.")
    total = sum(map(len, by_kind.values()))
    asked = tuple(spread(list(by_kind.values()), total if most is None else most, rng))
    used = {name for question in asked for name in question.contexts}
    contexts = {name: text for name, text in task.contexts.items() if name in used}
    return Task(task.name, contexts, asked, task.spare, task.style, task.levels, task.modes)
