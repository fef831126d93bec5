"""``mplus delete``: a memory, removed for good."""

from typing import Annotated

import typer

from mplus.cli.opened import located


def delete(
    memory: Annotated[str, typer.Argument(help="Name of a memory.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a memory and everything in it, for good."""
    store, name = located(memory)
    if not yes:
        typer.confirm(f"Delete {memory!r} for good?", abort=True)
    store.delete(name)
    print(f"Deleted {memory!r}.")
