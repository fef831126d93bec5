"""``mplus snapshot``: a memory's present state, to roll back to."""

from typing import Annotated

import typer

from mplus.cli.opened import opened
from mplus.cli.options import MemoryOption, ModelOption


def snapshot(
    label: Annotated[str, typer.Argument(help="Anything that helps to recognise it.")] = "",
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
) -> None:
    """Remember a memory's present state, to roll back to."""
    with opened(memory, model) as (_, held):
        print(held.snapshot(label))
