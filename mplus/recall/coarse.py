"""A coarse index over retrieval keys. It finds the chunks worth scoring exactly without comparing every key.

Keys are sorted into clusters, about four times the square root of their number. A question row visits the
nearest clusters and is compared with the keys in them; for a chunk without a key there, the similarity of
the nearest cluster that was not visited is assumed. Only late interaction needs it: a chunk's relevance is a sum of
nearest neighbours.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.memory.long_term import LongTermMemory
from mplus.memory.precision import Plane
from mplus.memory.transfer import HOST
from mplus.recall.units import key_slices

UNINDEXED_TOKENS = 131_072
"""Number of tokens added after the index was built, and scored one by one, before it is rebuilt."""
INDEX_WASTE = 0.25
"""Share of the index's tokens that may have been removed before it is rebuilt."""
SAMPLE_TOKENS = 65_536
"""Number of keys that the clusters are computed from."""
ROUNDS = 4
"""Rounds of k-means; further rounds change recall by less than 0.01."""
PROBES = 48
"""Number of clusters that each question row visits."""
MOST_ROWS = 64
"""Most question rows that visit clusters, evenly spaced. They suffice to find the chunks that all rows then score."""
ASSIGNED_TOKENS = 32_768
"""Keys sorted into clusters at a time."""


