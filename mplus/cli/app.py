"""The ``mplus`` command. Heavy imports happen inside commands: ``mplus --help`` is instant."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mplus.cli.calibrate import calibrate
from mplus.cli.evaluate import evaluate
from mplus.cli.memories import delete, export, import_, memories
from mplus.cli.train import train
from mplus.installed import refuse_other_mplus

if TYPE_CHECKING:
    from mplus import Memory, MemoryStore, MPlus

app = typer.Typer(
    help="Latent long-term memory for language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[str, typer.Option("--model", "-m", help="Built-in name, local folder or hub repository.")]
MemoryOption = Annotated[
    str, typer.Option("--memory", help="Name of a memory kept for you, or a folder (with a slash in it).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]


app.command()(train)


def main() -> None:
    """Run the command; errors meant for people are one line on standard error."""
    from mplus.errors import MPlusError

    try:
        refuse_other_mplus()
        app(standalone_mode=True)
    except (MPlusError, ValueError, OSError, ImportError) as error:
        print(f"mplus: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Built-in model.")] = "smol-135m",
    force: Annotated[bool, typer.Option(help="Fetch and convert again.")] = False,
) -> None:
    """Fetch a built-in model and make it ready, once."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from mplus.checkpoint.catalog import is_pulled
    from mplus.checkpoint.catalog import pull as fetch

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        folder = fetch(name, progress=progress, force=force)
    print(f"{name} is ready in {folder}" if is_pulled(name) else f"{name}: {folder}")


