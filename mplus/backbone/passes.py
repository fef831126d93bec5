"""Passes through a model's own layers: a text read alone, chunks that are written, and tokens behind a prefix."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mplus.backbone.attention import KeysValues
from mplus.backbone.own_pass import Enough, Pass, Window


class ReadAlone(Pass):
    """Keeps what attention is given, up to a layer."""

    def __init__(self, backbone: Any, length: int, last: int) -> None:
        self.windows, self._backbone, self._last = backbone.windows, backbone, last
        self.positions = torch.arange(length, device=backbone.device)
        self.states: list[Tensor] = []

    def enters(self, layer: int, rows: Tensor, given: Mapping[str, Any]) -> None:
        """Attention of a layer is given rows."""
        index = self._backbone.memory_layer(layer)
        if index == len(self.states):
            self.states.append(rows)
            if index == self._last:
                raise Enough

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of a layer has made keys and values."""
        return keys, values

    def mask(self, layer: int, rows: int, columns: int) -> Tensor:
        """Which columns each row sees."""
        return self.windows.get(layer, Window()).sees(self.positions[None], self.positions[None])


class Writing(Pass):
    """Keeps the states, keys and values of chunks, and shows each the chunk that it continues."""

    def __init__(
        self,
        backbone: Any,
        chunks: Sequence[Sequence[int]],
        continues: Sequence[bool],
        earlier: Sequence[Sequence[Tensor] | None],
        num_layers: int,
    ) -> None:
        self.windows, self._backbone, self._last = backbone.windows, backbone, num_layers - 1
        self._earlier, self._continues = earlier, continues
        sizes = torch.tensor([len(chunk) for chunk in chunks])
        previous = torch.cat([sizes.new_zeros(1), sizes[:-1]]) * torch.tensor(list(continues))
        known = [None if states is None else len(states[0]) for states in earlier]
        seen = torch.tensor([int(previous[n]) if count is None else count for n, count in enumerate(known)])
        columns, past = torch.arange(int(sizes.max())), torch.arange(int(seen.max()))
        own = 1 + seen[:, None] + columns
        bos = sizes.new_zeros(len(chunks), 1)
        none = bos - 1
        self.is_row = columns < sizes[:, None]
        self.sizes, self.seen = sizes.tolist(), seen.tolist()
        self.past_positions = 1 + past
        self.positions = torch.cat([bos, own], dim=1)
        self.key_positions = torch.cat(
            [bos, torch.where(past < seen[:, None], 1 + past, none), torch.where(self.is_row, own, none)], dim=1
        )
        self.states: list[Tensor] = []
        self.made: list[KeysValues] = []
        self._masks: dict[Any, Tensor] = {}

    def enters(self, layer: int, rows: Tensor, given: Mapping[str, Any]) -> None:
        """Attention of a layer is given rows."""
        if self._backbone.memory_layer(layer) == len(self.states):
            self.states.append(rows[:, 1:][self.is_row.to(rows.device)])

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of a layer has made keys and values."""
        index = self._backbone.memory_layer(layer)
        assert index is not None, "a layer that was not surveyed"
        assert index == len(self.made), "memory layers run in order"
        one, where = self._backbone.memory_layers[index], keys.device
        rows = KeysValues(keys.transpose(1, 2), values.transpose(1, 2))
        raw = one.rotations(self.positions.to(where)).turned_back(rows)
        own = KeysValues(*(part[:, 1:][self.is_row.to(where)] for part in raw))
        self.made.append(own)
        if index == self._last:
            raise Enough
        past = self._past(index, own)
        turned = one.rotations(self.past_positions.to(where).expand(len(self.sizes), -1)).turned(past)
        both = [
            torch.cat([mine[:, :1], old.to(mine.dtype), mine[:, 1:]], dim=1).transpose(1, 2)
            for mine, old in zip(rows, turned, strict=True)
        ]
        return both[0], both[1]

    def _past(self, index: int, own: KeysValues) -> KeysValues:
        """Keys and values of what each chunk continues, [chunks, past, heads, size], before they turn."""
        backbone, keys, values = self._backbone, own.keys.split(self.sizes), own.values.split(self.sizes)
        attention = backbone.encoding_layers[index]
        found: list[KeysValues] = []
        for number, states in enumerate(self._earlier):
            if states is not None:
                found.append(backbone.keys_values(attention, states[index].to(own.keys.device)))
            elif self._continues[number] and number:
                found.append(KeysValues(keys[number - 1], values[number - 1]))
            else:
                found.append(KeysValues(own.keys[:0], own.values[:0]))
        longest = len(self.past_positions)
        padded = [
            torch.stack([nn.functional.pad(rows, (0, 0, 0, 0, 0, longest - len(rows))) for rows in each])
            for each in zip(*found, strict=True)
        ]
        return KeysValues(*padded)

    def mask(self, layer: int, rows: int, columns: int) -> Tensor:
        """Which columns each row sees."""
        window = self.windows.get(layer, Window())
        if window not in self._masks:
            self._masks[window] = window.sees(self.positions, self.key_positions).to(self._backbone.device)
        return self._masks[window]


class Reads(Pass):
    """New tokens over the cache layers of a read."""

    def __init__(
        self,
        backbone: Any,
        layers: list[Any],
        make: Callable[[int, Tensor], list[Any]] | None,
        rows: int,
        size: int,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.windows, self._backbone, self._layers, self._make = backbone.windows, backbone, layers, make
        self._watch = watch
        if make is not None and not layers:
            layers += make(0, torch.empty(rows, 0, 0, device=backbone.layer_device(0)))
        self._lengths = list(layers[0].lengths)
        starts = torch.tensor(self._lengths, device=backbone.device)
        self.positions = starts[:, None] + torch.arange(size, device=backbone.device)
        self._masks: dict[Any, Tensor] = {}

    def enters(self, layer: int, rows: Tensor, given: Mapping[str, Any]) -> None:
        """Attention of a layer is given rows."""
        index = self._backbone.memory_layer(layer)
        if index == len(self._layers) and self._make is not None:
            self._layers += self._make(index, rows)
        if self._watch is not None and index is not None:
            self._watch(index, rows)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of a layer has made keys and values."""
        index = self._backbone.memory_layer(layer)
        assert index is not None, "a layer that was not surveyed"
        return self._layers[index].update(keys, values)

    def mask(self, layer: int, rows: int, columns: int) -> Tensor | None:
        """Which columns each row sees; None: all."""
        window = self.windows.get(layer, Window())
        if rows == 1 and window.size is None and len(set(self._lengths)) == 1:
            return None
        if (window, columns) not in self._masks:
            keys = torch.arange(columns, device=self._backbone.device)[None]
            self._masks[window, columns] = window.sees(self.positions, keys)
        return self._masks[window, columns]

    def length(self) -> int:
        """Columns before the new tokens."""
        return max(self._lengths)


