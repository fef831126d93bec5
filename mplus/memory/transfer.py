"""Copies between host memory and a GPU, which run beside computation where they can."""

from functools import cache

import torch
from torch import Tensor

HOST = torch.device("cpu")


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, copied through pinned memory if the copy can then run beside computation."""
    if tensor.device == device:
        return tensor
    if device.type != "cuda":
        return tensor.to(device)  # Not asynchronous: readers in host memory do not wait for a CUDA stream.
    if tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@cache
def side_stream(device: torch.device) -> "torch.cuda.Stream":
    """The stream on which content is copied to a GPU while it computes.

    All reads share one stream, since every stream keeps device memory of its own for the tensors copied on it.
    """
    return torch.cuda.Stream(device)


def in_pinned_memory(tensor: Tensor) -> Tensor:
    """A tensor in host memory, pinned if a GPU is in use that will read it."""
    # Do not start CUDA for a model that runs on the CPU of a machine with a GPU.
    if not torch.cuda.is_initialized():
        return tensor.to(HOST)
    if tensor.device.type == "cpu":
        return tensor if tensor.is_pinned() else tensor.pin_memory()
    return torch.empty_like(tensor, device=HOST, pin_memory=True).copy_(tensor)
