"""``mplus pull``: a built-in model, fetched and made ready."""

from typing import Annotated

import typer

from mplus.progress import is_watched


def pull(
    name: Annotated[str, typer.Argument(help="Built-in model.")] = "smol-135m",
    force: Annotated[bool, typer.Option(help="Fetch and convert again.")] = False,
) -> None:
    """Fetch a built-in model and make it ready, once."""
    from mplus.checkpoint.catalog import is_pulled
    from mplus.checkpoint.catalog import pull as fetch

    folder = fetch(name, progress=is_watched(), force=force)
    print(f"{name} is ready in {folder}" if is_pulled(name) else f"{name}: {folder}")