@app.command()
def write(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Text to remember; - or nothing reads standard input.")
    ] = None,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="Text file to remember.")] = None,
    source: Annotated[str | None, typer.Option(help="Name under which it can be recalled and forgotten.")] = None,
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    as_json: JsonOption = False,
) -> None:
    """Write text into a memory."""
    documents: list[tuple[str, str | None]] = [(text, source) for text in texts or [] if text != "-"]
    documents += [(path.read_text(encoding="utf-8"), source or path.name) for path in file or []]
    if not documents or "-" in (texts or []):
        documents.append((sys.stdin.read(), source))
    reports: list[dict[str, Any]] = []
    with opened(memory, model) as (loaded, held):
        for text, name in documents:
            reports.append(vars(loaded.write(held, text, source=name, progress=_progress_bar())))
        described = repr(held)
    if as_json:
        print(json.dumps(reports))
        return
    tokens = sum(report["text_tokens"] for report in reports)
    print(f"Wrote {tokens:,} tokens in {sum(r['seconds'] for r in reports):.1f} s. {described}")


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    abstain_below: Annotated[
        float | None, typer.Option(help="Say that you do not know where confidence is lower, 0 to 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question; the answer comes from memory."""
    from dataclasses import asdict

    with opened(memory, model) as (loaded, held):
        stream = loaded.stream(
            held,
            [{"role": "user", "content": question}],
            max_new_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            abstain_below=abstain_below,
        )
        for piece in stream:
            if not as_json:
                print(piece, end="", flush=True)
        generation = stream.generation
    if as_json:
        described = asdict(generation) | {"recalled": [r._asdict() for r in generation.recalled]}
        described["evidence"] = generation.evidence and generation.evidence._asdict()
        print(json.dumps(described, default=str))
        return
    print()
    if generation.recalled:
        shares = ", ".join(f"{r.source} {r.share:.0%}" for r in generation.recalled[:4])
        print(f"(recalled: {shares}; confidence {generation.confidence:.2f})")


@app.command()
def chat(
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 192,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
) -> None:
    """Talk to a model that remembers what you told it, also next week."""
    from mplus.cli.chat import talk

    talk(memory, model, max_tokens=max_tokens, temperature=temperature)


@app.command()
def inspect(
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    as_json: JsonOption = False,
) -> None:
    """Show what a memory holds: pools, bytes, sources, snapshots."""
    from mplus.cli.inspecting import described, shown

    with opened(memory, model) as (_, held):
        print(json.dumps(described(held), default=str)) if as_json else shown(held)


@app.command()
def forget(
    source: Annotated[str, typer.Argument(help="Source to remove for good.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Also write again what came after it, so that no trace is left.")
    ] = False,
) -> None:
    """Remove a source from a memory, its snapshots and its files, for good."""
    with opened(memory, model) as (loaded, held):
        removed = held.forget(source, rebuild=loaded if rebuild else None, progress=_progress_bar())
    print(f"Removed {removed:,} memory tokens of {source!r}.")


@app.command()
def pin(
    source: Annotated[str, typer.Argument(help="Source that age, capacity and disuse are to spare.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    remove: Annotated[bool, typer.Option("--remove", help="Spare it no longer.")] = False,
) -> None:
    """Keep a source whatever the memory's limits say."""
    with opened(memory, model) as (_, held):
        held.unpin(source) if remove else held.pin(source)
    print(f"{source!r} is {'no longer ' if remove else ''}pinned.")


@app.command()
def snapshot(
    label: Annotated[str, typer.Argument(help="Anything that helps to recognise it.")] = "",
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
) -> None:
    """Remember a memory's present state, to roll back to."""
    with opened(memory, model) as (_, held):
        print(held.snapshot(label))


@app.command()
def rollback(
    snapshot: Annotated[str, typer.Argument(help="Id that `mplus snapshot` printed.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
) -> None:
    """Bring a memory back to a snapshot; its state before is kept as another one."""
    with opened(memory, model) as (_, held):
        undo = held.snapshot(f"before the rollback to {snapshot}")
        difference = held.diff(snapshot)
        held.rollback(snapshot)
    gone, back = ", ".join(difference.added) or "none", ", ".join(difference.removed) or "none"
    print(f"Rolled back. Sources gone: {gone}; back again: {back}. Undo: mplus rollback {undo}")


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="Published M+ checkpoint, backbone folder or repository.")],
    folder: Annotated[Path, typer.Argument(help="Where to save it.")],
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Save any model M+ can load in M+'s own layout."""
    from mplus import MPlus

    MPlus.from_pretrained(model, device="cpu", dtype=dtype).save_pretrained(folder)
    print(f"Saved {model} in {folder}")


@app.command()
def info(as_json: JsonOption = False) -> None:
    """Show versions, devices, models and memories."""
    import platform

    import torch
    import transformers

    import mplus
    from mplus.checkpoint.catalog import BUILT_IN, cache_root, is_pulled

    known = {name: "ready" if is_pulled(name) else "not pulled yet" for name in BUILT_IN}
    found = {
        "mplus": mplus.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "cache": str(cache_root()),
        "models": known,
        "memories": [stored.name for stored in user_store().list()],
    }
    if as_json:
        print(json.dumps(found))
        return
    for key, value in found.items():
        print(f"{key:13} {value}")


app.command()(evaluate)
app.command()(memories)
app.command()(export)
app.command("import")(import_)
app.command()(delete)
app.command()(calibrate)


# --- shared by commands -------------------------------------------------------------------------------


def user_store() -> "MemoryStore":
    """The memories that are kept for the user."""
    from mplus import MemoryStore
    from mplus.checkpoint.catalog import cache_root

    return MemoryStore(cache_root() / "memories")


def located(memory: str) -> "tuple[MemoryStore, str]":
    """Where a memory is kept that is called by name or by folder."""
    from mplus import MemoryStore

    if "/" in memory:
        path = Path(memory).expanduser()
        return MemoryStore(path.parent), path.name
    return user_store(), memory


class opened:
    """The model and a memory by name or folder; saved at the end where it changed."""

    def __init__(self, memory: str, model: str) -> None:
        from mplus import MPlus

        store, name = located(memory)
        self._folder = store.path(name)
        self._model = MPlus.from_pretrained(model)
        self._context = store.open(name, self._model)

    def __enter__(self) -> "tuple[MPlus, Memory]":
        self._memory = self._context.__enter__()
        return self._model, self._memory

    def save(self) -> None:
        """Bring the memory to disk now."""
        self._memory.save(self._folder)

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def _progress_bar() -> Any:
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(unit="tok", leave=False)

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return progress
