"""``mplus import``: a memory out of a portable file."""

from pathlib import Path
from typing import Annotated

import typer

from mplus.cli.opened import located
from mplus.cli.options import ModelOption


def import_(
    file: Annotated[Path, typer.Argument(help="Portable file, or the folder of a saved memory.")],
    memory: Annotated[str, typer.Option("--memory", help="Name that it gets; must be free.")] = "default",
    model: ModelOption = "smol-135m",
) -> None:
    """Keep the memory in a portable file under a name."""
    from mplus import Memory, MPlus

    store, name = located(memory)
    imported = Memory.load(file, MPlus.from_pretrained(model))
    store.put(name, imported)
    print(f"Imported {memory!r}: {imported!r}")
