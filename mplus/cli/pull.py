"""``mplus pull``: a built-in model, fetched and made ready."""

import sys
from typing import Annotated

import typer

from mplus.progress import is_watched


def pull(
    name: Annotated[str, typer.Argument(help="Built-in model.")] = "smol-135m",
    force: Annotated[bool, typer.Option(help="Fetch and convert again.")] = False,
) -> None:
    """Fetch a built-in model and make it ready, once. Who fetches a model that has terms of use accepts them."""
    from mplus.checkpoint.catalog import BUILT_IN, is_pulled
    from mplus.checkpoint.catalog import pull as fetch

    model = BUILT_IN.get(name)
    if model is not None and model.terms:
        print(model.notice, file=sys.stderr)
    folder = fetch(name, progress=is_watched(), force=force)
    print(f"{name} is ready in {folder}" if is_pulled(name) else f"{name}: {folder}")