@dataclass(frozen=True)
class CoarseIndex:
    """Retrieval keys in the order of their clusters."""

    centroids: Float[Tensor, "C R"]
    offsets: Int[Tensor, " bounds"]
    """Position at which each cluster begins, and the end of the last."""
    keys: Plane
    """A copy of the keys in eight bits, in which each cluster is contiguous in memory."""
    members: Int[Tensor, " T"]
    """The chunk of each key, as a row of ``chunks``."""
    chunks: Int[Tensor, " U"]
    """Serial numbers of all chunks, ascending."""

    @staticmethod
    def build(blocks: Callable[[], Iterable[Tensor]], chunks: Int[Tensor, " T"]) -> "CoarseIndex":
        """Index keys of unit length.

        Args:
            blocks: Makes an iterator over all keys [_ R], in order; called twice.
            chunks: Serial number of each token's chunk, ascending.
        """
        count = len(chunks)
        branches = max(round(2 * count**0.25), 2)
        every = max(-(-count // SAMPLE_TOKENS), 1)
        coarse, fine = _tree(torch.cat([keys[::every] for keys in blocks()]), branches)
        unit, known = torch.zeros(count, dtype=torch.int64), chunks.unique_consecutive()
        unit[1:] = (chunks[1:] != chunks[:-1]).cumsum(0)
        cluster, planes = torch.empty(count, dtype=torch.int64), list[Plane]()
        start = 0
        for keys in _batched(blocks()):
            cluster[start : start + len(keys)] = _assigned(keys, coarse, fine)
            planes.append(Plane.store(keys, "int8"))
            start += len(keys)
        order = cluster.argsort(stable=True)
        scales = [plane.scale for plane in planes if plane.scale is not None]
        keys = Plane(torch.cat([plane.data for plane in planes])[order], torch.cat(scales)[order])
        bounds = torch.bincount(cluster, minlength=branches**2).cumsum(0)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), bounds])
        return CoarseIndex(fine.flatten(0, 1), offsets, keys, unit[order].int(), known)

    def nearest(
        self,
        queries: Float[Tensor, "S R"],
        weights: Float[Tensor, " S"],
        most: int,
        allowed: Int[Tensor, " n"] | None = None,
    ) -> Int[Tensor, " chosen"]:
        """Serial numbers of the chunks that score best in the index, at most ``most``, ascending.

        Args:
            queries: Question rows of unit length.
            weights: Weight of each row.
            most: Largest number of chunks.
            allowed: Serial numbers, ascending, of the chunks that may be chosen; None for all.
        """
        step = -(-len(queries) // MOST_ROWS)
        queries, weights = queries[::step], weights[::step]
        probes = min(PROBES, len(self.centroids) - 1)
        near = (queries @ self.centroids.T).topk(probes + 1)
        best = near.values[:, -1:].repeat(1, len(self.chunks))
        for rows, units, scores in self._visits(queries, near.indices[:, :probes]):
            at = (rows[:, None] * len(self.chunks) + units).flatten()
            best.view(-1).scatter_reduce_(0, at, scores.flatten(), reduce="amax")
        total = weights @ (best - near.values[:, -1:])
        if allowed is not None:
            at = torch.searchsorted(allowed, self.chunks).clamp(max=max(len(allowed) - 1, 0))
            total[allowed[at] != self.chunks if len(allowed) else slice(None)] = -1.0
        chosen = total.topk(min(most, len(total)))
        return self.chunks[chosen.indices[chosen.values > 0]].sort().values

    def _visits(
        self, queries: Float[Tensor, "S R"], clusters: Int[Tensor, "S probes"]
    ) -> Iterator[tuple[Int[Tensor, " s"], Int[Tensor, " t"], Float[Tensor, "s t"]]]:
        """For each visited cluster: the rows that visit it, the chunks of its keys, and their cosines."""
        visited, order = clusters.flatten().sort(stable=True)
        rows = order // clusters.shape[1]
        numbers, counts = visited.unique_consecutive(return_counts=True)
        low, high = self.offsets[numbers].tolist(), self.offsets[numbers + 1].tolist()
        for start, stop, visitors in zip(low, high, rows.split(counts.tolist()), strict=True):
            keys = self.keys.rows(slice(start, stop), queries.dtype, queries.device)
            yield visitors, self.members[start:stop], queries[visitors] @ keys.T


def coarse_index(store: LongTermMemory) -> CoarseIndex:
    """The index of a store's chunks; rebuilt once too many tokens were added or removed since."""
    known = store.lasting.get(CoarseIndex)
    if known is not None:
        inside = store.provenance.chunk_column.up_to(int(known.chunks[-1]))
        if len(store) - inside <= UNINDEXED_TOKENS and inside >= (1 - INDEX_WASTE) * len(known.members):
            return known
    blocks = lambda: (store.retrieval_keys(place, HOST) for place in key_slices(store))
    made = CoarseIndex.build(blocks, store.provenance.chunks)
    store.lasting[CoarseIndex] = made
    return made


def _batched(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    waiting: list[Tensor] = []
    for keys in blocks:
        waiting.append(keys)
        if sum(map(len, waiting)) >= ASSIGNED_TOKENS:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _tree(sample: Float[Tensor, "T R"], branches: int) -> tuple[Float[Tensor, "b R"], Float[Tensor, "b b R"]]:
    """Cluster centres of two levels, so that a key is compared with 2b centres instead of b squared."""
    coarse = _clusters(sample, branches)
    home = (sample @ coarse.T).argmax(dim=1)
    fine = [_clusters(sample[home == n], branches, fallback=coarse[n]) for n in range(branches)]
    return coarse, torch.stack(fine)


def _clusters(
    keys: Float[Tensor, "T R"], count: int, fallback: Float[Tensor, " R"] | None = None
) -> Float[Tensor, "b R"]:
    """Spherical k-means from evenly spaced keys."""
    if not len(keys):
        assert fallback is not None
        return fallback.expand(count, -1).clone()
    centres = keys[torch.linspace(0, len(keys) - 1, count).long()].clone()
    for _ in range(ROUNDS):
        home = (keys @ centres.T).argmax(dim=1)
        total = torch.zeros_like(centres).index_add_(0, home, keys)
        length = total.norm(dim=1, keepdim=True)
        centres = torch.where(length > 0, total / length.clamp(min=1e-12), centres)
    return centres


def _assigned(
    keys: Float[Tensor, "T R"], coarse: Float[Tensor, "b R"], fine: Float[Tensor, "b b R"]
) -> Int[Tensor, " T"]:
    """The cluster of each key: the nearest centre of the first level, then the nearest of its second-level centres."""
    home = (keys @ coarse.T).argmax(dim=1)
    order = home.argsort()
    cluster = torch.empty_like(home)
    for branch, places in enumerate(order.split(torch.bincount(home, minlength=len(coarse)).tolist())):
        cluster[places] = branch * len(coarse) + (keys[places] @ fine[branch].T).argmax(dim=1)
    return cluster
