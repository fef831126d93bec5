"""Whole chunks: kept, evicted and recalled as they were written, one choice for all layers."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.layout import Chunks, Eviction, Layout, Pool, Ranked, Units, choose_units

RIVALS = 3
"""So many chunks after the most relevant one may be about the same thing, changed later."""
AS_RELEVANT = 0.75
"""One with this share, at least, of the most relevant one's relevance (above an average chunk's) is about the same."""


class WholeChunks(Layout):
    """A chunk is never torn apart, and all layers remember the same ones."""

    chooses_once = True
    writes_together = True

    def tracks(self, num_layers: int, recall_layer: int) -> tuple[tuple[tuple[int, ...], int], ...]:
        """All layers together."""
        return ((tuple(range(num_layers)), recall_layer),)

    def units(self, chunks: Chunks) -> Units:
        """Its chunks."""
        starts = chunk_starts(chunks)
        return Units(starts, torch.diff(starts, append=torch.tensor([len(chunks)])))

    def evict(self, chunks: Chunks, num_new: int, capacity: int, generator: torch.Generator) -> Eviction:
        """The oldest chunks leave."""
        evicted, remaining = torch.arange(len(chunks)).tensor_split([len(chunks) - newest_fitting(chunks, capacity)])
        return Eviction(remaining, evicted)

    def num_returning(self, chunks: Chunks, room: int) -> int:
        """The newest chunks that fit, so that a memory that forgot a source reads like one that never had it."""
        return newest_fitting(chunks, room)

    def saved_apart(self, chunks: Chunks) -> list[int]:
        """By chunk: a save writes only those that are new."""
        return self.units(chunks).sizes.tolist()

    def scored(self, stored: tuple[Pool, ...], short_term: Pool) -> tuple[Pool, ...]:
        """Short-term chunks too: what is read anyway tells what is relevant, and may stand nearest to the prompt."""
        return (*stored, short_term)

    def goes_on(self, chunks: Int[Tensor, " U"], sources: Int[Tensor, " U"]) -> Bool[Tensor, " U"] | None:
        """Those that were written next, of the same source."""
        same = (chunks[1:] == chunks[:-1] + 1) & (sources[1:] == sources[:-1])
        return torch.cat([torch.zeros(min(len(chunks), 1), dtype=torch.bool), same])

    def choose(self, ranked: Ranked, config: MemoryConfig) -> Int[Tensor, " chosen"]:
        """The most relevant chunks, as far as they are relevant enough, after the best one's neighbours."""
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
        """The most relevant chunk that is read, with those next to it, or what changed it."""
        assert ranked.goes_on is not None
        read = ranked.read(chosen)
        best_first = read[ranked.relevance[read].argsort(descending=True, stable=True)].tolist()
        written = dict(zip(read.tolist(), ranked.chunks[read].tolist(), strict=True))
        return standing_last(best_first, written, ranked.relevance - ranked.average, ranked.goes_on)


def chunk_starts(chunks: Chunks) -> Int[Tensor, " U"]:
    """Where each chunk begins."""
    changes = (chunks[1:] != chunks[:-1]).nonzero().flatten() + 1
    return torch.cat([torch.zeros(min(len(chunks), 1), dtype=torch.int64), changes])


def newest_fitting(chunks: Chunks, room: int) -> int:
    """Tokens of the newest whole chunks that fit into ``room`` tokens."""
    starts = chunk_starts(chunks)
    fitting = starts[len(chunks) - starts <= room]
    return len(chunks) - int(fitting[0]) if len(fitting) else 0


def _as_relevant(
    best_first: Int[Tensor, " chosen"], relevance: Float[Tensor, " U"], share: float
) -> Int[Tensor, " kept"]:
    """Those that have a share of the best one's relevance above an average unit's; all where the best is no better."""
    mine = relevance[best_first]
    return best_first[mine >= share * mine[0]] if len(mine) and mine[0] > 0 else best_first


def standing_last(
    best_first: Sequence[int],
    written: Mapping[int, float],
    relevance: Float[Tensor, " U"],
    goes_on: Bool[Tensor, " U"],
) -> list[int]:
    """The chunks that stand nearest to the prompt, in order: where a small reader finds them best.

    The most relevant one with those that are read next to it in its text. Where there are none: it alone; or,
    behind it, the newest of the next best that was written later and is about the same, as a change is.

    Args:
        best_first: Chunks that are read, the most relevant first.
        written: When each was written, as any rising number.
        relevance: Of every chunk, above an average one's.
        goes_on: Which chunks go on where the one before them ends.
    """
    if not best_first:
        return []
    best, *others = best_first
    read = set(best_first)
    first = last = best
    while goes_on[first] and first - 1 in read:
        first -= 1
    while last + 1 in read and goes_on[last + 1]:
        last += 1
    if first < last:
        return list(range(first, last + 1))
    as_relevant = AS_RELEVANT * relevance[best]
    newer = [u for u in others[:RIVALS] if written[u] > written[best] and relevance[u] >= as_relevant]
    return [best, *sorted(newer, key=lambda unit: written[unit])[-1:]]


def neighbours(best: int, goes_on: Bool[Tensor, " U"], reach: int) -> list[int]:
    """A chunk and up to ``reach`` chunks of the same text on either side of it, the nearest first.

    Args:
        best: Place of the chunk.
        goes_on: Which chunks go on where the one before them ends.
        reach: Most chunks on one side.
    """
    before, after = [best], [best]
    for _ in range(reach):
        if before[-1] > 0 and goes_on[before[-1]]:
            before.append(before[-1] - 1)
        if after[-1] + 1 < len(goes_on) and goes_on[after[-1] + 1]:
            after.append(after[-1] + 1)
    return sorted({*before, *after}, key=lambda unit: (abs(unit - best), unit))


def first_fitting(units: Sequence[int], sizes: Int[Tensor, " U"], budget: int) -> Int[Tensor, " chosen"]:
    """Units in the given order, each once, until one does not fit into the budget."""
    order = torch.tensor(list(dict.fromkeys(units)), dtype=torch.int64)
    return order[sizes[order].cumsum(0) <= budget]
