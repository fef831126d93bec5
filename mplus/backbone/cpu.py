"""Cores and bfloat16 support of this machine's CPU."""

import os
from functools import cache

import torch


def usable_cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@cache
def computes_bfloat16() -> bool:
    """Whether the CPU has instructions for matrix products in bfloat16.

    Without them torch computes in software, dozens of times slower than in float32 (docs/lab/training.md).
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported()) if supported is not None else False


def is_slow_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device computes in a dtype only in software."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not computes_bfloat16()
