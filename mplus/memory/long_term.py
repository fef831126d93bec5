"""Long-term memory: a growing store that is read only by recall.

Pending evictions are kept in the same form, so that recall sees both alike.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from mplus.config import SURVIVAL_FREQUENCY
from mplus.memory.column import Column, as_tensor
from mplus.memory.precision import Plane, side_by_side
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, StoredProvenance
from mplus.memory.transfer import HOST
from mplus.shapes import Index

Made = TypeVar("Made")


@dataclass
class Derived:
    """Values computed once from a store's tokens. Versions of a store that differ only in age share them."""

    of: Column | None = None
    """The column of chunk numbers that ``exact`` was computed for."""
    exact: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any])
    lasting: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any])
    """Values that stay valid when tokens come and go, as they name chunks by serial number; forgetting drops them."""
    has_lost: bool = False
    """Whether tokens that ``lasting`` may have been computed from are gone."""

    def going_on(self, *, losing: bool = False) -> "Derived":
        """The values that a later version of the store starts with."""
        return Derived(lasting=dict(self.lasting), has_lost=self.has_lost or losing)


@dataclass(frozen=True)
class Places:
    """Where each token's content is: its segment, and its row in it."""

    segments: Column
    rows: Column

    @staticmethod
    def of(segment: Int[Tensor, " T"], row: Int[Tensor, " T"]) -> "Places":
        """Places of tokens, of which most follow one another."""
        return Places(Column.of(segment), Column.of(row, 1))


