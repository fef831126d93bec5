"""Tensors of several layers that lie side by side in one storage, so that one operation takes rows of all of them.

Each layer still has a tensor of its own, a view; nothing else needs to know. Where tensors do not lie side by side
(layers on several devices, or of several shapes), everything works layer by layer.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

Layers = tuple[Tensor, ...]


def stacked(tensors: Sequence[Tensor]) -> Shaped[Tensor, "L ..."] | None:
    """Tensors as one, without a copy; None unless they are alike and lie at equal distances in one storage."""
    first = tensors[0]
    if len(tensors) == 1:
        return first[None]
    start, step = first.storage_offset(), tensors[1].storage_offset() - first.storage_offset()
    storage, kind = first.untyped_storage().data_ptr(), _kind(first)
    for number, tensor in enumerate(tensors):
        if _kind(tensor) != kind or tensor.stride() != first.stride():
            return None
        if tensor.storage_offset() != start + number * step or tensor.untyped_storage().data_ptr() != storage:
            return None
    return first.as_strided((len(tensors), *first.shape), (step, *first.stride())) if step >= 0 else None


def side_by_side(tensors: Sequence[Tensor], place: Callable[[Tensor], Tensor] = lambda stack: stack) -> Layers:
    """The same tensors, of which those that follow one another and are alike lie in one storage.

    Args:
        tensors: Tensors of any shapes, on any devices.
        place: Brings what lies side by side to where it is kept.
    """
    made: list[Tensor] = []
    for run in _alike(tensors):
        stack = stacked(run)
        made += place(torch.stack(list(run)) if stack is None else stack).unbind(0)
    return tuple(made)


def rows_of(tensors: Sequence[Tensor], index: Int[Tensor, " T"]) -> Layers:
    """The rows at ``index`` of every tensor, side by side."""
    made: list[Tensor] = []
    for run in _alike(tensors):
        stack, rows = stacked(run), index.to(run[0].device)
        found = torch.stack([tensor[rows] for tensor in run]) if stack is None else stack.index_select(1, rows)
        made += found.unbind(0)
    return tuple(made)


def joined_rows(parts: Sequence[Sequence[Tensor]]) -> Layers:
    """For every tensor of the first part, its rows and those of its counterparts, side by side."""
    made: list[Tensor] = []
    for run in _alike(parts[0]):
        first = len(made)
        here = [part[first : first + len(run)] for part in parts]
        stacks = [stack for part in here if (stack := stacked(part)) is not None]
        if len(stacks) == len(parts):
            made += torch.cat(stacks, dim=1).unbind(0)
            continue
        count = sum(len(part[0]) for part in here)
        together = run[0].new_empty(len(run), count, *run[0].shape[1:])
        for target, layer in zip(together, zip(*here, strict=True), strict=True):
            torch.cat(layer, out=target)
        made += together.unbind(0)
    return tuple(made)


def paired(keys: Sequence[Tensor], values: Sequence[Tensor]) -> Layers:
    """Keys and values in the order in which they lie side by side: those of one layer follow one another."""
    return tuple(tensor for pair in zip(keys, values, strict=True) for tensor in pair)


def unpaired(layers: Layers) -> tuple[Layers, Layers]:
    """Keys and values again."""
    return layers[::2], layers[1::2]


def _kind(tensor: Tensor) -> tuple[torch.dtype, torch.device, torch.Size]:
    return tensor.dtype, tensor.device, tensor.shape


def _alike(tensors: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    for _, run in groupby(tensors, _kind):
        yield list(run)
