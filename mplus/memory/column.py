"""``Column``: one number for each token of a store, kept once for each run of tokens that share or count it.

Tokens of a chunk have one source, one chunk number and one recall frequency, and their ages and rows count up or down.
So five columns of eight bytes a token become some twenty bytes a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

Numbers = Shaped[np.ndarray, " _"]
FEW = 256
"""Up to this many tokens are always kept as runs."""


@dataclass(frozen=True, eq=False)
class Column:
    """Numbers of tokens, which within a run differ by ``step`` from one to the next; equal only to itself."""

    firsts: Numbers
    """The first number of each run, or every number where runs would take more room."""
    starts: Numbers | None
    """Place of the first token of each run; None: every number is kept."""
    step: int
    length: int
    """Number of tokens."""

    @classmethod
    def of(cls, numbers: Shaped[Tensor, " T"] | Numbers, step: int = 0) -> "Column":
        """A column of numbers that mostly differ by ``step`` from one to the next."""
        whole = numbers.numpy() if isinstance(numbers, Tensor) else numbers
        starts = np.flatnonzero(np.concatenate([np.ones(min(len(whole), 1), dtype=bool), np.diff(whole) != step]))
        if _takes_more(starts, len(whole)):
            return cls(whole.copy(), None, step, len(whole))
        return cls(whole[starts], starts, step, len(whole))

    def __len__(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        """Bytes in host memory."""
        return self.firsts.nbytes + (0 if self.starts is None else self.starts.nbytes)

    def all(self) -> Numbers:
        """The numbers of all tokens."""
        if self.starts is None:
            return self.firsts
        counts = np.diff(self.starts, append=self.length)
        if not self.step:
            return self.firsts.repeat(counts)
        return (self.firsts - self.step * self.starts).repeat(counts) + self.step * np.arange(self.length)

    def at(self, index: Numbers) -> Numbers:
        """The numbers of the tokens at ``index``, in that order."""
        if self.starts is None:
            return self.firsts[index]
        run = self.starts.searchsorted(index, side="right") - 1
        found = self.firsts[run]
        return found + self.step * (index - self.starts[run]) if self.step else found

    def up_to(self, number: int) -> int:
        """How many tokens of an ascending column of equal runs have at most this number."""
        place = int(self.firsts.searchsorted(number, side="right"))
        if self.starts is None:
            return place
        return int(self.starts[place]) if place < len(self.starts) else self.length

    def plus(self, by: int) -> "Column":
        """The column with ``by`` added to every number."""
        return replace(self, firsts=self.firsts + by)

    @staticmethod
    def cat(parts: "Sequence[Column]") -> "Column":
        """The numbers of all parts, in order."""
        parts = [part for part in parts if len(part)] or list(parts[:1])
        step, length = parts[0].step, sum(map(len, parts))
        runs = [part.starts for part in parts if part.starts is not None]
        if len(parts) == 1:
            return parts[0]
        if len(runs) < len(parts):
            return Column.of(np.concatenate([part.all() for part in parts]), step)
        shifts = np.cumsum([0, *map(len, parts)])
        starts = np.concatenate([own + shift for own, shift in zip(runs, shifts, strict=False)])
        firsts = np.concatenate([part.firsts for part in parts])
        # A part may go on as the one before it ended.
        begins = np.concatenate([[True], firsts[1:] != firsts[:-1] + step * np.diff(starts)])
        made = Column(firsts[begins], starts[begins], step, length)
        return Column(made.all(), None, step, length) if _takes_more(starts[begins], length) else made


def as_tensor(column: Column, index: Shaped[Tensor, " n"] | None = None) -> Shaped[Tensor, " _"]:
    """The numbers of a column as a tensor; with an index, of the tokens there. Changing it changes no column."""
    numbers = column.all() if index is None else column.at(index.numpy())
    return torch.from_numpy(numbers.copy() if numbers is column.firsts else numbers)


def _takes_more(starts: Numbers, length: int) -> bool:
    """Whether runs would take more room than all numbers; a few tokens are always kept as runs, to be joined so."""
    return length > FEW and 2 * len(starts) > length
