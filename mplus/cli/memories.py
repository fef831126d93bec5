"""``mplus memories``, ``export``, ``import`` and ``delete``: memories as files."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer


def memories(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")] = False) -> None:
    """List the memories kept for you, with sizes and times."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from mplus.cli.app import user_store

    stored = user_store().list()
    if as_json:
        print(json.dumps([asdict(memory) for memory in stored]))
        return
    table = Table()
    for heading in ("memory", "MiB", "saved", "used"):
        table.add_column(heading)
    for memory in stored:
        saved, used = (time.strftime("%Y-%m-%d %H:%M", time.localtime(t)) for t in (memory.saved, memory.used))
        table.add_row(memory.name, f"{memory.nbytes / 2**20:.1f}", saved, used)
    Console().print(table)


def export(
    file: Annotated[Path, typer.Argument(help="File to write, such as alice.mplus.")],
    memory: Annotated[str, typer.Option("--memory", help="Name of a memory, or a folder.")] = "default",
    model: Annotated[str, typer.Option("--model", "-m", help="The model it was written with.")] = "smol-135m",
) -> None:
    """Write a memory into one portable file."""
    from mplus import MPlus
    from mplus.cli.app import located

    store, name = located(memory)
    store.load(name, MPlus.from_pretrained(model)).export(file)
    print(f"Wrote {memory!r} to {file} ({file.stat().st_size / 2**20:.1f} MiB)")


def import_(
    file: Annotated[Path, typer.Argument(help="Portable file, or the folder of a saved memory.")],
    memory: Annotated[str, typer.Option("--memory", help="Name that it gets; must be free.")] = "default",
    model: Annotated[str, typer.Option("--model", "-m", help="The model it was written with.")] = "smol-135m",
) -> None:
    """Keep the memory in a portable file under a name."""
    from mplus import Memory, MPlus
    from mplus.cli.app import located

    store, name = located(memory)
    imported = Memory.load(file, MPlus.from_pretrained(model))
    store.put(name, imported)
    print(f"Imported {memory!r}: {imported!r}")


def delete(
    memory: Annotated[str, typer.Argument(help="Name of a memory.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a memory and everything in it, for good."""
    from mplus.cli.app import located

    store, name = located(memory)
    if not yes:
        typer.confirm(f"Delete {memory!r} for good?", abort=True)
    store.delete(name)
    print(f"Deleted {memory!r}.")
