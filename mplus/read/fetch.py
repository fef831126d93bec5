"""Fetches recalled rows to the devices of the layers that read them, one layer ahead of the computation."""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.backbone.attention import KeysValues
from mplus.memory.long_term import LongTermMemory
from mplus.memory.precision import Plane
from mplus.memory.tiers import Segment
from mplus.memory.transfer import moved, side_stream
from mplus.shapes import Index


@dataclass(frozen=True)
class Rows:
    """Rows of one segment, and their places among all recalled rows."""

    segment: Segment
    rows: Index | slice
    places: Index | slice


def located(stores: Sequence[LongTermMemory], index: Index) -> list[Rows]:
    """Segments and rows of the tokens at ``index`` in the concatenation of some stores; chunks are runs of rows."""
    found: list[Rows] = []
    for store in stores:
        inside = ((index >= 0) & (index < len(store))).nonzero().flatten()
        segment, row = store.segment[index[inside]], store.row[index[inside]]
        for number in segment.unique().tolist():
            here = (segment == number).nonzero().flatten()
            found += _runs(store.segments[number], row[here], inside[here])
        index = index - len(store)
    return found


def _runs(segment: Segment, rows: Index, places: Index) -> list[Rows]:
    """Slices if most rows are in runs, since copying a run costs far less; else one list of rows."""
    ends = ((rows.diff() != 1) | (places.diff() != 1)).nonzero().flatten() + 1
    if len(ends) >= len(rows) // 8:
        return [Rows(segment, rows, places)]
    return [
        Rows(segment, slice(int(r[0]), int(r[-1]) + 1), slice(int(p[0]), int(p[-1]) + 1))
        for r, p in zip(rows.tensor_split(ends), places.tensor_split(ends), strict=True)
    ]


@dataclass(frozen=True)
class Group:
    """Rows stored on one device in one dtype; they are copied together, once for each layer and kind of tensor."""

    parts: list[Rows]
    """Rows with their places among the rows of the group."""
    places: Index | None
    """Places of the group's rows among all recalled rows; None if the group has all of them."""


def grouped(parts: Sequence[Rows]) -> list[Group]:
    """Group rows by device and dtype, keeping their order."""
    alike: dict[Hashable, list[Rows]] = {}
    for part in parts:
        alike.setdefault((part.segment.tier == "device", part.segment.keys[0].dtype), []).append(part)
    if len(alike) == 1:
        return [Group(list(parts), None)]
    groups: list[Group] = []
    for some in alike.values():
        numbers = [_numbers(part.places) for part in some]
        places = torch.cat(numbers).sort().values
        own = [torch.searchsorted(places, one) for one in numbers]
        # Rows that are consecutive among all rows are consecutive within the group too.
        inside = [
            slice(int(at[0]), int(at[-1]) + 1) if isinstance(part.places, slice) else at
            for part, at in zip(some, own, strict=True)
        ]
        groups.append(Group([replace(p, places=at) for p, at in zip(some, inside, strict=True)], places))
    return groups


def _numbers(places: Index | slice) -> Index:
    return torch.arange(places.start, places.stop) if isinstance(places, slice) else places


class Arrival(NamedTuple):
    """Rows that are on a device once its copies up to ``event`` are done."""

    rows: KeysValues
    event: Any


class RecalledRows:
    """Keys and values of the rows that one track recalled, layer by layer.

    ``start`` begins to fetch a layer's rows and ``take`` waits for them, so that disk and bus work while the
    layer before computes. Only the recalled rows are read and moved, in their stored form, and are converted on
    the device that uses them.
    """

    def __init__(
        self,
        stores: Sequence[LongTermMemory],
        index: Int[Tensor, " T"],
        dtype: torch.dtype,
        devices: Sequence[torch.device],
    ) -> None:
        self.count, self.dtype, self.devices = len(index), dtype, devices
        self._parts = located(stores, index)
        self._streams = {d: side_stream(d) for d in set(devices) if d.type == "cuda"}
        for device, stream in self._streams.items():
            stream.wait_stream(torch.cuda.current_stream(device))  # its rows may still be being computed
        waits = bool(self._streams) or any(part.segment.tier == "disk" for part in self._parts)
        # Rows in host memory need no waiting, and a second thread would only occupy a core.
        self._worker = ThreadPoolExecutor(1, "mplus-rows") if waits and len(devices) > 1 else None
        self._coming: dict[int, Future[Arrival]] = {}
        self._groups = grouped(self._parts)
        for part in self._parts if waits else ():
            for plane in (*part.segment.keys, *part.segment.values):
                plane.prefetch(part.rows)

    def start(self, at: int) -> None:
        """Begin to fetch the rows of a layer; does nothing for rows in host memory that stay there."""
        if self._worker is not None and at < len(self.devices) and at not in self._coming:
            self._coming[at] = self._worker.submit(self._fetch, at)

    def take(self, at: int) -> KeysValues:
        """The rows of a layer, ready on its device; begins to fetch the rows of the next layer."""
        coming = self._coming.pop(at, None)
        arrival = self._fetch(at) if coming is None else coming.result()
        if self._worker is not None and at + 1 == len(self.devices):
            self._worker.shutdown(wait=False)
        else:
            self.start(at + 1)
        if arrival.event is not None:
            here = torch.cuda.current_stream(self.devices[at])
            here.wait_event(arrival.event)
            for tensor in arrival.rows:
                tensor.record_stream(here)
        return arrival.rows

    @torch.no_grad()
    def _fetch(self, at: int) -> Arrival:
        device = self.devices[at]
        if device.type != "cuda":
            return Arrival(self._gather(at, device), None)
        stream = self._streams[device]
        with torch.cuda.stream(stream):
            rows = self._gather(at, device)
            return Arrival(rows, stream.record_event())

    def _gather(self, at: int, device: torch.device) -> KeysValues:
        return KeysValues(
            self._kind(lambda segment: segment.keys[at], device), self._kind(lambda segment: segment.values[at], device)
        )

    def _kind(self, plane: Callable[[Segment], Plane], device: torch.device) -> Float[Tensor, "T H E"]:
        gathered: Tensor | None = None
        for group in self._groups:
            taken = [plane(part.segment).take(part.rows) for part in group.parts]
            scales = [found.scale for found in taken if found.scale is not None]
            scale = _laid_together(scales, group.parts, device) if scales else None
            data = _laid_together([found.data for found in taken], group.parts, device)
            rows = Plane(data, scale).rows(slice(None), self.dtype, device)
            if group.places is None:
                return rows
            gathered = rows.new_empty(self.count, *rows.shape[1:]) if gathered is None else gathered
            gathered[moved(group.places, device)] = rows
        assert gathered is not None, "something was recalled"
        return gathered


def _laid_together(found: Sequence[Tensor], parts: Sequence[Rows], device: torch.device) -> Tensor:
    """Rows of a group in one tensor, in pinned memory if they are copied to a GPU."""
    if len(found) == 1:
        return found[0]
    first, count = found[0], sum(map(len, found))
    pin = device.type == "cuda" and first.device.type == "cpu"
    together = torch.empty(count, *first.shape[1:], dtype=first.dtype, device=first.device, pin_memory=pin)
    for part, rows in zip(parts, found, strict=True):
        together[part.places] = rows
    return together
