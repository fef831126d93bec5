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
    from collections.abc import Callable, Iterator, Mapping

    from mplus.config import MemoryConfig
    from mplus.evaluation.replies import Settings
    from mplus.evaluation.retention import Stream
    from mplus.evaluation.runner import Run
    from mplus.evaluation.tasks import PromptStyle, Task
    from mplus.model import MPlus

PERPLEXITY = "perplexity"
TASKS = ("facts", "squad", "nq", "dialogue", "babi", "locomo", "longdoc", PERPLEXITY)
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
    questions: Annotated[int, typer.Option(min=0, help="Answerable questions; documents in perplexity.")] = 300,
    at_most: Annotated[
        str | None,
        typer.Option(help="Ask costly ways of answering only so many: full-context=40,memoryllm=40."),
    ] = None,
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
    abstain_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="Decline where the confidence in an answer is lower.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer. Default: 64 where --prompt is plain, else 24.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 16,
    split: Annotated[str, typer.Option(help="Whose names and values facts has: dev or train.")] = "dev",
    seed: Annotated[int, typer.Option(help="Decides which questions are asked, and of what.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")] = False,
) -> None:
    """Measure what is remembered: write contexts, then distractors, and ask after more and more of them."""
    from mplus.evaluation.data_files import passages
    from mplus.evaluation.opening import open_model
    from mplus.evaluation.question_prompts import ANSWER_TOKENS
    from mplus.evaluation.replies import Settings
    from mplus.evaluation.retention import Stream
    from mplus.evaluation.runner import Run

    caps = _caps(at_most or "")
    read = _task(task, data, questions, unanswerable, seed, split)
    if prompt is not None and prompt not in ("plain", "short", "completion"):
        raise ValueError(f"--prompt {prompt}: expected plain, short or completion.")
    opened = open_model(model, backbone=backbone, dtype=dtype)
    layout = type(opened.memory_config)(**{**opened.memory_config.model_dump(), **_assignments(config or [])})
    progress = _Progress()
    style: PromptStyle = prompt or read.style  # pyright: ignore[reportAssignmentType]
    settings = Settings(
        style,
        examples,
        max_new_tokens or ANSWER_TOKENS[style],
        batch,
        seed,
        abstain_below,
        progress.writing,
    )
    extra = [text for path in distractors or [] for text in passages(path)]
    random.Random(seed).shuffle(extra)
    wanted = _numbers("--levels", levels) if levels is not None else list(read.levels or _numbers("--levels", LEVELS))
    stream = Stream.of(read, extra, opened.tokenizer, wanted, together=together)
    fingerprint = opened.weights.fingerprints[layout.recall]
    described = {
        "task": task,
        "data": _digest(data),
        "distractors": [_digest(path) for path in distractors or []],
        "questions": questions,
        "unanswerable": sum(not question.is_answerable for question in read.questions),
        "split": split if task == "facts" else None,
        "together": together,
        "model": fingerprint,
        "layout": layout.model_dump(),
        "prompt": settings.style,
        "examples": examples,
        "max_new_tokens": settings.max_new_tokens,
        "abstain_below": abstain_below,
        "seed": seed,
    }

    def run() -> Run:
        return Run(out or Path("runs") / f"{task}-{fingerprint[:8]}", described)

    if task == PERPLEXITY:
        _perplexities(run, opened, layout, stream, settings, progress, as_json=as_json)
    else:
        modes = [name.strip() for name in mode.split(",")]
        tops = _tops(top)
        _answers(run, modes, opened, layout, stream, settings, progress, tops=tops, caps=caps, as_json=as_json)


def _answers(
    start: "Callable[[], Run]",
    modes: Sequence[str],
    model: "MPlus",
    layout: "MemoryConfig",
    stream: "Stream",
    settings: "Settings",
    progress: "_Progress",
    *,
    tops: Sequence[int],
    caps: "Mapping[str, int]",
    as_json: bool,
) -> None:
    """Ask every question in every way, and show how it went."""
    from mplus.evaluation.modes import answerers, chosen
    from mplus.evaluation.plots import can_plot, retention
    from mplus.evaluation.report import HEADINGS, KIND_HEADINGS, cells, kinds, lines, markdown
    from mplus.evaluation.report import as_json as figures

    names = chosen(modes, model, layout)
    run = start()
    for one in answerers(names, model, layout, stream, settings, tops=tops):
        # "rag-bm25 top-1" is capped as "rag-bm25".
        run.ask(one, stream, at_most=caps.get(one.name.split(" ")[0]), progress=progress)
    progress.close()
    report = lines(run.rows)
    (run.folder / "figures.json").write_text(json.dumps(figures(report), indent=1) + "\n", encoding="utf-8")
    (run.folder / "table.md").write_text(markdown(report), encoding="utf-8")
    if not can_plot():
        print("No plot: matplotlib is not installed (pip install 'mplus[evaluate]').", file=sys.stderr)
    elif any(line.contains is not None for line in report):
        retention(report, run.folder / "retention.png", title=f"{stream.task.name}: {model.name}")
    if as_json:
        print(json.dumps(figures(report)))
        return
    show(HEADINGS, [cells(line) for line in report])
    if by_kind := kinds(report):
        show(KIND_HEADINGS, by_kind)
    print(f"Raw answers, table and plot: {run.folder}")


