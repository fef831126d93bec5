"""``mplus forget``: a source, removed for good."""

from typing import Annotated

import typer

from mplus.cli.opened import opened
from mplus.cli.options import DeviceOption, DtypeOption, MemoryOption, ModelOption
from mplus.progress import is_watched


def forget(
    source: Annotated[str, typer.Argument(help="Source to remove for good.")],
    memory: MemoryOption = "default",
    model: ModelOption = "smol-135m",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Also write again what came after it, so that no trace is left.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Remove a source from a memory, its snapshots and its files, for good."""
    with opened(memory, model, device=device, dtype=dtype) as (loaded, held):
        states = [held.state, *(taken.state for taken in held.snapshots)]
        known = sorted({record.name for state in states for record in state.sources if not record.forgotten})
        if source not in known:
            raise ValueError(f"source={source!r}: memory {memory!r} has no such source; it has: {known or 'none'}.")
        removed = held.forget(source, rebuild=loaded if rebuild else None, progress=is_watched())
    print(f"Removed {removed:,} memory tokens of {source!r}.")
