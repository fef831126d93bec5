"""Encode: text becomes states at the input of every layer.

Two encodings. ``states``: every text token's own state at the input of each layer is kept, so all chunks
of a text go through a layer together, each attending to itself and to the chunk before it. ``adapter``:
a write adapter compresses a chunk into K tokens (spec section 3), one chunk after the other.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.backbone.backbone import KeysValues, Rotation, rotate
from mplus.config import MemoryConfig
from mplus.memory.state import Context
from mplus.weights import Weights


class Chunk(NamedTuple):
    """Text that is written in one pass."""

    input_ids: list[int]
    sources: list[int]
    """Row of the memory's table of sources, per text token."""
    continues: bool
    """Whether it goes on from the chunk before it, and may see it."""
    since: float = 0.0
    """Unix time at which the first of its text was handed in."""


class Encoded(NamedTuple):
    """New memory tokens of some chunks, by layer, and what the next chunk will see of them."""

    states: tuple[Float[Tensor, "T D"], ...]
    base: tuple[KeysValues, ...] | None
    """Keys and values under the write layers, where they were computed on the way."""
    hidden: Float[Tensor, "S D"] | None = None
    """Output of the last layer, where it was computed."""


def encode_states(
    weights: Weights, chunks: Sequence[Chunk], contexts: Sequence[Context | None], *, num_layers: int | None = None
) -> Encoded:
    """States of every text token at the input of every layer.

    Rows of all chunks are packed for the linear layers and laid out [chunk, row] for attention, where
    each chunk sees the bos state, what it continues, and its own past. Positions count from the bos state,
    as in any write.

    Args:
        weights: The model.
        chunks: Of one text or of many.
        contexts: For each chunk, what it goes on from if that was written earlier; None where that is the
            chunk before it in ``chunks``, or nothing.
        num_layers: Only of the first so many; None: of all.
    """
    backbone = weights.backbone
    num_layers = num_layers or backbone.num_layers
    device = backbone.device
    sizes = torch.tensor([len(chunk.input_ids) for chunk in chunks])
    longest = int(sizes.max())
    earlier = torch.tensor([0 if context is None else context.sources.shape[0] for context in contexts])
    offset = int(earlier.sum())
    starts = offset + sizes.cumsum(0) - sizes
    before = torch.zeros_like(sizes)
    before[1:] = sizes[:-1]
    before *= torch.tensor([chunk.continues for chunk in chunks])
    is_earlier = torch.tensor([context is not None for context in contexts])
    before = torch.where(is_earlier, earlier, before)
    reach = int(before.max())

    columns = torch.arange(longest)
    inside = columns < sizes[:, None]  # [chunk, row]
    slot = torch.full(inside.shape, 0)
    slot[inside] = torch.arange(int(sizes.sum()))
    # Rows of what a chunk continues; what was written earlier stands in front of all chunks.
    past_columns = torch.arange(reach)
    past_inside = past_columns < before[:, None]
    past_starts = torch.where(is_earlier, earlier.cumsum(0) - earlier, starts - before)
    past_slot = torch.where(past_inside, past_starts[:, None] + past_columns, 0)

    position = 1 + before[:, None] + columns
    table = backbone.rotation(torch.arange(1 + reach + longest, device=device))
    causal = columns[:, None] >= columns[None, :]
    mask = torch.cat(
        [
            torch.ones(len(chunks), longest, 1, dtype=torch.bool),
            past_inside[:, None, :].expand(-1, longest, -1),
            causal & inside[:, None, :],
        ],
        dim=2,
    )[:, None]

    own = inside.flatten().nonzero().flatten()

    @cache
    def placed(where: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Rotation]:
        """What every layer looks things up with, copied to a device once."""
        rotation = Rotation(table.cos.to(where), table.sin.to(where))
        return slot.to(where), past_slot.to(where), position.to(where), mask.to(where), own.to(where), rotation

    hidden = backbone.embed(torch.tensor([i for chunk in chunks for i in chunk.input_ids]))
    states: list[Tensor] = []
    base: list[KeysValues] = []
    for index in range(num_layers):
        layer = backbone.write_layers[index]
        where = backbone.layer_device(index)
        hidden = hidden.to(where)
        states.append(hidden)
        past = [context.states[index].to(where) for context in contexts if context is not None]
        normed = weights.norm(
            index, torch.cat([backbone.bos_states[index : index + 1].to(where), *past, hidden]), reading=False
        )
        keys, values = backbone.keys_values(layer, normed)
        base.append(KeysValues(keys[1 + offset :], values[1 + offset :]))
        if index + 1 == num_layers:
            break  # what the last layer makes of them nobody reads
        here, past_here, at, seen, rows, rotation = placed(where)
        queries = backbone.queries(layer, normed[1 + offset :])[here]
        queries = rotate(queries, Rotation(rotation.cos[at], rotation.sin[at]))
        rotated, laid_values = _laid_out(keys, values, here, past_here, offset, rotation, at, reach)
        attended = backbone.attend(layer, queries.transpose(1, 2), rotated, laid_values, seen)
        hidden = backbone.finish(layer, hidden, attended.flatten(0, 1)[rows])
    return Encoded(tuple(states), tuple(base))


