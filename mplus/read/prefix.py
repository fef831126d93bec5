"""The prefix of a prompt: bos, then recalled and short-term tokens in the order that recall gives."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.backbone.attention import KeysValues
from mplus.memory.state import Track
from mplus.read.cache_layer import Prefix
from mplus.read.fetch import RecalledRows
from mplus.read.warming import warmed_rows
from mplus.recall.choose import Recalled
from mplus.shapes import Index
from mplus.weights import Weights


@dataclass(frozen=True)
class ReadingOrder:
    """Which recalled and short-term tokens follow bos, and in which order.

    Attributes:
        num_recalled: Number of recalled tokens.
        rows: Rows of [recalled ; short-term] in reading order.
    """

    num_recalled: int
    rows: Int[Tensor, " P"]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Runs of consecutive rows within either part: first and last-plus-one row."""
        rows, first = self.rows, self.num_recalled
        cuts = (rows.diff() != 1) | (rows[1:] == first)
        return [(int(run[0]), int(run[-1]) + 1) for run in rows.tensor_split(cuts.nonzero().flatten() + 1) if len(run)]

    def shared(self, other: "ReadingOrder") -> list[bool]:
        """For each run, whether it has short-term tokens that have the same places in the other order."""
        if len(self.rows) != len(other.rows):
            return [False] * len(self.runs)
        ours, theirs = self.rows - self.num_recalled, other.rows - other.num_recalled
        same = (ours >= 0) & (ours == theirs)
        sizes = [stop - start for start, stop in self.runs]
        return [bool(part.all()) for part in same.split(sizes)]


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

    @cached_property
    def _rows(self) -> RecalledRows | None:
        """The recalled rows, being fetched for the track's first layer."""
        if not len(self.recalled.index):
            return None
        stores, index = warmed_rows(self._weights, self.track, self.recalled)
        rows = RecalledRows(stores, index, self._weights.backbone.dtype, self.track.devices)
        rows.start(0)
        return rows

    def parts(self, layer: int) -> Prefix:
        """Parts of the prefix in one layer of the track, in order: keys before rotary embedding, and values.

        Call it once for each layer, in order.
        """
        at, num_recalled = self.track.layers.index(layer), self.chosen.order.num_recalled
        recalled = self._rows.take(at) if self._rows is not None else None
        content = self.track.short_term.content
        recent = KeysValues(content.keys[at], content.values[at])
        if self._recent is not None:
            recent = recent.take(self._recent)
        parts = [self._bos(layer)]
        for start, stop in self.chosen.order.runs:
            if recalled is not None and start < num_recalled:
                parts.append(recalled.take(slice(start, stop)))
            else:
                parts.append(recent.take(slice(start - num_recalled, stop - num_recalled)))
        return parts

    def _bos(self, layer: int) -> KeysValues:
        backbone = self._weights.backbone
        state = backbone.bos_states[layer : layer + 1].to(backbone.layer_device(layer))
        normed = self._weights.norm(layer, state, reading=True)
        return backbone.keys_values(backbone.read_layers[layer], normed)
