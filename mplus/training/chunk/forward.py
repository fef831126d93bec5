"""The forward pass that trains a read adapter: prompts behind the states of what they read, with gradients.

It computes what a read computes: keys and values of memory by the adapted layers from states, then the prompt through
the adapted layers over them.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mplus.backbone.attention import Rotation, rotate
from mplus.backbone.backbone import Backbone
from mplus.backbone.llama_layers import LlamaLayers
from mplus.backbone.own_layers import OwnLayers
from mplus.backbone.passes import Behind

PADDED_TO = 128
"""Rows of branches are padded to a multiple of it: a CPU kernel is built per shape."""


class Branches(NamedTuple):
    """Prompts that begin alike. What they share goes through the layers once.

    Attributes:
        shared: Token ids that each of them begins with.
        rest: What follows in each.
    """

    shared: Sequence[int]
    rest: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.shared) + sum(map(len, self.rest))

    def starts(self) -> list[int]:
        """Column at which what follows begins, for each of them."""
        return list(accumulate(map(len, self.rest[:-1]), initial=len(self.shared)))


class ReadStates(NamedTuple):
    """Normed states of what each row of a batch reads, bos first.

    Attributes:
        states: For each layer [row, position, size], padded on the side of ``pads_left``.
        lengths: How many of each row are no padding.
    """

    states: Sequence[Tensor]
    lengths: Sequence[int]


def pads_left(backbone: Backbone) -> bool:
    """Whether prompts and what they read are padded on the left: recurrent layers must not see padding first."""
    return isinstance(backbone, LlamaLayers)


def last_states(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    longest: int,
    read: ReadStates | None,
    precision: torch.dtype,
    *,
    plain: bool,
) -> Tensor:
    """States from which logits are computed, [row, column, size].

    Args:
        backbone: With the adapter for reading.
        prompts: Token ids of each row.
        longest: Columns to which prompts are padded.
        read: What stands before them; None: nothing.
        precision: Of the products that attention is made of, where its formula is ours.
        plain: Without the adapter.
    """
    padded = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, ids in enumerate(prompts):
        start = longest - len(ids) if pads_left(backbone) else 0
        padded[row, start : start + len(ids)] = torch.tensor(ids)
    if isinstance(backbone, OwnLayers):
        return _own(backbone, padded, read, plain=plain)
    assert isinstance(backbone, LlamaLayers)
    return _like_llama(backbone, padded, [len(ids) for ids in prompts], read, precision, plain=plain)


def branched_states(backbone: LlamaLayers, rows: Sequence[Branches], precision: torch.dtype, *, plain: bool) -> Tensor:
    """States from which logits are computed, [row, column, size]; rows are padded on the right.

    Args:
        backbone: With the adapter for reading.
        rows: Each of prompts that begin alike. What follows in one does not see what follows in another.
        precision: Of the products that attention is made of.
        plain: Without the adapter.
    """
    longest = -(-max(map(len, rows)) // PADDED_TO) * PADDED_TO
    ids, position = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    branch = torch.full((len(rows), longest), -1)
    for row, (shared, rest) in enumerate(rows):
        parts = [shared, *rest]
        size = sum(map(len, parts))
        ids[row, :size] = torch.tensor([token for part in parts for token in part])
        counted = [torch.arange(len(shared)), *(torch.arange(len(part)) + len(shared) for part in rest)]
        position[row, :size] = torch.cat(counted)
        branch[row, :size] = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    seen = branch[:, None, :]
    mask = (seen == 0) | (seen == branch[:, :, None])
    mask = mask.tril() | torch.eye(longest, dtype=torch.bool)
    return _through_layers(backbone, ids, None, _Placed(position, mask[:, None], None), precision, plain=plain)


def _own(backbone: OwnLayers, padded: Tensor, read: ReadStates | None, *, plain: bool) -> Tensor:
    """Through a model's own layers."""
    rows, size = padded.shape
    states, lengths = (None, [0] * rows) if read is None else read
    behind = Behind(backbone, states, lengths, size)
    hidden = backbone.forward(behind, padded, behind.positions, backbone.new_cache(), reading=not plain)
    assert hidden is not None, "a read goes to the end"
    return hidden


