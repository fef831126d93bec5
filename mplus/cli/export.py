"""``mplus export``: a memory in one portable file."""

from pathlib import Path
from typing import Annotated

import typer

from mplus.cli.opened import located
from mplus.cli.options import MemoryOption, ModelOption


def export(
    file: Annotated[Path, typer.Argument(help="File to write, such as alice.mplus.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
) -> None:
    """Write a memory into one portable file."""
    from mplus import MPlus

    store, name = located(memory)
    store.load(name, MPlus.from_pretrained(model)).export(file)
    print(f"Wrote {memory!r} to {file} ({file.stat().st_size / 2**20:.1f} MiB)")
