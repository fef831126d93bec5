"""Which tier each segment of long-term memory waits on: device, host memory or disk, by byte budgets."""

import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.memory.mapped import spilled


def placed(stores: Sequence[LongTermMemory], config: MemoryConfig) -> list[LongTermMemory]:
    """The stores of one memory, every segment on the best tier that has room for it.

    Segments are placed in descending order of the mean recall frequency of their tokens, the newest first among
    equals. A segment only ever moves to a slower tier: rows on disk are read from there, and the operating system
    caches rows that are read often. No token changes.
    """
    device_room, host_room = _rooms(config)
    everyone = [(number, place) for number, store in enumerate(stores) for place in range(len(store.segments))]
    if not everyone:
        return list(stores)
    claims = torch.cat([_claims(store) for store in stores])
    newest_first = torch.arange(len(everyone)).flip(0)
    order = newest_first[claims[newest_first].argsort(descending=True, stable=True)]
    result = [list(store.segments) for store in stores]
    for number, place in (everyone[at] for at in order.tolist()):
        segment = result[number][place]
        if segment.tier == "device" and segment.nbytes <= device_room:
            device_room -= segment.nbytes
        elif segment.tier != "disk" and segment.nbytes <= host_room:
            host_room -= segment.nbytes
            result[number][place] = segment.in_host_memory()
        elif segment.tier != "disk":
            result[number][place] = spilled(segment.in_host_memory())
    return [replace(store, segments=tuple(segments)) for store, segments in zip(stores, result, strict=True)]


def _rooms(config: MemoryConfig) -> tuple[float, float]:
    """Bytes that a memory may take on its layers' devices and in host memory."""
    wanted, unlimited = config.long_term_device, float("inf")
    device = config.long_term_device_bytes if wanted == "cuda" else 0
    host = 0 if wanted == "disk" else config.long_term_host_bytes
    if wanted == "auto" and host is None:
        return 0.0, host_memory_bytes() / 4
    return unlimited if device is None else device, unlimited if host is None else host


def host_memory_bytes() -> float:
    """Bytes of host memory of this machine; infinite if the system does not report it."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _claims(store: LongTermMemory) -> Float[Tensor, " segments"]:
    count = len(store.segments)
    total = torch.zeros(count, dtype=torch.float64)
    total.index_add_(0, store.segment, store.provenance.recall_frequencies)
    return total / torch.bincount(store.segment, minlength=count).clamp(min=1)
