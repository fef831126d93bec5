"""Whole chunks: chunks are kept, evicted and recalled whole, with one choice for all layers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.layout import Chunks, Eviction, Layout, Ranked, Units, choose_units

RIVALS = 3
"""How many of the next most relevant chunks are looked at for a later change of the best one."""
AS_RELEVANT = 0.75
"""A chunk with at least this share of the best one's relevance (above the mean) counts as about the same thing."""


class WholeChunks(Layout):
    """Chunks stay whole and are the same in every layer."""

    chooses_once = True
    units_are_texts = True
    scores_short_term = True
    writes_together = True

    def tracks(self, num_layers: int, recall_layer: int) -> tuple[tuple[tuple[int, ...], int], ...]:
        """One group of all layers."""
        return ((tuple(range(num_layers)), recall_layer),)

    def units(self, chunks: Chunks) -> Units:
        """Each chunk is a unit."""
        starts = chunk_starts(chunks)
        return Units(starts, torch.from_numpy(np.diff(starts.numpy(), append=len(chunks))))

    def evict(self, chunks: Chunks, num_new: int, capacity: int, generator: torch.Generator) -> Eviction:
        """Evict the oldest chunks."""
        evicted, remaining = torch.arange(len(chunks)).tensor_split([len(chunks) - newest_fitting(chunks, capacity)])
        return Eviction(remaining, evicted)

    def num_returning(self, chunks: Chunks, room: int) -> int:
        """The newest chunks that fit, so that reads equal those of a memory that never had the forgotten source."""
        return newest_fitting(chunks, room)

    def saved_apart(self, chunks: Chunks) -> list[int]:
        """Sizes of the chunks, so that a save writes only new chunks."""
        return self.units(chunks).sizes.tolist()

    def choose(self, ranked: Ranked, config: MemoryConfig) -> Int[Tensor, " chosen"]:
        """The best chunk with its neighbours, then the most relevant of the chunks above ``relevance_cutoff``."""
        assert ranked.goes_on is not None
        relevance, sizes, stored = ranked.relevance, ranked.sizes, ranked.num_stored
        best_first = choose_units(relevance[:stored], sizes[:stored], config.recalled_tokens)
        if config.relevance_cutoff:
            best_first = _as_relevant(best_first, relevance - ranked.average, config.relevance_cutoff)
        if config.recalled_neighbours:
            near = neighbours(int(relevance.argmax()), ranked.goes_on, config.recalled_neighbours)
            brought = [unit for unit in near if unit < stored]
            best_first = first_fitting([*brought, *best_first.tolist()], sizes, config.recalled_tokens)
        return best_first.sort().values

    def standing_last(self, ranked: Ranked, chosen: Int[Tensor, " chosen"]) -> list[int]:
        """The most relevant chunk that is read, with its neighbours, or followed by a later change of it."""
        assert ranked.goes_on is not None
        assert ranked.chunks is not None
        read = ranked.read(chosen)
        best_first = read[ranked.relevance[read].argsort(descending=True, stable=True)].tolist()
        written = dict(zip(read.tolist(), ranked.chunks[read].tolist(), strict=True))
        return standing_last(best_first, written, ranked.relevance - ranked.average, ranked.goes_on)


def chunk_starts(chunks: Chunks) -> Int[Tensor, " U"]:
    """Positions at which chunks begin."""
    changes = np.flatnonzero(np.diff(chunks.numpy())) + 1
    return torch.from_numpy(np.concatenate([np.zeros(min(len(chunks), 1), dtype=np.int64), changes]))


def newest_fitting(chunks: Chunks, room: int) -> int:
    """Number of tokens of the newest whole chunks that fit into ``room`` tokens."""
    starts = chunk_starts(chunks)
    fitting = starts[len(chunks) - starts <= room]
    return len(chunks) - int(fitting[0]) if len(fitting) else 0


def _as_relevant(
    best_first: Int[Tensor, " chosen"], relevance: Float[Tensor, " U"], share: float
) -> Int[Tensor, " kept"]:
    """Units with at least ``share`` of the best one's relevance above the mean; all if the best is not above it."""
    mine = relevance[best_first]
    return best_first[mine >= share * mine[0]] if len(mine) and mine[0] > 0 else best_first


def standing_last(
    best_first: Sequence[int],
    written: Mapping[int, float],
    relevance: Float[Tensor, " U"],
    goes_on: Bool[Tensor, " U"],
) -> list[int]:
    """The chunks next to the prompt, in reading order; a small model answers best from these.

    They are the most relevant chunk and its neighbours among those that are read. Without neighbours it is read alone,
    or followed by the newest of the next best chunks that was written later and is about the same thing: a change.

    Args:
        best_first: Chunks that are read, the most relevant first.
        written: Order in which chunks were written, as any rising number.
        relevance: Relevance of every chunk above that of an average one.
        goes_on: Whether each chunk continues the one before it.
    """
    if not best_first:
        return []
    best, *others = best_first
    read, linked, match = set(best_first), goes_on.numpy(), relevance.numpy()
    first = last = best
    while linked[first] and first - 1 in read:
        first -= 1
    while last + 1 in read and linked[last + 1]:
        last += 1
    if first < last:
        return list(range(first, last + 1))
    as_relevant = match.dtype.type(AS_RELEVANT) * match[best]
    newer = [u for u in others[:RIVALS] if written[u] > written[best] and match[u] >= as_relevant]
    return [best, *sorted(newer, key=lambda unit: written[unit])[-1:]]


def neighbours(best: int, goes_on: Bool[Tensor, " U"], reach: int) -> list[int]:
    """A chunk and up to ``reach`` chunks of the same text on either side of it, the nearest first.

    Args:
        best: Number of the chunk.
        goes_on: Whether each chunk continues the one before it.
        reach: Most chunks on one side.
    """
    before, after = [best], [best]
    for _ in range(reach):
        goes_back = before[-1] > 0 and bool(goes_on[before[-1]])
        goes_ahead = after[-1] + 1 < len(goes_on) and bool(goes_on[after[-1] + 1])
        if not (goes_back or goes_ahead):
            break
        if goes_back:
            before.append(before[-1] - 1)
        if goes_ahead:
            after.append(after[-1] + 1)
    return sorted({*before, *after}, key=lambda unit: (abs(unit - best), unit))


def first_fitting(units: Sequence[int], sizes: Int[Tensor, " U"], budget: int) -> Int[Tensor, " chosen"]:
    """Units in the given order, each once, until one does not fit into the budget."""
    order = torch.tensor(list(dict.fromkeys(units)), dtype=torch.int64)
    return order[sizes[order].cumsum(0) <= budget]