@dataclass(frozen=True)
class LongTermMemory:
    """Tokens in immutable segments, in the order in which they arrived.

    ``segment`` and ``row`` say where each token's content is. A segment may hold rows of removed tokens until
    ``compacted`` drops them.
    """

    segments: tuple[Segment, ...]
    provenance: StoredProvenance
    places: Places
    _derived: Derived = field(default_factory=Derived, repr=False, compare=False)

    @staticmethod
    def empty() -> "LongTermMemory":
        """A store with nothing in it."""
        nothing = torch.empty(0, dtype=torch.int64)
        return LongTermMemory.of((), Provenance.none(), nothing, nothing)

    @staticmethod
    def of(
        segments: tuple[Segment, ...],
        provenance: Provenance,
        segment: Int[Tensor, " T"],
        row: Int[Tensor, " T"],
        derived: Derived | None = None,
    ) -> "LongTermMemory":
        """A store of the tokens at some rows of segments."""
        known = StoredProvenance.of(provenance)
        return LongTermMemory(segments, known, Places.of(segment, row), Derived() if derived is None else derived)

    @property
    def segment(self) -> Int[Tensor, " T"]:
        """The segment of every token, made whole at each call."""
        return as_tensor(self.places.segments)

    @property
    def row(self) -> Int[Tensor, " T"]:
        """The row of every token in its segment, made whole at each call."""
        return as_tensor(self.places.rows)

    def located(self, index: Index) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
        """Segments and rows of the tokens at ``index``."""
        return as_tensor(self.places.segments, index), as_tensor(self.places.rows, index)

    def __len__(self) -> int:
        return len(self.provenance)

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.nbytes for segment in self.segments)

    def append(self, segment: Segment, provenance: Provenance) -> "LongTermMemory":
        """The store with one more segment at its end."""
        if not len(segment):
            return self
        first, start = np.array([len(self.segments)]), np.zeros(1, dtype=np.int64)
        where = (Column(first, start, 0, len(segment)), Column(start, start, 1, len(segment)))
        return LongTermMemory(
            (*self.segments, segment),
            StoredProvenance.joined([self.provenance, provenance]),
            Places(Column.cat([self.places.segments, where[0]]), Column.cat([self.places.rows, where[1]])),
            self._derived.going_on(),
        )

    @staticmethod
    def side_by_side(stores: "Sequence[LongTermMemory]") -> "LongTermMemory":
        """The tokens of several stores in one, in order; ``lasting`` values are those of the first one with tokens."""
        filled = [store for store in stores if len(store)] or list(stores[:1])
        first, *others = filled
        if not others:
            return replace(first, _derived=first._derived.going_on())
        starts = accumulate((len(store.segments) for store in filled), initial=0)
        return LongTermMemory(
            tuple(segment for store in filled for segment in store.segments),
            StoredProvenance.joined([store.provenance for store in filled]),
            Places(
                Column.cat([store.places.segments.plus(start) for store, start in zip(filled, starts, strict=False)]),
                Column.cat([store.places.rows for store in filled]),
            ),
            first._derived.going_on(),
        )

    def renumbered(self, provenance: StoredProvenance, *, by: int) -> "LongTermMemory":
        """The same tokens with other provenance, in which chunk numbers are higher by so much."""
        if not by:
            return replace(self, provenance=provenance)
        return LongTermMemory(self.segments, provenance, self.places)  # what was computed names chunks by old numbers

    def aged(self, by: int) -> "LongTermMemory":
        """The store after ``by`` more memory tokens have been written."""
        return replace(self, provenance=self.provenance.aged(by)) if len(self) else self

    def take(self, index: Index) -> "LongTermMemory":
        """The tokens at ``index``; segments without any of them are dropped."""
        segment, row = self.located(index)
        used = segment.unique()
        renumber = torch.zeros(max(len(self.segments), 1), dtype=torch.int64)
        renumber[used] = torch.arange(len(used))
        return LongTermMemory.of(
            tuple(self.segments[i] for i in used.tolist()),
            self.provenance.take(index),
            renumber[segment],
            row,
            self._derived.going_on(losing=True),
        )

    def where(self, keep: Bool[Tensor, " T"]) -> "LongTermMemory":
        """The tokens for which ``keep`` holds."""
        return self if bool(keep.all()) else self.take(keep.nonzero().flatten())

    def content(self, index: Index, dtype: torch.dtype, devices: tuple[torch.device, ...]) -> Content:
        """Content of the tokens at ``index``, in that order, read from whatever tier it is on."""
        segment, row = self.located(index)
        parts: list[Content] = []
        places: list[Tensor] = []
        for number in segment.unique().tolist():
            place = (segment == number).nonzero().flatten()
            parts.append(self.segments[number].content(row[place], dtype, devices))
            places.append(place)
        gathered = Content.cat(parts)
        order = torch.cat(places).argsort()
        return gathered if bool((order[:-1] < order[1:]).all()) else gathered.take(order)

    # --- for recall -------------------------------------------------------------------------------

    def derived(self, name: Hashable, make: Callable[[], Made]) -> Made:
        """The value of this name for these tokens; ``make`` computes it on the first call."""
        known = self._derived
        if known.of is not self.provenance.chunk_column:
            known.of, known.exact = self.provenance.chunk_column, {}
        if name not in known.exact:
            known.exact[name] = make()
        return known.exact[name]

    @property
    def lasting(self) -> dict[Hashable, Any]:
        """Values that later versions of this store keep too, until something is forgotten."""
        return self._derived.lasting

    def key_bounds(self) -> tuple[int, ...]:
        """Places at which a new segment begins, and the end."""

        def bounds() -> tuple[int, ...]:
            living = torch.bincount(self.segment, minlength=len(self.segments))
            return (0, *living.cumsum(0).tolist())

        return self.derived("key bounds", bounds)

    def retrieval_keys(self, index: Index | slice, device: torch.device = HOST) -> Float[Tensor, "T R"]:
        """Retrieval keys of some tokens, in ascending order, as numbers on a device."""
        if isinstance(index, slice):
            places = self.derived(("rows", index.start, index.stop), lambda: self._rows(index))
        else:
            places = self._rows(index)
        parts = [self.segments[number].retrieval_keys.take(rows) for number, rows in places]
        return Plane.cat(parts, torch.float32, device)

    def _rows(self, index: Index | slice) -> list[tuple[int, Tensor | slice]]:
        """Segments of some tokens, in ascending order, and their rows in each; a slice if they are a run."""
        where = np.arange(len(self))[index] if isinstance(index, slice) else index.numpy()
        segment, row = self.places.segments.at(where), self.places.rows.at(where)
        bounds = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
        found: list[tuple[int, Tensor | slice]] = []
        for start, stop in pairwise(bounds):
            first, last = int(row[start]), int(row[stop - 1])
            is_run = last - first + 1 == stop - start
            rows = slice(first, last + 1) if is_run else torch.from_numpy(row[start:stop])
            found.append((int(segment[start]), rows))
        return found

    def input_ids(self, index: Index) -> Int32[Tensor, " T"]:
        """Token ids of the tokens at ``index``, in that order, of a memory that keeps them."""
        segment, row = self.located(index)
        found = torch.empty(len(index), dtype=torch.int32)
        for number in segment.unique().tolist():
            place = (segment == number).nonzero().flatten()
            plane = self.segments[number].input_ids
            assert plane is not None, "a segment with keys and values"
            found[place] = plane.take(row[place]).data
        return found

    def compacted(self, *, size: int, waste: float = 0.5) -> "LongTermMemory":
        """The store without rows of removed tokens in segments where they are more than the share ``waste``.

        Neighbouring small segments become one of up to ``size`` tokens, so that many small
        consolidations do not make recall slow.
        """
        living = torch.bincount(self.segment, minlength=len(self.segments)).tolist()
        groups: list[list[int]] = []
        was_whole = True
        for number, segment in enumerate(self.segments):
            whole = len(segment) >= size and living[number] >= (1 - waste) * len(segment)
            joinable = not whole and not was_whole and sum(living[i] for i in groups[-1]) + living[number] <= size
            groups[-1].append(number) if joinable else groups.append([number])
            was_whole = whole
        compact = self._regrouped(groups, waste=waste)
        return replace(compact, _derived=self._derived.going_on()) if compact is not self else self

    def purged(self) -> "LongTermMemory":
        """The store without any row of a removed token: no tensor holds forgotten content.

        Values in ``lasting`` are dropped too: an index was computed from the forgotten rows as well.
        """
        purged = self._regrouped([[number] for number in range(len(self.segments))], waste=0.0)
        return replace(purged, _derived=Derived()) if self._derived.has_lost else purged

    def _regrouped(self, groups: list[list[int]], *, waste: float) -> "LongTermMemory":
        """One segment for each group; a new one if it joins several, or if over ``waste`` of its rows were removed."""
        living = torch.bincount(self.segment, minlength=len(self.segments)).tolist()
        is_new = [len(g) > 1 or living[g[0]] < (1 - waste) * len(self.segments[g[0]]) for g in groups]
        if not any(is_new):
            return self
        segments: list[Segment] = []
        segment, row = self.segment, self.row
        numbers, before = segment.clone(), row.clone()
        for group, is_rewritten in zip(groups, is_new, strict=True):
            here = torch.isin(numbers, torch.tensor(group)).nonzero().flatten()
            if is_rewritten:
                rows = [before[numbers == number] for number in group]
                segments.append(joined([self.segments[number] for number in group], rows))
                row[here] = torch.arange(len(here))
            else:
                segments.append(self.segments[group[0]])
            segment[here] = len(segments) - 1
        return LongTermMemory.of(tuple(segments), self.provenance, segment, row)


