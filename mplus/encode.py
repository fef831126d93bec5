"""Encode: turns text into states at the input of every layer.

Two encodings. ``states``: every text token's own state at the input of each layer is kept, so all chunks
of a text go through a layer together, each attending to itself and to the chunk before it. ``adapter``:
a write adapter compresses a chunk into K tokens (spec section 3), one chunk after the other.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.backbone.attention import KeysValues, Packing
from mplus.backbone.llama_layers import LlamaLayers
from mplus.backbone.own_layers import OwnLayers
from mplus.config import MemoryConfig
from mplus.memory.state import Context
from mplus.weights import Weights


class Chunk(NamedTuple):
    """Text that is written in one pass."""

    input_ids: list[int]
    sources: list[int]
    """Row of the memory's table of sources, per text token."""
    continues: bool
    """Whether it continues the chunk before it, and attends to it."""
    since: float = 0.0
    """Unix time at which its first text was given."""
    vector: Float[Tensor, " E"] | None = None
    """Its vector by the user's embedder, if one scores chunks."""
    latest: float | None = None
    """Unix time at which its last text was said; None: ``since``."""


class Encoded(NamedTuple):
    """New memory tokens of some chunks, by layer, and the states that the next chunk attends to."""

    states: tuple[Float[Tensor, "T D"], ...]
    base: tuple[KeysValues, ...] | None
    """Keys and values of the write layers, if they were computed."""
    hidden: Float[Tensor, "S D"] | None = None
    """Output of the last layer, if it was computed."""


def encode_states(
    weights: Weights, chunks: Sequence[Chunk], contexts: Sequence[Context | None], *, num_layers: int | None = None
) -> Encoded:
    """States of every text token at the input of every layer.

    Each chunk attends to the bos state, the chunk that it continues, and its own past. Positions count from the bos
    state, as in any write.

    Args:
        weights: The model.
        chunks: Chunks of one or several texts.
        contexts: For each chunk, the context that it continues if that was written earlier; None if it continues the
            chunk before it in ``chunks``, or nothing.
        num_layers: Encode only the first layers; None: all.
    """
    backbone = weights.backbone
    num_layers = num_layers or backbone.num_layers
    if isinstance(backbone, OwnLayers):
        known = [None if context is None else context.states for context in contexts]
        joined = [chunk.continues and context is None for chunk, context in zip(chunks, contexts, strict=True)]
        kept, made = backbone.encode([chunk.input_ids for chunk in chunks], joined, known, num_layers)
        return Encoded(tuple(kept), tuple(made))
    assert isinstance(backbone, LlamaLayers)
    packing = _packed(backbone, chunks, contexts)
    hidden = backbone.embed(torch.tensor([i for chunk in chunks for i in chunk.input_ids]))
    states: list[Tensor] = []
    base: list[KeysValues] = []
    layers = backbone.encoding_layers
    for index in range(num_layers):
        where = backbone.layer_device(index)
        hidden, packing = hidden.to(where), packing.to(where)
        states.append(hidden)
        earlier = [context.states[index].to(where) for context in contexts if context is not None]
        rows = torch.cat([backbone.bos_states[index : index + 1].to(where), *earlier, hidden])
        given = backbone.layer_input(layers[index], rows)
        base.append(KeysValues(given.keys[packing.first :], given.values[packing.first :]))
        if index + 1 < num_layers:  # the output of the last layer is not used
            hidden = backbone.layer_output(layers[index], given, packing)
    return Encoded(tuple(states), tuple(base))


def encode_apart(weights: Weights, input_ids: Sequence[int], *, num_layers: int | None = None) -> Encoded:
    """One chunk in a pass of its own, without the chunk before it: the same bits whenever and beside whatever it is.

    Args:
        weights: The model.
        input_ids: Token ids of the chunk.
        num_layers: Encode only the first layers; None: all.
    """
    return encode_states(weights, [Chunk(list(input_ids), [], False)], [None], num_layers=num_layers)


