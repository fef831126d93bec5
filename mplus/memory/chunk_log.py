"""When each chunk was written, which age limits go by, and when it was said."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ChunkLog:
    """Chunks from number ``first`` on, in the order of writing; earlier chunks are past an age limit."""

    first: int = 0
    times: Float[Tensor, " C"] = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    """Unix time at which the oldest text of each chunk was handed in; never falls."""
    ends: Int[Tensor, " C"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Memory tokens written per layer when the chunk had been written."""

    def __len__(self) -> int:
        return len(self.times)

    def append(self, times: Float[Tensor, " n"], ends: Int[Tensor, " n"]) -> "ChunkLog":
        """The log with more chunks at its end. If the clock was set back, the last time is used again."""
        return replace(
            self, times=torch.cat([self.times, times]).cummax(dim=0).values, ends=torch.cat([self.ends, ends])
        )

    def num_past(self, earliest: float, written_tokens: int, age_limit: int | None) -> int:
        """How many of the log's chunks are older than a time, or than a number of memory tokens."""
        past = int(torch.searchsorted(self.times, torch.tensor(earliest, dtype=torch.float64)))
        if age_limit is not None:
            past = max(past, int(torch.searchsorted(self.ends, written_tokens - age_limit)))
        return past

    def later(self, num: int) -> "ChunkLog":
        """The log without its first ``num`` chunks."""
        return ChunkLog(self.first + num, self.times[num:], self.ends[num:])


@dataclass(frozen=True)
class ChunkMoments:
    """When chunks were said of which the log does not tell it: those given with a time, or joined of several texts."""

    chunks: Int[Tensor, " C"] = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Serial numbers, ascending."""
    times: Float[Tensor, " C"] = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    """Unix time at which the latest text of each was said."""

    def __len__(self) -> int:
        return len(self.chunks)

    def append(self, first: int, times: Sequence[float | None]) -> "ChunkMoments":
        """The moments of further chunks, numbered from ``first`` on; None where the log tells it."""
        known = [(first + n, time) for n, time in enumerate(times) if time is not None]
        if not known:
            return self
        numbers, moments = zip(*known, strict=True)
        return ChunkMoments(
            torch.cat([self.chunks, torch.tensor(numbers)]),
            torch.cat([self.times, torch.tensor(moments, dtype=torch.float64)]),
        )

    def keeping(self, chunks: Int[Tensor, " n"]) -> "ChunkMoments":
        """The moments of some chunks alone."""
        kept = torch.isin(self.chunks, chunks)
        return ChunkMoments(self.chunks[kept], self.times[kept])

    def of(self, log: ChunkLog, num_chunks: int) -> Float[Tensor, " n"]:
        """When each chunk was said, from number 0 on; NaN for those that nothing is known of."""
        found = torch.full((num_chunks,), float("nan"), dtype=torch.float64)
        found[log.first : log.first + len(log)] = log.times
        found[self.chunks] = self.times
        return found
