"""``mplus convert``: any model M+ can load, saved in its own layout."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    model: Annotated[str, typer.Argument(help="Published M+ checkpoint, backbone folder or repository.")],
    folder: Annotated[Path, typer.Argument(help="Where to save it.")],
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Save any model M+ can load in M+'s own layout."""
    from mplus import MPlus

    MPlus.from_pretrained(model, device="cpu", dtype=dtype).save_pretrained(folder)
    print(f"Saved {model} in {folder}")
