"""``mplus rollback``: a memory as it was at a snapshot."""

from typing import Annotated

import typer

from mplus.cli.opened import opened
from mplus.cli.options import MemoryOption, ModelOption


def rollback(
    snapshot: Annotated[str, typer.Argument(help="Id that `mplus snapshot` printed.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
) -> None:
    """Bring a memory back to a snapshot; its state before is kept as another one."""
    with opened(memory, model) as (_, held):
        difference = held.diff(snapshot)
        undo = held.snapshot(f"before the rollback to {snapshot}")
        held.rollback(snapshot)
    gone, back = ", ".join(difference.added) or "none", ", ".join(difference.removed) or "none"
    print(f"Rolled back. Sources gone: {gone}; back again: {back}. Undo: mplus rollback {undo}")
