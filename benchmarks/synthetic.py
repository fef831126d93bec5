"""Long-term memories of any size without writing: random rows, keys that cluster as those of real texts do."""

from collections.abc import Iterator
from pathlib import Path

import torch

from mplus.memory.long_term import LongTermMemory
from mplus.memory.mapped import segment_tensors, spilled
from mplus.memory.precision import Plane
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Provenance
from mplus.storage.shards import OpenShard, write_shard
from mplus.words import NO_WORD

CHUNK_TOKENS = 64
SEGMENT_TOKENS = 4096
WORDS = 4096


def unit_keys(count: int, size: int, *, seed: int = 0) -> torch.Tensor:
    """Unit-length keys: a common word each, in a context of its own, chunk by chunk about a topic."""
    words = torch.randn(WORDS, size, generator=torch.Generator().manual_seed(12345))
    generator = torch.Generator().manual_seed(seed)
    rank = (WORDS ** torch.rand(count, generator=generator)).long().clamp(max=WORDS - 1)  # a few are frequent
    topics = torch.randn(-(-count // CHUNK_TOKENS), size, generator=generator).repeat_interleave(CHUNK_TOKENS, 0)
    rows = words[rank] + 0.5 * topics[:count]
    rows += 0.7 * torch.randn(count, size, generator=generator)
    return torch.nn.functional.normalize(rows, dim=-1)


def spoken_words(count: int, *, seed: int = 0) -> torch.Tensor:
    """Words of tokens, a few of them frequent; every third token begins none."""
    generator = torch.Generator().manual_seed(seed)
    rank = (WORDS ** torch.rand(count, generator=generator)).to(torch.int32)
    return rank.masked_fill(torch.rand(count, generator=generator) < 1 / 3, NO_WORD)


def long_term_of(
    keys: torch.Tensor | Iterator[torch.Tensor],
    *,
    shape: tuple[int, int, int] = (1, 1, 1),
    on_disk: bool = False,
    folder: Path | None = None,
) -> LongTermMemory:
    """A long-term memory with these retrieval keys, in int8.

    Args:
        keys: Of all tokens, or segment by segment.
        shape: Layers, key-value heads and head size of what is remembered; one content serves all segments.
        on_disk: Whether each segment has a file of its own, without a name.
        folder: Whether it has one with a name, in this folder.
    """
    layers, heads, size = shape
    parts = keys.split(SEGMENT_TOKENS) if isinstance(keys, torch.Tensor) else keys
    content = torch.randn(SEGMENT_TOKENS, heads, size, generator=torch.Generator().manual_seed(3))
    plane = Plane.store(content, "int8")
    segments: list[Segment] = []
    for part in parts:
        rows = tuple(
            plane.take(torch.arange(len(part))) if len(part) < SEGMENT_TOKENS else plane for _ in range(layers)
        )
        segment = Segment(rows, rows, Plane.store(part, "int8"), None)
        if folder is not None:
            segment = _named(segment, folder)
        segments.append(spilled(segment) if on_disk else segment)
    sizes = torch.tensor([len(segment) for segment in segments])
    count = int(sizes.sum())
    every = torch.arange(count)
    frequency = torch.full((count,), 10.0, dtype=torch.float64)
    chunks = every // CHUNK_TOKENS
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return LongTermMemory.of(
        tuple(segments),
        Provenance(every.flip(0), frequency, chunks // 16, chunks, spoken_words(count)),
        torch.arange(len(segments)).repeat_interleave(sizes),
        every - first,
    )


def _named(segment: Segment, folder: Path) -> Segment:
    from dataclasses import replace

    from mplus.memory.mapped import ShardPlane

    path = folder / segment.name
    with path.open("wb") as file:
        written = write_shard(file, path.name, segment_tensors(segment), None)
    shard = OpenShard(path, written)

    def planes(kind: str, count: int) -> tuple[Plane, ...]:
        return tuple(ShardPlane(shard, f"{kind}.{layer}") for layer in range(count))

    layers = len(segment.keys)
    return replace(segment, keys=planes("keys", layers), values=planes("values", layers), tier="disk")
