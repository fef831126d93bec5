"""When each chunk was written: what age limits go by."""

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
