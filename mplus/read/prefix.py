"""What stands before a prompt: bos, then recalled and short-term tokens in the order that recall gives."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.backbone.attention import KeysValues
from mplus.memory.state import Track
from mplus.read.cache_layer import Prefix
from mplus.read.fetch import RecalledRows
from mplus.recall.choose import Recalled
from mplus.shapes import Index
from mplus.weights import Weights


@dataclass(frozen=True)
class ReadingOrder:
    """In which order recalled and short-term tokens stand behind bos, and which of them.

    Attributes:
        num_recalled: Tokens recalled.
        rows: Rows of [recalled ; short-term].
    """

    num_recalled: int
    rows: Int[Tensor, " P"]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Rows that follow one another, of one of the two: first and last-plus-one row."""
        rows, first = self.rows, self.num_recalled
        cuts = (rows.diff() != 1) | (rows[1:] == first)
        return [(int(run[0]), int(run[-1]) + 1) for run in rows.tensor_split(cuts.nonzero().flatten() + 1) if len(run)]

    def shared(self, other: "ReadingOrder") -> list[bool]:
        """Which runs are of short-term tokens that stand at the same places in the other order."""
        if len(self.rows) != len(other.rows):
            return [False] * len(self.runs)
        ours, theirs = self.rows - self.num_recalled, other.rows - other.num_recalled
        same = (ours >= 0) & (ours == theirs)
        sizes = [stop - start for start, stop in self.runs]
        return [bool(part.all()) for part in same.split(sizes)]


@dataclass(frozen=True)
class Chosen:
    """What all layers of a read recall, where that is one choice.

    Attributes:
        index: Rows of [long-term ; pending].
        order: In which they are read.
    """

    index: Int[Tensor, " T"]
    order: ReadingOrder

    def equals(self, other: "Chosen | None") -> bool:
        """Whether both make the same prefix of one memory."""
        if other is None or not torch.equal(self.index, other.index):
            return False
        return torch.equal(self.order.rows, other.order.rows)


class TrackPrefix:
    """The prefix of one prompt in the layers of one track."""

    def __init__(self, weights: Weights, track: Track, recalled: Recalled, sources: Int[Tensor, " n"] | None) -> None:
        """Nothing is fetched yet.

        Args:
            weights: For bos, and where each layer computes.
            track: Whose pools are read.
            recalled: What was recalled from it.
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
        """What was recalled, on its way to the track's first layer."""
        if not len(self.recalled.index):
            return None
        stores = (self.track.long_term, self.track.pending)
        rows = RecalledRows(stores, self.recalled.index, self._weights.backbone.dtype, self.track.devices)
        rows.start(0)
        return rows

    def parts(self, layer: int) -> Prefix:
        """Parts of the prefix in one layer of the track, in order: keys before rotary embedding, and values.

        Layers are asked for in order, each once.
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
