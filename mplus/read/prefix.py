"""The prefix of a prompt: bos, then recalled and short-term tokens in the order that recall gives."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mplus.backbone.attention import KeysValues
from mplus.backbone.backbone import Backbone
from mplus.computed_once import computed_once
from mplus.memory.stacks import stacked
from mplus.memory.state import Track
from mplus.memory.transfer import moved
from mplus.read.cache_layer import Prefix
from mplus.read.fetch import RecalledRows
from mplus.read.warming import warmed_rows
from mplus.recall.choose import Recalled
from mplus.shapes import Index
from mplus.weights import Weights

STRETCH_BYTES = 2**28
"""Most bytes of the prefix of layers that are filled together, since they are fetched and converted together."""
USUAL_PREFIX = 4096
"""Length of a prefix for which that is worked out; rows that are read together must divide layers alike."""


@dataclass(frozen=True)
class ReadingOrder:
    """Which recalled and short-term tokens follow bos, and in which order.

    Attributes:
        num_recalled: Number of recalled tokens.
        rows: Rows of [recalled ; short-term] in reading order.
    """

    num_recalled: int
    rows: Int[Tensor, " P"]

    @computed_once
    def runs(self) -> list[tuple[int, int]]:
        """Runs of consecutive rows within either part: first and last-plus-one row."""
        if not len(self.rows):
            return []
        rows = self.rows.numpy()
        cuts = (np.diff(rows) != 1) | (rows[1:] == self.num_recalled)
        bounds = [0, *(np.flatnonzero(cuts) + 1).tolist(), len(rows)]
        firsts = rows[bounds[:-1]].tolist()
        return [(row, row + stop - start) for row, (start, stop) in zip(firsts, pairwise(bounds), strict=True)]

    def shared(self, other: "ReadingOrder") -> list[bool]:
        """For each run, whether it has short-term tokens that have the same places in the other order."""
        if len(self.rows) != len(other.rows):
            return [False] * len(self.runs)
        ours, theirs = self.rows.numpy() - self.num_recalled, other.rows.numpy() - other.num_recalled
        same = (ours >= 0) & (ours == theirs)
        bounds = [0, *accumulate(stop - start for start, stop in self.runs)]
        return [bool(same[start:stop].all()) for start, stop in pairwise(bounds)]

    def with_recalled(self, places: Int[Tensor, " T"]) -> "ReadingOrder":
        """The same order where the recalled tokens stand otherwise: row n is that of the token at ``places[n]``."""
        rows, number = self.rows.numpy(), np.empty(len(places), dtype=np.int64)
        number[places.numpy()] = np.arange(len(places))
        is_recalled = rows < self.num_recalled
        return ReadingOrder(
            self.num_recalled, torch.from_numpy(np.where(is_recalled, number[np.where(is_recalled, rows, 0)], rows))
        )


@dataclass(frozen=True)
class Chosen:
    """The tokens that all layers of a read recall, if one choice serves all layers.

    Attributes:
        index: Rows of [long-term ; pending].
        order: Order in which they and short-term memory are read.
    """

    index: Int[Tensor, " T"]
    order: ReadingOrder

    def equals(self, other: "Chosen | None") -> bool:
        """Whether both give the same prefix of one memory."""
        if other is None or not torch.equal(self.index, other.index):
            return False
        return torch.equal(self.order.rows, other.order.rows)


def stretches(backbone: Backbone, track: Track) -> list[range]:
    """Layers of a track, by their places in it, whose prefixes are made in one step.

    They are on one device and alike, and their prefixes do not take more than ``STRETCH_BYTES`` at a usual length.
    """
    made: list[range] = []
    kinds = [
        (device, backbone.head_shapes(layer), backbone.rotary_layer(layer))
        for layer, device in zip(track.layers, track.devices, strict=True)
    ]
    for place, kind in enumerate(kinds):
        heads = kind[1]
        numbers = heads.key_heads * heads.key_size + heads.value_heads * heads.value_size
        most = max(STRETCH_BYTES // (USUAL_PREFIX * numbers * backbone.dtype.itemsize), 1)
        if made and kinds[made[-1].start] == kind and len(made[-1]) < most:
            made[-1] = range(made[-1].start, place + 1)
        else:
            made.append(range(place, place + 1))
    return made


class TrackPrefix:
    """The prefix of one prompt in the layers of one track."""

    def __init__(self, weights: Weights, track: Track, recalled: Recalled, sources: Int[Tensor, " n"] | None) -> None:
        """Prepare the prefix; nothing is fetched yet.

        Args:
            weights: The model, for the bos states and the device of each layer.
            track: The track whose pools are read.
            recalled: The result of recall from this track.
            sources: Rows of the table of sources that may be read; None for all.
        """
        self._weights, self.track, self.recalled = weights, track, recalled
        self._recent: Index | None = None
        """Rows of short-term memory that may be read; None for all."""
        if sources is not None:
            self._recent = torch.isin(track.short_term.provenance.sources, sources).nonzero().flatten()
        order = recalled.order
        if order is None:
            recent = len(track.short_term) if self._recent is None else len(self._recent)
            order = torch.arange(len(recalled.index) + recent)
        self.chosen = Chosen(recalled.index, ReadingOrder(len(recalled.index), order))
        self.stretches = stretches(weights.backbone, track)

    @computed_once
    def _rows(self) -> RecalledRows | None:
        """The recalled rows, being fetched for the track's first layers."""
        if not len(self.recalled.index):
            return None
        stores, index = warmed_rows(self._weights, self.track, self.recalled)
        content = self.track.short_term.content
        is_paired = all(k.shape == v.shape for k, v in zip(content.keys, content.values, strict=True))
        dtype, devices = self._weights.backbone.dtype, self.track.devices
        rows = RecalledRows(stores, index, dtype, devices, self.stretches, is_paired=is_paired)
        rows.start(0)
        return rows

    @computed_once
    def order(self) -> ReadingOrder:
        """The reading order, with recalled tokens numbered as they are fetched."""
        return self.chosen.order if self._rows is None else self.chosen.order.with_recalled(self._rows.order)

    def stretch_of(self, layer: int) -> tuple[int, ...]:
        """The layers that are made in one step with a layer of the track."""
        place = self.track.layers.index(layer)
        return next(self.track.layers[part.start : part.stop] for part in self.stretches if place in part)

    def parts(self, stretch: Sequence[int]) -> Prefix:
        """Parts of the prefix in the layers of a stretch, in order: keys before rotary embedding, and values.

        Call it once for each stretch, in order.
        """
        first = self.track.layers.index(stretch[0])
        places, num_recalled = range(first, first + len(stretch)), self.order.num_recalled
        number = self.stretches.index(places)
        recalled = self._rows.take(number) if self._rows is not None else None
        content = self.track.short_term.content
        recent = _stack([KeysValues(content.keys[place], content.values[place]) for place in places])
        if self._recent is not None:
            rows = self._recent.to(recent.keys.device)
            recent = KeysValues(recent.keys.index_select(1, rows), recent.values.index_select(1, rows))
        bos = _stack([self._weights.bos[self.track.layers[place]] for place in places])
        parts = [KeysValues(*(moved(part, recent.keys.device) for part in bos))]
        for start, stop in self.order.runs:
            whole, first = (recent, num_recalled) if recalled is None or start >= num_recalled else (recalled, 0)
            here = slice(start - first, stop - first)
            parts.append(KeysValues(whole.keys[:, here], whole.values[:, here]))
        return [self._weights.whole(stretch, part) for part in parts]


def _stack(layers: Sequence[KeysValues]) -> KeysValues:
    """Keys and values of several layers, [layers, rows, heads, size]; copied only if they do not lie side by side."""
    both = [tensor for layer in layers for tensor in layer]
    if (stack := stacked(both)) is not None:
        pairs = stack.unflatten(0, (len(layers), 2))
        return KeysValues(pairs[:, 0], pairs[:, 1])
    kinds = (both[::2], both[1::2])
    return KeysValues(*(torch.stack(kind) if (stack := stacked(kind)) is None else stack for kind in kinds))
