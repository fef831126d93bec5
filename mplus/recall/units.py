"""Units of recall: runs of tokens that are recalled together, and their retrieval keys block by block."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from mplus.config import Layout
from mplus.memory.short_term import chunk_starts
from mplus.memory.tiers import moved, side_stream
from mplus.memory.tokens import Provenance
from mplus.recall.scorers import KeyBlock
from mplus.shapes import Index

BLOCK_TOKENS = 4096
"""Keys scored at a time: few enough that they and their scores stay in a core's cache."""

BLOCKS_AHEAD = 4
"""Blocks that may wait on a GPU for the scoring of earlier ones."""


@dataclass(frozen=True)
class Units:
    """Runs of tokens of one pool, in the order in which they stand there."""

    starts: Int[Tensor, " U"]
    sizes: Int[Tensor, " U"]

    def __len__(self) -> int:
        return len(self.starts)

    @staticmethod
    def of(provenance: Provenance, layout: Layout) -> "Units":
        """Every unit of a pool: its chunks, or its single tokens."""
        count = len(provenance)
        if layout == "token":
            return Units(torch.arange(count), torch.ones(count, dtype=torch.int64))
        starts = chunk_starts(provenance.chunks)
        return Units(starts, torch.diff(starts, append=torch.tensor([count])))

    def take(self, index: Int[Tensor, " u"]) -> "Units":
        """The units at ``index``, in that order."""
        return Units(self.starts[index], self.sizes[index])

    def tokens(self) -> Index:
        """Places of all their tokens in the pool."""
        first = self.sizes.cumsum(0) - self.sizes
        return torch.arange(int(self.sizes.sum())) + (self.starts - first).repeat_interleave(self.sizes)

    def among(self, provenance: Provenance, sources: Int[Tensor, " n"]) -> "Units":
        """Those whose tokens are all of some sources; a chunk has one source where chunks are kept whole."""
        return self.take(torch.isin(provenance.sources[self.starts], sources).nonzero().flatten())


@runtime_checkable
class Scored(Protocol):
    """What a pool gives for scoring."""

    @property
    def provenance(self) -> Provenance:
        """Of its tokens."""
        ...

    def retrieval_keys(self, index: Index | slice, device: torch.device) -> Float[Tensor, "T R"]:
        """Retrieval keys of some tokens, as numbers on a device."""
        ...

    def key_bounds(self) -> Sequence[int]:
        """Places at which it is cheap to cut its keys."""
        ...


class Candidates(NamedTuple):
    """Units of some pools, numbered from 0 on through all of them."""

    pools: tuple[Scored, ...]
    units: tuple[Units, ...]

    @property
    def sizes(self) -> Int[Tensor, " U"]:
        """Tokens of every unit."""
        return torch.cat([units.sizes for units in self.units])

    @property
    def goes_on(self) -> Bool[Tensor, " U"]:
        """Which chunks go on where the one before them ends: written next, of the same source."""
        pairs = list(zip(self.pools, self.units, strict=True))
        chunks = torch.cat([pool.provenance.chunks[units.starts] for pool, units in pairs])
        sources = torch.cat([pool.provenance.sources[units.starts] for pool, units in pairs])
        same = (chunks[1:] == chunks[:-1] + 1) & (sources[1:] == sources[:-1])
        return torch.cat([torch.zeros(min(len(chunks), 1), dtype=torch.bool), same])

    @property
    def words(self) -> Int32[Tensor, " T"]:
        """Words of all their tokens."""
        pairs = zip(self.pools, self.units, strict=True)
        return torch.cat([pool.provenance.words[units.tokens()] for pool, units in pairs])

    def __len__(self) -> int:
        return sum(map(len, self.units))

    def blocks(self, device: torch.device) -> "Blocks":
        """Their retrieval keys, to be scored on a device."""
        return Blocks(self, device)

    def take(self, index: Int[Tensor, " u"]) -> "Candidates":
        """Some of them, in ascending order of ``index``."""
        bounds = torch.tensor([0, *map(len, self.units)]).cumsum(0)
        inside = [
            units.take(index[(index >= low) & (index < high)] - low)
            for units, (low, high) in zip(self.units, pairwise(bounds.tolist()), strict=True)
        ]
        return Candidates(self.pools, tuple(inside))

    def tokens(self) -> Index:
        """Places of all tokens in the pools, laid one behind the other."""
        shift, places = 0, []
        for pool, units in zip(self.pools, self.units, strict=True):
            places.append(units.tokens() + shift)
            shift += len(pool.provenance)
        return torch.cat(places)


class Blocks:
    """Retrieval keys of candidates in blocks; can be gone through any number of times.

    To a GPU they are streamed: a block is copied while the one before it is scored, and device memory does
    not grow with their number.
    """

    def __init__(self, candidates: Candidates, device: torch.device) -> None:
        self.candidates, self.device = candidates, device

    def __iter__(self) -> Iterator[KeyBlock]:
        return self._all() if self.device.type == "cpu" else self._streamed()

    def _streamed(self) -> Iterator[KeyBlock]:
        side, here = side_stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(here)  # keys that are on the device may be in the making
        blocks = self._all()
        scored: deque[Any] = deque()
        while True:
            if len(scored) == BLOCKS_AHEAD:
                scored.popleft().synchronize()
            with torch.cuda.stream(side):
                block = next(blocks, None)
                if block is None:
                    return
                block = block._replace(sizes=moved(block.sizes, self.device))
            here.wait_stream(side)
            for tensor in (block.keys, block.sizes):
                tensor.record_stream(here)
            yield block
            scored.append(here.record_event())

    def _all(self) -> Iterator[KeyBlock]:
        first = 0
        for pool, units in zip(*self.candidates, strict=True):
            whole = int(units.sizes.sum()) == len(pool.provenance)
            for block in (_whole if whole else _chosen)(pool, units, self.device):
                yield block._replace(first=block.first + first)
            first += len(units)


def _whole(pool: Scored, units: Units, device: torch.device) -> Iterator[KeyBlock]:
    """All of a pool, cut where its keys are: a unit may go on in the next block."""
    ends = units.starts + units.sizes
    bounds = pool.key_bounds()
    for low, high in pairwise(bounds):
        for start in range(low, high, BLOCK_TOKENS):
            stop = min(start + BLOCK_TOKENS, high)
            first = int(torch.searchsorted(ends, start, right=True))
            last = int(torch.searchsorted(units.starts, stop))
            edges = units.starts[first:last].clamp(min=start)
            sizes = torch.diff(edges, append=torch.tensor([stop]))
            yield KeyBlock(pool.retrieval_keys(slice(start, stop), device), sizes, first)


def _chosen(pool: Scored, units: Units, device: torch.device) -> Iterator[KeyBlock]:
    """Some units of a pool, whole ones to a block."""
    filled = units.sizes.cumsum(0)
    first = 0
    while first < len(units):
        before = int(filled[first - 1]) if first else 0
        last = max(int(torch.searchsorted(filled, before + BLOCK_TOKENS, right=True)), first + 1)
        part = Units(units.starts[first:last], units.sizes[first:last])
        yield KeyBlock(pool.retrieval_keys(part.tokens(), device), part.sizes, first)
        first = last
