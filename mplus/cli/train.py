"""``mplus train``: train M+ onto any backbone, on any texts."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    out: Annotated[Path, typer.Option(help="Folder of the run: settings, log, checkpoints, trained model.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Backbone: built-in name, local folder or hub repository.")
    ] = None,
    texts: Annotated[
        list[Path] | None, typer.Option(help="Text file or folder of them (.txt .md .rst .jsonl, or .gz); repeatable.")
    ] = None,
    squad: Annotated[Path | None, typer.Option(help="Passages with questions, as SQuAD JSON.")] = None,
    dialogues: Annotated[Path | None, typer.Option(help="Conversations, one JSON a line.")] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="In order, with commas: projection, reader, tune (go on with the read adapter there is), scorer; or "
            "published-1, published-2, published-3 (published: all three).  [default: projection,reader]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[list[str] | None, typer.Option(help="Steps of a stage, as in reader=4000; repeatable.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of adapters, where not the preset's.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step and process, where not the preset's.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapters.  [default: 16]", show_default=False)] = None,
    adapters: Annotated[
        int | None,
        typer.Option(
            help="Read adapters, from different seeds, whose mean the model gets.  [default: 1]", show_default=False
        ),
    ] = None,
    invented: Annotated[
        int | None,
        typer.Option(
            help="Passages that the model makes up and asks about, for the reader stage; wants --squad.  [default: 0]",
            show_default=False,
        ),
    ] = None,
    conversations: Annotated[
        int | None, typer.Option(help="Of --dialogues, held as states.  [default: 300]", show_default=False)
    ] = None,
    people: Annotated[
        int | None, typer.Option(help="Generated people, beside both files.  [default: 300]", show_default=False)
    ] = None,
    retriever_size: Annotated[int | None, typer.Option(help="Numbers of a retrieval key.")] = None,
    layer: Annotated[int | None, typer.Option(help="Layer whose states recall scores.")] = None,
    tokens_per_write: Annotated[
        int | None, typer.Option(help="Published stages: memory tokens per chunk and layer.")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Published stages: tokens that a read sees, in units of --tokens-per-write.")
    ] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Published stages: longest chunk.")] = None,
    target_tokens: Annotated[int | None, typer.Option(help="Published stages: longest target.")] = None,
    text_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of plain text held at once (not in published stages).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed trains the same model.")] = None,
    device: Annotated[str | None, typer.Option(help="auto or cpu.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the frozen backbone.")] = None,
    precision: Annotated[str | None, typer.Option(help="Mixed precision of the published stages: no or bf16.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between log lines.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Train M+ onto a model; a run that was stopped goes on with --resume."""
    from pydantic import ValidationError

    from mplus.training.run import resumed_settings, run
    from mplus.training.run_settings import RunSettings

    given: dict[str, Any] = {
        "model": model,
        "texts": tuple(map(str, texts)) if texts else None,
        "squad": squad and str(squad),
        "dialogues": dialogues and str(dialogues),
        "stages": stages and tuple(name.strip() for name in stages.split(",")),
        "steps": parse_steps(steps) if steps else None,
        "learning_rate": learning_rate,
        "batch": batch,
        "rank": rank,
        "adapters": adapters,
        "invented": invented,
        "conversations": conversations,
        "people": people,
        "retriever_size": retriever_size,
        "layer": layer,
        "tokens_per_write": tokens_per_write,
        "blocks": blocks,
        "chunk_tokens": chunk_tokens,
        "target_tokens": target_tokens,
        "text_tokens": text_tokens,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "precision": precision,
        "save_every": save_every,
        "log_every": log_every,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    try:
        settings = (
            resumed_settings(out, asked) if resume else RunSettings.model_validate({"model": "smol-135m"} | asked)
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from error
    run(settings, out, resume=resume)


def parse_steps(given: list[str]) -> dict[str, int]:
    """Stages and their steps, from ``stage=number`` each.

    Raises:
        ValueError: Something else.
    """
    found: dict[str, int] = {}
    for item in given:
        stage, _, count = item.partition("=")
        if not count.isdigit():
            raise ValueError(f"steps={item!r}: expected a stage and a number, as in reader=4000.")
        found[stage.strip()] = int(count)
    return found
