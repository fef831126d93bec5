"""Columns of provenance in a file, as runs of equal differences between rows.

A million memory tokens have six columns of eight bytes. Ages count down, chunks and sources change every
few dozen rows and recall frequencies hardly differ, so runs take a fiftieth of that. Every save can therefore
write all columns again.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from mplus.errors import CorruptMemoryError

BITS = {torch.float64: torch.int64, torch.float32: torch.int32}


def encode_column(name: str, column: Shaped[Tensor, " T"]) -> dict[str, Tensor]:
    """The tensors that store a column: the column itself, or its first value and the runs of its differences."""
    steps, counts = (_bits(column).diff()).unique_consecutive(return_counts=True)
    if len(steps) * 12 + 8 >= len(column) * column.element_size():
        return {name: column}
    return {f"{name}.first": column[:1], f"{name}.steps": steps, f"{name}.counts": counts.int()}


def decode_column(tensors: Mapping[str, Tensor], name: str, *, length: int) -> Shaped[Tensor, " T"]:
    """Decode a column of exactly ``length`` rows.

    Raises:
        CorruptMemoryError: The column is missing, or its runs do not add up to ``length``.
    """
    column = tensors.get(name)
    if column is not None:
        if column.shape != (length,):
            raise CorruptMemoryError(f"column {name!r} has shape {tuple(column.shape)}, expected ({length},)")
        return column
    first, steps, counts = (tensors.get(f"{name}.{part}") for part in ("first", "steps", "counts"))
    if first is None or steps is None or counts is None:
        raise CorruptMemoryError(f"column {name!r} is missing")
    whole = steps.dtype == torch.int64 and counts.dtype == torch.int32
    if not whole or first.shape != (1,) or steps.dim() != 1 or steps.shape != counts.shape:
        raise CorruptMemoryError(f"column {name!r} does not consist of runs")
    # The sum is checked before a tensor of that size is allocated.
    if bool((counts < 1).any()) or 1 + int(counts.sum()) != length:
        raise CorruptMemoryError(f"the runs of column {name!r} do not add up to {length} rows")
    values = torch.cat([_bits(first), steps.repeat_interleave(counts.long())]).cumsum(0)
    kind = BITS.get(first.dtype)
    return values.to(first.dtype) if kind is None else values.to(kind).view(first.dtype)


def _bits(column: Shaped[Tensor, " T"]) -> Int[Tensor, " T"]:
    """The bits of a column as integers, whose differences are exact for floats too."""
    return column.view(BITS[column.dtype]).long() if column.dtype in BITS else column.long()
