"""Units of recall: runs of tokens that are recalled together, and their retrieval keys in blocks."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from mplus.computed_once import computed_once
from mplus.layouts.layout import Layout, Units
from mplus.memory.long_term import LongTermMemory
from mplus.memory.tokens import Provenance, Tokens
from mplus.memory.transfer import moved, side_stream
from mplus.memory.vectors import ChunkVectors
from mplus.shapes import Index
from mplus.words import no_words

BLOCK_TOKENS = 4096
"""Number of keys scored at a time: few enough that they and their scores stay in a core's cache."""

BLOCKS_AHEAD = 4
"""Most blocks that may wait on a GPU while earlier ones are scored."""

Pool = LongTermMemory | Tokens
"""Pools whose units can be scored."""


class KeyBlock(NamedTuple):
    """Retrieval keys of consecutive units, one key per token."""

    keys: Float[Tensor, "T R"]
    sizes: Int[Tensor, " u"]
    """Number of tokens of each unit, in order; the sum is the number of keys."""
    first: int
    """Number of the first unit. It may be the last unit of the block before, continued."""


@dataclass(frozen=True)
class Candidates:
    """Units of some pools, numbered consecutively from 0 over all pools."""

    pools: tuple[Pool, ...]
    units: tuple[Units, ...]
    layout: Layout
    vectors: ChunkVectors = field(default_factory=ChunkVectors)
    """Vectors of chunks, if the user's embedder scores them."""

    @staticmethod
    def of(
        pools: Sequence[Pool],
        layout: Layout,
        sources: Int[Tensor, " n"] | None = None,
        vectors: ChunkVectors | None = None,
    ) -> "Candidates":
        """All units of some pools.

        Args:
            pools: The pools.
            layout: Divides a pool into units.
            sources: Rows of the table of sources to include; None for all. A unit has the source of its first token.
            vectors: Vectors of the pools' chunks.
        """
        units = [pool.derived(layout, lambda pool=pool: layout.units(pool.provenance.chunks)) for pool in pools]
        if sources is not None:
            for n, (pool, known) in enumerate(zip(pools, units, strict=True)):
                allowed = torch.isin(pool.provenance.at("sources", known.starts), sources)
                units[n] = known.take(allowed.nonzero().flatten())
        return Candidates(tuple(pools), tuple(units), layout, vectors or ChunkVectors())

    @property
    def long_term(self) -> LongTermMemory:
        """The first of the pools that are stored in segments."""
        return next(pool for pool in self.pools if isinstance(pool, LongTermMemory))

    @computed_once
    def sizes(self) -> Int[Tensor, " U"]:
        """Number of tokens of every unit."""
        return torch.cat([units.sizes for units in self.units])

    @computed_once
    def chunks(self) -> Int[Tensor, " U"] | None:
        """Chunk number of every unit; None if units are not texts."""
        if not self.layout.units_are_texts:
            return None
        return self._firsts("chunks")

    @computed_once
    def sources(self) -> Int[Tensor, " U"]:
        """Source of every unit, as a row of the table of sources."""
        return self._firsts("sources")

    def _firsts(self, column: str) -> Int[Tensor, " U"]:
        """A column of provenance at the first token of every unit."""
        columns = [pool.provenance.numbers(column, units.arrays[0]) for pool, units in self._pairs()]
        return torch.from_numpy(np.concatenate(columns))

    @computed_once
    def goes_on(self) -> Bool[Tensor, " U"] | None:
        """Whether each chunk continues the one before it (written next, same source); None if units are not texts."""
        if (chunks := self.chunks) is None:
            return None
        same = (np.diff(chunks.numpy()) == 1) & (np.diff(self.sources.numpy()) == 0)
        return torch.from_numpy(np.concatenate([np.zeros(min(len(chunks), 1), dtype=bool), same]))

    @property
    def provenance(self) -> Provenance:
        """Provenance of all tokens of the units."""
        pools = (pool for pool, units in self._pairs() if len(units))
        parts = [pool.provenance.take(tokens) for pool, tokens in zip(pools, self._inside, strict=True)]
        return parts[0] if len(parts) == 1 else Provenance.cat([Provenance.none(), *parts])

    @computed_once
    def _inside(self) -> list[Index]:
        """Positions of the tokens of the units in each pool that has any."""
        return [units.tokens() for units in self.units if len(units)]

    def __len__(self) -> int:
        return sum(map(len, self.units))

    def blocks(self, device: torch.device) -> "Blocks":
        """Retrieval keys of the units, to be scored on a device."""
        return Blocks(self, device)

    def take(self, index: Int[Tensor, " u"]) -> "Candidates":
        """The candidates at ``index``, which is in ascending order."""
        bounds = [0, *accumulate(map(len, self.units))]
        cuts = np.searchsorted(index.numpy(), bounds).tolist()
        inside = [
            units.take(index[start:stop] - low if stop > start else slice(0))
            for units, low, (start, stop) in zip(self.units, bounds, pairwise(cuts), strict=False)
        ]
        return replace(self, units=tuple(inside))

    def tokens(self) -> Index:
        """Positions of all tokens in the concatenation of the pools."""
        shifts = [0, *accumulate(len(pool.provenance) for pool in self.pools)]
        filled = [shift for shift, units in zip(shifts, self.units, strict=False) if len(units)]
        places = [tokens + shift for tokens, shift in zip(self._inside, filled, strict=True)]
        return torch.cat(places) if places else torch.empty(0, dtype=torch.int64)

    @computed_once
    def words(self) -> Int32[Tensor, " T"]:
        """Word number of every token of the units."""
        said = [
            pool.provenance.words if units.num_tokens == len(pool.provenance) else pool.provenance.words[units.tokens()]
            for pool, units in self._pairs()
            if len(units)
        ]
        return torch.cat(said) if said else no_words(0)

    def _pairs(self) -> Iterator[tuple[Pool, Units]]:
        return zip(self.pools, self.units, strict=True)