def _perplexities(
    start: "Callable[[], Run]",
    model: "MPlus",
    layout: "MemoryConfig",
    stream: "Stream",
    settings: "Settings",
    progress: "_Progress",
    *,
    as_json: bool,
) -> None:
    """Score every document in every condition, and show what memory costs it."""
    from mplus.evaluation.perplexity import CONDITIONS, Condition, documents, figures

    read = documents(stream.task.contexts, model.tokenizer)
    run = start()
    for name in CONDITIONS:
        condition = Condition(name, model, layout, stream, batch=settings.batch, seed=settings.seed)
        wanted = {
            level: [document for document in read if (name, level, document.id) not in run.done]
            for level in condition.levels()
        }
        total = len(read) * len(wanted)
        count = total - sum(map(len, wanted.values()))
        for scored in condition.scored({level: some for level, some in wanted.items() if some}):
            run.add([{"task": PERPLEXITY, "mode": name, **scored._asdict()}])
            count += 1
            progress(name, count, total)
    progress.close()
    report = figures(run.rows)
    if as_json:
        print(json.dumps([figure.as_json() for figure in report]))
        return
    show(
        ("condition", "tokens", "documents", "perplexity", "ratio to the backbone"),
        [(f.name, f"{f.level:,}", str(f.perplexity.size), str(f.perplexity), str(f.ratio or "–")) for f in report],
    )
    print(f"Every document: {run.folder / 'answers.jsonl'}")


def _tops(text: str) -> list[int]:
    tops = _numbers("--top", text)
    if min(tops) < 1:
        raise ValueError(f"--top {text}: expected numbers of passages, at least 1.")
    return tops


def _task(name: str, data: Path | None, questions: int, unanswerable: int | None, seed: int, split: str) -> "Task":
    from mplus.evaluation.datasets import READERS
    from mplus.evaluation.people import facts

    if name == "facts":
        if data is not None:
            raise ValueError(f"--data {data}: facts are generated. Name texts to stand in between with --distractors.")
        if split not in ("dev", "train"):
            raise ValueError(f"--split {split}: expected dev or train.")
        return facts(questions, questions // 3 if unanswerable is None else unanswerable, seed, split=split)
    if name == PERPLEXITY and data is not None:
        return _documents(data, questions, seed)
    if name not in READERS and name != PERPLEXITY:
        raise ValueError(f"task={name!r}: expected one of {', '.join(TASKS)}.")
    if data is None:
        raise ValueError(
            f"{name} is read from a file that you name: pass --data FILE (docs/reference/evaluation.md says which)."
        )
    return READERS[name](data, questions, unanswerable or 0, random.Random(seed))


def _documents(data: Path, count: int, seed: int) -> "Task":
    """Texts whose second halves are scored; those that are too short are spare."""
    from mplus.evaluation.data_files import passages
    from mplus.evaluation.perplexity import SHORTEST_TOKENS
    from mplus.evaluation.tasks import Task

    # A token is hardly ever longer than a word.
    texts = [text for text in passages(data) if len(text.split()) >= SHORTEST_TOKENS]
    if len(texts) < count or not count:
        raise ValueError(f"--questions {count}: {data} has {len(texts)} texts long enough; ask for 1 to {len(texts)}.")
    random.Random(seed).shuffle(texts)
    chosen = {f"document-{place}": text for place, text in enumerate(texts[:count])}
    return Task(PERPLEXITY, chosen, (), tuple(texts[count:]), levels=(0, 16_000))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text}: expected whole numbers, separated by commas.") from error


def _caps(text: str) -> dict[str, int]:
    """Ways of answering and how many questions they are asked, at most."""
    from mplus.evaluation.modes import MODES

    caps: dict[str, int] = {}
    for name, number in _pairs("--at-most", text.split(",") if text else [], "a way of answering and a number"):
        if name not in MODES or not number.isdecimal():
            raise ValueError(f"--at-most {name}={number}: expected one of {', '.join(MODES)} and a whole number.")
        caps[name] = int(number)
    return caps


def _pairs(option: str, pairs: Sequence[str], what: str) -> "Iterator[tuple[str, str]]":
    """Names and what they are to be."""
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{option} {pair}: expected {what}, name=value.")
        yield name.strip(), value.strip()


def _assignments(pairs: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in _pairs("--set", pairs, "a setting of MemoryConfig and its value"):
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


def show(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; not cut where standard output is no terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


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

    def writing(self, done: int, total: int) -> None:
        """Texts are being written, which answers nothing yet."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"writing {done:,} of {total:,} tokens" if done < total else "")
        elif time.monotonic() - self._last > self.EVERY:
            self._last = time.monotonic()
            print(f"writing: {done:,} of {total:,} tokens", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
