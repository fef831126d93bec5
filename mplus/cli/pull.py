"""``mplus pull``: a built-in model, fetched and made ready."""

from typing import Annotated, Any

import typer


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