class Behind(Pass):
    """Prompts behind the states of memory, with gradients: what ``Reads`` reads from a cache, computed anew.

    Prompts and what they read are padded on the right, where nothing before sees them.
    """

    def __init__(self, backbone: Any, states: Sequence[Tensor] | None, lengths: Sequence[int], size: int) -> None:
        """Prepare a pass.

        Args:
            backbone: An ``OwnLayers``, read through its read adapter.
            states: States of the prefixes, for each memory layer [row, position, size]; None: there are none.
            lengths: Of each row's prefix.
            size: Of the longest prompt.
        """
        self.windows, self._backbone, self._states = backbone.windows, backbone, states
        device = backbone.device
        starts = torch.tensor(list(lengths), device=device)[:, None]
        self.places = torch.arange(0 if states is None else states[0].shape[1], device=device)
        self.positions = starts + torch.arange(size, device=device)
        self._key_positions = torch.cat([torch.where(self.places < starts, self.places, -1), self.positions], dim=1)
        self._read: dict[int, KeysValues] = {}
        self._masks: dict[Any, Tensor] = {}

    def enters(self, layer: int, rows: Tensor, given: Mapping[str, Any]) -> None:
        """Attention of a layer is given rows."""
        index = self._backbone.memory_layer(layer)
        if index is not None and self._states is not None:
            made = self._backbone.keys_values(self._backbone.read_layers[index], self._states[index])
            places = self.places.expand(made.keys.shape[:2])
            self._read[layer] = self._backbone.memory_layers[index].rotations(places).turned(made)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of a layer has made keys and values."""
        read = self._read.pop(layer, None)
        if read is None:
            return keys, values
        old_keys, old_values = (part.transpose(1, 2) for part in read)
        return torch.cat([old_keys.to(keys.dtype), keys], 2), torch.cat([old_values.to(values.dtype), values], 2)

    def mask(self, layer: int, rows: int, columns: int) -> Tensor:
        """Which columns each row sees."""
        window = self.windows.get(layer, Window())
        if window not in self._masks:
            self._masks[window] = window.sees(self.positions, self._key_positions)
        return self._masks[window]

    def length(self) -> int:
        """Columns before the prompts."""
        return len(self.places)
