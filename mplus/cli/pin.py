"""``mplus pin``: a source that is kept whatever the memory's limits say."""

from typing import Annotated

import typer

from mplus.cli.opened import opened
from mplus.cli.options import MemoryOption, ModelOption


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
