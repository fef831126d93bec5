"""What this machine's CPU is good at."""

import os
from functools import cache

import torch


def usable_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@cache
def computes_bfloat16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 itself.

    Where it does not, torch does it in software, dozens of times slower than in float32 (docs/lab/training.md).
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported()) if supported is not None else False


def is_slow_in(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a device computes in a dtype only by software."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not computes_bfloat16()
