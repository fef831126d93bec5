"""Fetches recalled rows to the devices of the layers that read them, some layers ahead of the computation."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mplus.backbone.attention import KeysValues
from mplus.memory.long_term import LongTermMemory
from mplus.memory.precision import Plane
from mplus.memory.stacks import stacked
from mplus.memory.tiers import Segment
from mplus.memory.transfer import moved, side_stream
from mplus.shapes import Index


@dataclass(frozen=True)
class Rows:
    """Rows of one segment, in ascending order, and their places among all recalled rows."""

    segment: Segment
    rows: Index | slice
    """A run of rows is a slice, since copying a run costs far less."""
    places: Index

    @property
    def kind(self) -> tuple[bool, torch.dtype]:
        """What must be alike in rows that are copied together: whether they are on the device, and their dtype."""
        return self.segment.tier == "device", self.segment.keys[0].dtype


def located(stores: Sequence[LongTermMemory], index: Index) -> list[Rows]:
    """Segments and rows of the tokens at ``index`` in the concatenation of some stores; rows of one kind together."""
    segments: list[Segment] = []
    asked = index.numpy()
    numbers, rows = np.empty_like(asked), np.empty_like(asked)
    low = 0
    for store in stores:
        inside = (asked >= low) & (asked < low + len(store))
        at = asked[inside] - low
        numbers[inside], rows[inside] = store.places.segments.at(at) + len(segments), store.places.rows.at(at)
        segments += store.segments
        low += len(store)
    # In the order in which they are stored: by segment, then by row.
    order = np.lexsort((rows, numbers))
    numbers, rows = numbers[order], rows[order]
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
    found: list[Rows] = []
    for start, stop in pairwise(cuts):
        mine, first, last = rows[start:stop], int(rows[start]), int(rows[stop - 1])
        is_run = last - first == len(mine) - 1 and bool((np.diff(mine) == 1).all())
        here = slice(first, last + 1) if is_run else torch.from_numpy(mine)
        found.append(Rows(segments[numbers[start]], here, torch.from_numpy(order[start:stop])))
    kinds = list(dict.fromkeys(part.kind for part in found))
    return sorted(found, key=lambda part: kinds.index(part.kind))


class Arrival(NamedTuple):
    """Rows that are on a device once its copies up to ``event`` are done."""

    rows: KeysValues
    event: Any


class RecalledRows:
    """Keys and values of the rows that one track recalled, some layers at a time.

    ``start`` begins to fetch the rows of some layers and ``take`` waits for them, so that disk and bus work while the
    layers before compute. Only the recalled rows are read and moved, in their stored form, and are converted on
    the device that uses them: one copy for each segment, whatever the number of layers, and one conversion.
    """

    def __init__(
        self,
        stores: Sequence[LongTermMemory],
        index: Int[Tensor, " T"],
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        stretches: Sequence[range],
        *,
        is_paired: bool = True,
    ) -> None:
        """Prepare to fetch.

        Args:
            stores: Where the rows are.
            index: Rows of the concatenation of the stores.
            dtype: Dtype in which they are read.
            devices: The device of each layer.
            stretches: Layers whose rows are fetched together, in order; those of one stretch are on one device.
            is_paired: Whether keys and values have the same shape.
        """
        self.dtype, self.devices, self.stretches, self._is_paired = dtype, devices, stretches, is_paired
        parts = located(stores, index)
        self._kinds = [list(run) for _, run in groupby(parts, lambda part: part.kind)]
        self.order: Index = torch.cat([part.places for kind in self._kinds for part in kind])
        """For each fetched row, its place in ``index``: rows come in the order in which they are stored."""
        self._streams = {d: side_stream(d) for d in set(devices) if d.type == "cuda"}
        for device, stream in self._streams.items():
            stream.wait_stream(torch.cuda.current_stream(device))  # its rows may still be being computed
        waits = bool(self._streams) or any(part.segment.tier == "disk" for part in parts)
        # Rows in host memory need no waiting, and a second thread would only occupy a core.
        self._worker = ThreadPoolExecutor(1, "mplus-rows") if waits and len(stretches) > 1 else None
        self._coming: dict[int, Future[Arrival]] = {}
        for part in parts if waits else ():
            for plane in (*part.segment.keys, *part.segment.values):
                plane.prefetch(part.rows)

    def start(self, number: int) -> None:
        """Begin to fetch the rows of a stretch; does nothing for rows in host memory that stay there."""
        if self._worker is not None and number < len(self.stretches) and number not in self._coming:
            self._coming[number] = self._worker.submit(self._fetch, number)

    def take(self, number: int) -> KeysValues:
        """The rows of a stretch, [layers, rows, heads, size], on its device; begins to fetch those of the next."""
        coming = self._coming.pop(number, None)
        arrival = self._fetch(number) if coming is None else coming.result()
        if self._worker is not None and number + 1 == len(self.stretches):
            self._worker.shutdown(wait=False)
        else:
            self.start(number + 1)
        if arrival.event is not None:
            here = torch.cuda.current_stream(self.devices[self.stretches[number][0]])
            here.wait_event(arrival.event)
            for tensor in arrival.rows:
                tensor.record_stream(here)
        return arrival.rows

    @torch.no_grad()
    def _fetch(self, number: int) -> Arrival:
        layers = self.stretches[number]
        device = self.devices[layers[0]]
        if device.type != "cuda":
            return Arrival(self._gather(layers, device), None)
        stream = self._streams[device]
        with torch.cuda.stream(stream):
            rows = self._gather(layers, device)
            return Arrival(rows, stream.record_event())

    def _gather(self, layers: range, device: torch.device) -> KeysValues:
        if not self._is_paired:
            return KeysValues(*(self._rows(layers, device, kinds) for kinds in (("keys",), ("values",))))
        both = self._rows(layers, device, ("keys", "values")).unflatten(0, (len(layers), 2))
        return KeysValues(both[:, 0], both[:, 1])

    def _rows(self, layers: range, device: torch.device, kinds: tuple[str, ...]) -> Tensor:
        found: list[Tensor] = []
        for parts in self._kinds:
            taken: list[Plane] = []
            for part in parts:
                planes = [getattr(part.segment, kind)[layer] for layer in layers for kind in kinds]
                taken.append(_taken(planes, part.rows))
            scales = [plane.scale for plane in taken if plane.scale is not None]
            scale = _together(scales, device) if scales else None
            data = _together([plane.data for plane in taken], device)
            found.append(Plane(data, scale).rows(slice(None), self.dtype, device))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _taken(planes: Sequence[Plane], rows: Index | slice) -> Plane:
    """Rows of several planes of one segment as one, [planes, rows, …]; planes in a file are read one by one."""
    if all(type(plane) is Plane for plane in planes):
        data, given = stacked([plane.data for plane in planes]), [p.scale for p in planes if p.scale is not None]
        scale = stacked(given) if given else None
        if data is not None and (scale is not None or not given):
            return Plane(_at(data, rows), None if scale is None else _at(scale, rows))
    taken = [plane.take(rows) for plane in planes]
    scales = [plane.scale for plane in taken if plane.scale is not None]
    return Plane(torch.stack([plane.data for plane in taken]), torch.stack(scales) if scales else None)


def _at(stack: Tensor, rows: Index | slice) -> Tensor:
    return stack[:, rows] if isinstance(rows, slice) else stack.index_select(1, moved(rows, stack.device))


def _together(found: Sequence[Tensor], device: torch.device) -> Tensor:
    """Rows of several segments as one, in pinned memory if they are copied to a GPU."""
    if len(found) == 1:
        return found[0]
    first = found[0]
    if device.type != "cuda" or first.device.type != "cpu":
        return torch.cat(list(found), dim=1)
    shape = (first.shape[0], sum(rows.shape[1] for rows in found), *first.shape[2:])
    return torch.cat(list(found), dim=1, out=torch.empty(shape, dtype=first.dtype, pin_memory=True))