def _like_llama(
    backbone: LlamaLayers,
    padded: Tensor,
    sizes: Sequence[int],
    read: ReadStates | None,
    precision: torch.dtype,
    *,
    plain: bool,
) -> Tensor:
    """Through layers like Llama's, one by one."""
    rows, longest = padded.shape
    columns = torch.arange(longest) - (longest - torch.tensor(sizes))[:, None]
    lengths = torch.tensor([0] * rows if read is None else list(read.lengths))
    widest = 0 if read is None else read.states[0].shape[1]
    position, mask = _left_padded(lengths, columns, widest)
    before = (torch.arange(widest) - (widest - lengths)[:, None]).clamp(min=0)
    return _through_layers(backbone, padded, read, _Placed(position, mask, before), precision, plain=plain)


class _Placed(NamedTuple):
    """Where prompts and what they read stand, and what each token sees.

    Attributes:
        position: Of each token of the prompts, [row, column].
        mask: What each of them sees of what is read and of its prompt, [row, 1, column, seen].
        before: Position of what is read, [row, position]; None: nothing is.
    """

    position: Tensor
    mask: Tensor
    before: Tensor | None


def _through_layers(
    backbone: LlamaLayers,
    padded: Tensor,
    read: ReadStates | None,
    placed: _Placed,
    precision: torch.dtype,
    *,
    plain: bool,
) -> Tensor:
    """Prompts [row, column] through every layer, behind the normed states of what they read."""
    device = backbone.device
    rotation = backbone.rotation(placed.position.to(device))
    mask = torch.zeros(placed.mask.shape, dtype=precision).masked_fill_(~placed.mask, float("-inf")).to(device)
    before = None if placed.before is None else Rotation(*backbone.rotation(placed.before.to(device)))
    hidden = backbone.embed(padded)
    for index, layer in enumerate(backbone.write_layers if plain else backbone.read_layers):
        states = None if read is None else read.states[index]
        hidden = _through(backbone, layer, hidden, states, rotation, before, mask)
    return hidden


def _through(
    backbone: LlamaLayers,
    layer: Any,
    hidden: Tensor,
    read: Tensor | None,
    rotation: Rotation,
    before: Rotation | None,
    mask: Tensor,
) -> Tensor:
    """Prompts [row, column, size] through a layer, behind the normed states of what they read."""
    normed = layer.input_layernorm(hidden)
    keys, values = backbone.keys_values(layer, normed)
    keys = rotate(keys, rotation)
    if read is not None and before is not None:
        old_keys, old_values = backbone.keys_values(layer, read)
        keys = torch.cat([rotate(old_keys, before), keys], dim=1)
        values = torch.cat([old_values, values], dim=1)
    queries = rotate(backbone.queries(layer, normed), rotation)
    return backbone.finish(layer, hidden, _attend(queries, keys, values, mask, layer.self_attn.scaling))


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention by plain products: for few queries over a long prefix, backward is far quicker than fused.

    Queries [batch, query, head, size], keys and values [batch, row, key head, size], mask [batch, 1, query, row], 0 or
    minus infinity in their precision → [batch, query, width]. A kernel takes softmax in float32 whatever it is given.
    """
    batch, asked, heads, size = queries.shape
    shared = keys.shape[2]
    grouped = queries.view(batch, asked, shared, heads // shared, size).permute(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, shared, -1, size) * scaling
    scores = (grouped @ keys.permute(0, 2, 3, 1)).view(batch, shared, heads // shared, asked, -1)
    weights = scores.add_(mask[:, None]).view(batch, shared, heads // shared * asked, -1).softmax(dim=-1)
    mixed = weights.to(values.dtype) @ values.transpose(1, 2)
    mixed = mixed.view(batch, shared, heads // shared, asked, size).permute(0, 3, 1, 2, 4)
    return mixed.reshape(batch, asked, heads * size)


def _left_padded(lengths: Tensor, columns: Tensor, widest: int) -> tuple[Tensor, Tensor]:
    """Positions and mask of prompts behind prefixes of these lengths, both padded on the left.

    ``columns`` counts prompt tokens; padding is negative.
    """
    before = torch.arange(widest) >= (widest - lengths)[:, None]
    own = columns >= 0
    causal = columns[:, :, None] >= columns[:, None, :]
    mask = torch.cat([before[:, None].expand(-1, columns.shape[1], -1), causal & own[:, None]], dim=2)
    # A padding row sees itself, so that its softmax is not empty.
    mask[:, :, widest:] |= torch.eye(columns.shape[1], dtype=torch.bool)
    return (lengths[:, None] + columns).clamp(min=0), mask[:, None]
