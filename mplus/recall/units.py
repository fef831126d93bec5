"""Units of recall: runs of tokens that are recalled together, and their retrieval keys block by block."""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.layouts.layout import Layout, Units
from mplus.memory.tiers import moved, side_stream
from mplus.memory.tokens import Provenance
from mplus.shapes import Index

BLOCK_TOKENS = 4096
"""Keys scored at a time: few enough that they and their scores stay in a core's cache."""

BLOCKS_AHEAD = 4
"""Blocks that may wait on a GPU for the scoring of earlier ones."""


Made = TypeVar("Made")


class KeyBlock(NamedTuple):
    """Retrieval keys of some units that follow one another, token by token."""

    keys: Float[Tensor, "T R"]
    sizes: Int[Tensor, " u"]
    """Tokens of each unit, in order; they add up to the number of keys."""
    first: int
    """Number of the first unit. Where it is the last one of the block before, that unit goes on."""


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

    def derived(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """What is made of its tokens, once where they stay the same for long."""
        ...


@dataclass(frozen=True)
class Candidates:
    """Units of some pools, numbered from 0 on through all of them."""

    pools: tuple[Scored, ...]
    units: tuple[Units, ...]
    layout: Layout

    @staticmethod
    def of(pools: Sequence[Scored], layout: Layout, sources: Int[Tensor, " n"] | None = None) -> "Candidates":
        """Every unit of some pools.

        Args:
            pools: Where to look.
            layout: What is a unit.
            sources: Rows of the table of sources that count; None for all. A unit has the source of its first token.
        """
        units = [pool.derived(layout, lambda pool=pool: layout.units(pool.provenance.chunks)) for pool in pools]
        if sources is not None:
            for n, (pool, known) in enumerate(zip(pools, units, strict=True)):
                allowed = torch.isin(pool.provenance.sources[known.starts], sources)
                units[n] = known.take(allowed.nonzero().flatten())
        return Candidates(tuple(pools), tuple(units), layout)

    @property
    def sizes(self) -> Int[Tensor, " U"]:
        """Tokens of every unit."""
        return torch.cat([units.sizes for units in self.units])

    @property
    def chunks(self) -> Int[Tensor, " U"]:
        """Serial number of the chunk of every unit."""
        return torch.cat([pool.provenance.chunks[units.starts] for pool, units in self._pairs()])

    @property
    def sources(self) -> Int[Tensor, " U"]:
        """Row of the table of sources of every unit."""
        return torch.cat([pool.provenance.sources[units.starts] for pool, units in self._pairs()])

    @property
    def goes_on(self) -> Bool[Tensor, " U"] | None:
        """Which units go on where the one before them ends; None where units are no texts."""
        return self.layout.goes_on(self.chunks, self.sources)

    @property
    def provenance(self) -> Provenance:
        """Of all their tokens."""
        return Provenance.cat([pool.provenance.take(units.tokens()) for pool, units in self._pairs()])

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
        return replace(self, units=tuple(inside))

    def tokens(self) -> Index:
        """Places of all tokens in the pools, laid one behind the other."""
        shift, places = 0, []
        for pool, units in self._pairs():
            places.append(units.tokens() + shift)
            shift += len(pool.provenance)
        return torch.cat(places)

    def _pairs(self) -> Iterator[tuple[Scored, Units]]:
        return zip(self.pools, self.units, strict=True)


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
        for pool, units in zip(self.candidates.pools, self.candidates.units, strict=True):
            whole = int(units.sizes.sum()) == len(pool.provenance)
            for block in (_whole if whole else _chosen)(pool, units, self.device):
                yield block._replace(first=block.first + first)
            first += len(units)


def key_slices(pool: Scored) -> Iterator[slice]:
    """All of a pool, cut where its keys are and into blocks."""
    for low, high in pairwise(pool.key_bounds()):
        for start in range(low, high, BLOCK_TOKENS):
            yield slice(start, min(start + BLOCK_TOKENS, high))


def _whole(pool: Scored, units: Units, device: torch.device) -> Iterator[KeyBlock]:
    """All of a pool, cut where its keys are: a unit may go on in the next block."""
    ends = units.starts + units.sizes
    for place in key_slices(pool):
        first = int(torch.searchsorted(ends, place.start, right=True))
        last = int(torch.searchsorted(units.starts, place.stop))
        edges = units.starts[first:last].clamp(min=place.start)
        sizes = torch.diff(edges, append=torch.tensor([place.stop]))
        yield KeyBlock(pool.retrieval_keys(place, device), sizes, first)


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