def latents_apart(
    weights: Weights, layers: tuple[int, ...], input_ids: Sequence[int]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Keys and values for reading of one chunk, by layer, as ``encode_apart`` makes them."""
    encoded = encode_apart(weights, input_ids)
    rows = weights.latents(layers, encoded.states, encoded.base)
    return tuple(one.keys for one in rows), tuple(one.values for one in rows)


def _packed(backbone: LlamaLayers, chunks: Sequence[Chunk], contexts: Sequence[Context | None]) -> Packing:
    """The attention pattern of rows of [bos ; contexts written earlier ; chunks], laid out as [chunk, row]."""
    sizes = torch.tensor([len(chunk.input_ids) for chunk in chunks])
    is_earlier = torch.tensor([context is not None for context in contexts])
    earlier = torch.tensor([0 if context is None else len(context.sources) for context in contexts])
    first = 1 + int(earlier.sum())
    starts = first + sizes.cumsum(0) - sizes
    # How many rows each chunk sees of the chunk that it continues, and where they begin.
    previous = torch.cat([sizes.new_zeros(1), sizes[:-1]]) * torch.tensor([chunk.continues for chunk in chunks])
    seen = torch.where(is_earlier, earlier, previous)
    seen_starts = torch.where(is_earlier, 1 + earlier.cumsum(0) - earlier, starts - seen)

    columns, past = torch.arange(int(sizes.max())), torch.arange(int(seen.max()))
    is_row, is_past = columns < sizes[:, None], past < seen[:, None]
    own = torch.where(is_row, starts[:, None] + columns, first)
    bos = sizes.new_zeros(len(chunks), 1)
    keys = torch.cat([bos, torch.where(is_past, seen_starts[:, None] + past, 1), own], dim=1)
    positions = 1 + seen[:, None] + columns
    key_positions = torch.cat([bos, (1 + past).expand(len(chunks), -1), positions], dim=1)
    causal = is_row[:, None] & (columns <= columns[:, None])
    visible = torch.cat([torch.ones_like(bos, dtype=torch.bool), is_past], dim=1)
    mask = torch.cat([visible[:, None].expand(-1, len(columns), -1), causal], dim=2)[:, None]

    device = backbone.device
    table = backbone.rotation(torch.arange(1 + len(past) + len(columns), device=device))
    return Packing(
        first,
        (own - first).to(device),
        table.at(positions.to(device)),
        keys.to(device),
        table.at(key_positions.to(device)),
        mask.to(device),
        is_row.flatten().nonzero().flatten().to(device),
    )


def encode_adapter(
    weights: Weights,
    config: MemoryConfig,
    input_ids: Sequence[int],
    past: tuple[Float[Tensor, "T D"], ...],
    *,
    observe: Callable[[int, Tensor], None] | None = None,
) -> Encoded:
    """One chunk through the write adapter: K new tokens per layer (spec section 3).

    Args:
        weights: Backbone and write position.
        config: The memory's layout, for K.
        input_ids: Token ids of the chunk.
        past: Last K rows of short-term memory, by layer.
        observe: Called with each layer's number and the text rows at its input, for checks.
    """
    backbone, size, num_new = weights.backbone, len(input_ids), config.tokens_per_write
    assert isinstance(backbone, LlamaLayers), "a checkpoint with a write adapter for other layers is refused"
    hidden = backbone.embed(torch.tensor(list(input_ids)))
    length = 1 + past[0].shape[0] + size
    first = max(length - max(num_new, size), 1)
    packing = Packing.single(backbone.rotation(torch.arange(length, device=hidden.device)), first)
    new: list[Tensor] = []
    for index in range(backbone.num_layers):
        where = backbone.layer_device(index)
        hidden, packing = hidden.to(where), packing.to(where)
        if observe is not None:
            observe(index, hidden)
        rows = torch.cat([backbone.bos_states[index : index + 1].to(where), past[index].to(where), hidden])
        if weights.write_position is not None:
            rows[-num_new:] += weights.write_position.to(where)
        layer = backbone.write_layers[index]
        output = backbone.layer_output(layer, backbone.layer_input(layer, rows), packing)
        new.append(output[-num_new:].clone())
        hidden = output[-size:]
    return Encoded(tuple(new), None, hidden)