class Blocks:
    """Retrieval keys of candidates in blocks; can be iterated over any number of times.

    Blocks are streamed to a GPU: one is copied while the one before it is scored, so that device memory does not
    grow with their number.
    """

    def __init__(self, candidates: Candidates, device: torch.device) -> None:
        self.candidates, self.device = candidates, device

    def __iter__(self) -> Iterator[KeyBlock]:
        return self._all() if self.device.type == "cpu" else self._streamed()

    def _streamed(self) -> Iterator[KeyBlock]:
        side, here = side_stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(here)  # keys on the device may still be being computed on another stream
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
            if not len(units):
                continue
            whole = units.num_tokens == len(pool.provenance)
            for block in (_whole if whole else _chosen)(pool, units, self.device):
                yield block._replace(first=block.first + first)
            first += len(units)


def key_slices(pool: Pool) -> Iterator[slice]:
    """Slices of a whole pool, in blocks that end where key tensors end if these are not larger."""
    begin = last = 0
    for end in pool.key_bounds()[1:]:
        if end - begin > BLOCK_TOKENS and last > begin:
            yield slice(begin, last)
            begin = last
        while end - begin > BLOCK_TOKENS:
            yield slice(begin, begin + BLOCK_TOKENS)
            begin += BLOCK_TOKENS
        last = end
    if last > begin:
        yield slice(begin, last)


def _whole(pool: Pool, units: Units, device: torch.device) -> Iterator[KeyBlock]:
    """All units of a pool in blocks. A unit may continue in the next block."""

    def plan() -> list[tuple[slice, Int[Tensor, " u"], int]]:
        found: list[tuple[slice, Tensor, int]] = []
        starts, counts = units.arrays
        ends = starts + counts
        for place in key_slices(pool):
            first = int(np.searchsorted(ends, place.start, side="right"))
            last = int(np.searchsorted(starts, place.stop))
            sizes = np.diff(starts[first:last].clip(min=place.start), append=place.stop)
            found.append((place, torch.from_numpy(sizes), first))
        return found

    for place, sizes, first in pool.derived(("blocks", len(units)), plan):
        yield KeyBlock(pool.retrieval_keys(place, device), sizes, first)


def _chosen(pool: Pool, units: Units, device: torch.device) -> Iterator[KeyBlock]:
    """Some units of a pool in blocks of whole units."""
    filled = units.sizes.cumsum(0)
    first = 0
    while first < len(units):
        before = int(filled[first - 1]) if first else 0
        last = max(int(torch.searchsorted(filled, before + BLOCK_TOKENS, right=True)), first + 1)
        part = Units(units.starts[first:last], units.sizes[first:last])
        yield KeyBlock(pool.retrieval_keys(part.tokens(), device), part.sizes, first)
        first = last