def joined(segments: Sequence[Segment], rows: Sequence[Int[Tensor, " _"]]) -> Segment:
    """One segment made of the given rows of several segments, in their stored form without another conversion.

    It is on the device that all of them are on, else in host memory.
    """
    on_device = all(segment.tier == "device" for segment in segments)

    def planes(parts: Sequence[Sequence[Plane]]) -> tuple[Plane, ...]:
        result: list[Plane] = []
        for layer in zip(*parts, strict=True):
            taken = [plane.take(row) for plane, row in zip(layer, rows, strict=True)]
            if not on_device:
                taken = [plane.to(HOST) for plane in taken]
            scales = [plane.scale for plane in taken if plane.scale is not None]
            result.append(Plane(torch.cat([plane.data for plane in taken]), torch.cat(scales) if scales else None))
        return side_by_side(result, in_host_memory=not on_device)

    states = [s.states for s in segments if s.states is not None]
    made = planes([[plane for pair in zip(s.keys, s.values, strict=True) for plane in pair] for s in segments])
    ids = [(s.input_ids,) for s in segments if s.input_ids is not None]
    return Segment(
        made[::2],
        made[1::2],
        planes([(s.retrieval_keys,) for s in segments])[0],
        planes(states) if len(states) == len(segments) else None,
        "device" if on_device else "host",
        planes(ids)[0] if len(ids) == len(segments) else None,
    )


def survivors(
    provenance: Provenance, *, decay: float, capacity: int, required: int, pinned: Bool[Tensor, " T"]
) -> tuple[Provenance, Tensor]:
    """Which tokens stay at a consolidation, and their recall frequencies afterwards (spec section 5).

    Every frequency loses ``decay``. Tokens at zero are removed if more than ``required`` tokens remain; otherwise
    none is removed and none decays. Beyond ``capacity`` the lowest frequencies are removed first, the oldest first
    among equals. Pinned tokens do not decay and are never removed, even if they alone exceed the capacity.

    Returns:
        The provenance of all tokens with decayed frequencies, and the indices of those that stay.
    """
    everyone = torch.arange(len(provenance))
    before = provenance.recall_frequencies
    frequencies = (before - decay).where(~pinned, before)
    alive = ((frequencies > SURVIVAL_FREQUENCY) | pinned).nonzero().flatten()
    if len(alive) > required:
        provenance, staying = provenance.changed(recall_frequencies=frequencies), alive
    else:
        staying = everyone
    if len(staying) > capacity:
        # Stable sort over rows in order of arrival: among equals the oldest are last and are removed.
        newest_first = staying.flip(0)
        claims = provenance.recall_frequencies.masked_fill(pinned, float("inf"))[newest_first]
        order = claims.argsort(descending=True, stable=True)
        staying = newest_first[order[: max(capacity, int(pinned.sum()))]].sort().values
    return provenance, staying


def whole_chunks(chunks: Int[Tensor, " T"], staying: Int[Tensor, " S"]) -> Int[Tensor, " _"]:
    """Those of the tokens that stay whose whole chunk stays."""
    stays = torch.zeros(len(chunks), dtype=torch.bool).index_fill_(0, staying, True)
    _, run, sizes = chunks.unique_consecutive(return_inverse=True, return_counts=True)
    left = torch.zeros_like(sizes).index_add_(0, run, stays.long())
    return (stays & (left == sizes)[run]).nonzero().flatten()