def _laid_out(
    keys: Tensor,
    values: Tensor,
    slot: Tensor,
    past_slot: Tensor,
    offset: int,
    rotation: Rotation,
    position: Tensor,
    reach: int,
) -> tuple[Tensor, Tensor]:
    """Keys (rotated) and values as [chunk, head, bos + past + own rows, size]."""
    num_chunks = slot.shape[0]
    rows = torch.cat([slot.new_zeros(num_chunks, 1), past_slot + 1, slot + 1 + offset], dim=1)
    at = torch.cat(
        [
            position.new_zeros(num_chunks, 1),
            torch.arange(1, 1 + reach, device=position.device).expand(num_chunks, -1),
            position,
        ],
        dim=1,
    )
    laid_keys = rotate(keys[rows], Rotation(rotation.cos[at], rotation.sin[at]))
    return laid_keys.transpose(1, 2), values[rows].transpose(1, 2)


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
        config: For K.
        input_ids: The chunk.
        past: Last K rows of short-term memory, by layer.
        observe: Called with each layer's number and text rows before it, for checks.
    """
    backbone, size, num_new = weights.backbone, len(input_ids), config.tokens_per_write
    hidden = backbone.embed(torch.tensor(list(input_ids)))
    length = 1 + past[0].shape[0] + size
    prefix = max(min(length - num_new, length - size), 1)
    rotation = backbone.rotation(torch.arange(length, device=hidden.device))
    mask = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()[prefix:][None, None]
    new: list[Tensor] = []
    for index in range(backbone.num_layers):
        layer = backbone.write_layers[index]
        where = backbone.layer_device(index)
        hidden = hidden.to(where)
        if observe is not None:
            observe(index, hidden)
        rows = torch.cat([backbone.bos_states[index : index + 1].to(where), past[index].to(where), hidden])
        if weights.write_position is not None:
            rows[-num_new:] += weights.write_position.to(where)
        normed = weights.norm(index, rows, reading=False)
        keys, values = backbone.keys_values(layer, normed)
        here = Rotation(rotation.cos.to(where), rotation.sin.to(where))
        queries = rotate(backbone.queries(layer, normed[prefix:]), Rotation(here.cos[prefix:], here.sin[prefix:]))
        attended = backbone.attend(
            layer,
            queries.transpose(0, 1)[None],
            rotate(keys, here).transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            mask.to(where),
        )
        output = backbone.finish(layer, rows[prefix:], attended[0])
        new.append(output[-num_new:].clone())
        hidden = output[-size:]
    return Encoded(tuple(new), None, hidden)
