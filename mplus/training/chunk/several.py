"""Several banks, and several sources of samples, combined into one."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mplus.training.chunk.read_adapter import StateBank
from mplus.training.chunk.sample import Sample, SampleSource


class Part(NamedTuple):
    """One source among several."""

    samples: SampleSource
    share: float
    """Share of all samples."""
    first_chunk: int = 0
    """Number of its bank's first chunk among those of all banks."""


class Mixed:
    """Samples of several sources.

    Args:
        parts: The sources and how much each gives.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples, each from a source drawn at random."""
        chosen = rng.choices(range(len(self._parts)), [part.share for part in self._parts], k=count)
        drawn: list[Sample] = []
        for number, part in enumerate(self._parts):
            drawn += [_moved(s, part.first_chunk) for s in part.samples.draw(rng, chosen.count(number))]
        rng.shuffle(drawn)
        return drawn


def _moved(sample: Sample, by: int) -> Sample:
    return replace(sample, chunks=tuple(c + by for c in sample.chunks), clean=tuple(c + by for c in sample.clean))


class JoinedBanks:
    """Banks whose chunks are numbered one bank after the other.

    Args:
        banks: Complete: what is added to them later is not seen.
    """

    def __init__(self, banks: Sequence[StateBank]) -> None:
        self.input_ids = [ids for bank in banks for ids in bank.input_ids]
        self.first = [0]
        """Number of each bank's first chunk."""
        for bank in banks:
            self.first.append(self.first[-1] + len(bank.input_ids))
        self.states = JoinedStates(banks)
        self.goes_on = torch.cat([bank.goes_on for bank in banks])


class JoinedStates:
    """States of chunks of several banks, by number."""

    def __init__(self, banks: Sequence[StateBank]) -> None:
        self._places = [(bank, n) for bank in banks for n in range(len(bank.input_ids))]

    def __getitem__(self, chunk: int) -> Tensor:
        bank, number = self._places[chunk]
        return bank.states[number]
