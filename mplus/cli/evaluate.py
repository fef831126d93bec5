"""``mplus evaluate``: how much is remembered after how much, by every way of answering."""

import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mplus.evaluation.tasks import Task

TASKS = ("facts", "squad", "nq", "dialogue", "babi", "locomo", "longdoc")
LEVELS = "0,1000,2000,4000,8000,16000,32000,64000,160000"


def evaluate(
    task: Annotated[str, typer.Argument(help=f"What is asked: {', '.join(TASKS)}.")],
    data: Annotated[Path | None, typer.Option(help="File of the task; facts are generated.")] = None,
    distractors: Annotated[
        list[Path] | None,
        typer.Option(help="More texts to stand between memory and question: a file or folder. Repeatable."),
    ] = None,
    mode: Annotated[str, typer.Option(help="Ways of answering, separated by commas, or all.")] = "mplus",
    top: Annotated[str, typer.Option(help="How many passages rag reads, by commas.")] = "1,2,3",
    levels: Annotated[
        str | None, typer.Option(help=f"Distractor tokens at which is asked, by commas. Default {LEVELS}.")
    ] = None,
    questions: Annotated[int, typer.Option(min=0, help="Answerable questions.")] = 300,
    unanswerable: Annotated[
        int | None,
        typer.Option(min=0, help="Questions that nothing answers. Default: a third as many in facts, else 0."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Built-in name, folder, repository, or folder of trained parts.")
    ] = "smol-135m",
    backbone: Annotated[str, typer.Option(help="Backbone of a folder of trained parts.")] = "smol-135m",
    out: Annotated[Path | None, typer.Option(help="Folder of the raw answers; the same folder goes on.")] = None,
    prompt: Annotated[str | None, typer.Option(help="plain, short or completion. Default: the task's.")] = None,
    examples: Annotated[int, typer.Option(min=0, max=3, help="Worked examples, in completion.")] = 0,
    together: Annotated[
        bool, typer.Option(help="Other questions' contexts may be read as well: they are distractors too.")
    ] = False,
    config: Annotated[
        list[str] | None, typer.Option("--set", help="Memory layout, such as recalled_tokens=512. Repeatable.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 24,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    split: Annotated[str, typer.Option(help="Whose names and values facts has: dev or train.")] = "dev",
    seed: Annotated[int, typer.Option(help="Decides which questions are asked, and of what.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")] = False,
) -> None:
    """Measure what is remembered: write contexts, then distractors, and ask after more and more of them."""
    from mplus.evaluation.answering import Settings
    from mplus.evaluation.modes import answerers, chosen
    from mplus.evaluation.opening import open_model
    from mplus.evaluation.report import as_json as figures
    from mplus.evaluation.report import lines
    from mplus.evaluation.runner import Run
    from mplus.evaluation.stream import Stream
    from mplus.evaluation.texts import passages

    read = _task(task, data, questions, unanswerable, seed, split)
    if prompt is not None and prompt not in ("plain", "short", "completion"):
        raise ValueError(f"--prompt {prompt}: expected plain, short or completion.")
    opened = open_model(model, backbone=backbone, dtype=dtype)
    layout = type(opened.memory_config)(**{**opened.memory_config.model_dump(), **_assignments(config or [])})
    settings = Settings(prompt or read.style, examples, max_new_tokens, batch, seed)  # pyright: ignore[reportArgumentType]
    extra = [text for path in distractors or [] for text in passages(path)]
    random.Random(seed).shuffle(extra)
    wanted = _numbers("--levels", levels) if levels is not None else list(read.levels or _numbers("--levels", LEVELS))
    stream = Stream.of(read, extra, opened.tokenizer, wanted, together=together)
    tops = _numbers("--top", top)
    if min(tops) < 1:
        raise ValueError(f"--top {top}: expected numbers of passages, at least 1.")
    names = chosen([name.strip() for name in mode.split(",")], opened, layout)
    described = {
        "task": task,
        "data": _digest(data),
        "distractors": [_digest(path) for path in distractors or []],
        "questions": questions,
        "unanswerable": sum(not question.is_answerable for question in read.questions),
        "split": split if task == "facts" else None,
        "together": together,
        "model": opened.weights.fingerprint,
        "layout": layout.model_dump(),
        "prompt": settings.style,
        "examples": examples,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    run = Run(out or Path("runs") / f"{task}-{opened.weights.fingerprint[:8]}", described)
    progress = _Progress()
    for one in answerers(names, opened, layout, stream, settings, tops=tops):
        run.ask(one, stream, progress=progress)
    progress.close()
    report = lines(run.rows)
    (run.folder / "figures.json").write_text(json.dumps(figures(report), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(figures(report)))
    else:
        _show(report)
        print(f"Raw answers: {run.folder / 'answers.jsonl'}")


def _task(name: str, data: Path | None, questions: int, unanswerable: int | None, seed: int, split: str) -> "Task":
    from mplus.evaluation.people import facts
    from mplus.evaluation.readers import READERS

    if name == "facts":
        if data is not None:
            raise ValueError(f"--data {data}: facts are generated. Name texts to stand in between with --distractors.")
        if split not in ("dev", "train"):
            raise ValueError(f"--split {split}: expected dev or train.")
        return facts(questions, questions // 3 if unanswerable is None else unanswerable, seed, split=split)
    if name not in READERS:
        raise ValueError(f"task={name!r}: expected one of {', '.join(TASKS)}.")
    if data is None:
        raise ValueError(f"{name} is read from a file that you name: pass --data FILE (docs/evaluation.md says which).")
    return READERS[name](data, questions, unanswerable or 0, random.Random(seed))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text}: expected whole numbers, separated by commas.") from error


def _assignments(pairs: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair}: expected a setting of MemoryConfig and its value, name=value.")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _digest(path: Path | None) -> str | None:
    """Names a file by its content, so that a run goes on only with the same."""
    if path is None:
        return None
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return f"{path.name}:{digest.hexdigest()[:16]}"


def _show(report: "Sequence[Any]") -> None:
    from rich.console import Console
    from rich.table import Table

    from mplus.evaluation.report import HEADINGS, cells, kinds

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table()
    for heading in HEADINGS:
        table.add_column(heading)
    for line in report:
        table.add_row(*cells(line))
    console.print(table)
    if by_kind := kinds(report):
        table = Table()
        for heading in ("mode", "tokens", "kind", "n", "contains"):
            table.add_column(heading)
        for row in by_kind:
            table.add_row(*row)
        console.print(table)


class _Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    EVERY = 20.0

    def __init__(self) -> None:
        self._bar: Any = None
        self._name = ""
        self._last = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            if done == total or time.monotonic() - self._last > self.EVERY:
                self._last = time.monotonic()
                print(f"{name}: {done:,} of {total:,} answers", file=sys.stderr, flush=True)
            return
        from tqdm import tqdm

        if name != self._name:
            self.close()
            self._bar, self._name = tqdm(total=total, unit="answer", desc=name), name
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
