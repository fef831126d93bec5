"""Read: a prompt is answered with memory in front of it, layer by layer.

The prefix of a layer is [bos ; recalled ; short-term], as ready keys and values in a transformers cache.
A read changes no memory. Several memories are read in one batch, each row with a prefix of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import finalize, ref

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from mplus.backbone import KeysValues, Rotation
from mplus.config import MemoryConfig
from mplus.memory.state import MemoryState, Track
from mplus.prefix import SPARE_PREFIXES, Prefix, PrefixLayer, gather, length_of, prefix_layer
from mplus.reading import Reading, call_layer, geometry
from mplus.recall import QUERY_TOKENS, Recalled, nothing_recalled, recall
from mplus.weights import Weights


@dataclass(frozen=True)
class ReadRequest:
    """One row of a read: a memory's state and the prompt that meets it.

    Attributes:
        state: What is remembered.
        config: How it is laid out.
        input_ids: The prompt.
        query: First and last-plus-one row of the prompt that say what is asked.
        sources: Rows of the table of sources that may be read, in any pool; None for all.
    """

    state: MemoryState
    config: MemoryConfig
    input_ids: Sequence[int]
    query: tuple[int, int]
    sources: Int[Tensor, " n"] | None = None


def has_prefix(request: ReadRequest) -> bool:
    """Whether anything stands before the prompt.

    An empty memory has no prefix, and is read by the plain backbone without the read adapter: it is
    exactly the backbone. (A write adapter's model was trained with its bos vector always there.)
    """
    return request.config.encoding == "adapter" or any(map(len, request.state.tracks))


class Prefill(NamedTuple):
    """The first step of a read."""

    logits: Float[Tensor, "B S V"]
    """Of the last row of each prompt, or of all rows where asked for (prompts padded on the left)."""
    reading: Reading


@torch.inference_mode()
def prefill(weights: Weights, requests: Sequence[ReadRequest], *, all_logits: bool = False) -> Prefill:
    """Read prompts through their memories up to the first answer token.

    Args:
        weights: The model.
        requests: One per row.
        all_logits: Logits of every prompt row, not only of the last.
    """
    return _prefill(weights, requests, all_logits=all_logits)


def _prefill(weights: Weights, requests: Sequence[ReadRequest], *, all_logits: bool) -> Prefill:
    backbone = weights.backbone
    prefixed = [has_prefix(request) for request in requests]
    assert all(prefixed) or not any(prefixed), "rows with and without a prefix are read apart"
    modules = backbone.read_layers if prefixed[0] else backbone.write_layers
    sizes = [len(request.input_ids) for request in requests]
    longest = max(sizes)
    padded = torch.zeros(len(requests), longest, dtype=torch.int64)
    for row, request in enumerate(requests):
        padded[row, longest - sizes[row] :] = torch.tensor(request.input_ids)
    hidden = backbone.embed(padded)
    columns = torch.arange(longest) - (longest - torch.tensor(sizes))[:, None]  # negative: padding

    early = [_recall_before_reading(weights, request) for request in requests]
    alone = requests[0] if len(requests) == 1 and prefixed[0] and requests[0].sources is None else None
    spares = alone and SPARE_PREFIXES.take(alone.state.tracks[0].short_term)
    recalled: list[list[Recalled]] = [[] for _ in requests]
    layers: list[PrefixLayer] = []
    positions: list[Tensor] = []
    masks: list[Tensor | None] = []
    shared: dict[tuple[int, ...], tuple[Tensor, Rotation, Tensor, Tensor, Tensor | None]] = {}
    turned: dict[tuple[int, torch.device], Rotation] = {}
    for index in range(backbone.num_layers):
        where = backbone.layer_device(index)
        hidden = hidden.to(where)
        layer: Any = modules[index]
        prefixes: list[Prefix] = []
        for row, request in enumerate(requests):
            track, at = _track_of(request.state, index)
            chosen = early[row]
            if chosen is None:
                begin, end = request.query
                start = longest - sizes[row]
                normed = layer.input_layernorm(hidden[row, start + begin : start + end])
                chosen = recall(weights, track, request.config, normed, request.sources)
            if at == 0:
                recalled[row].append(chosen)
            prefixes.append(_prefix(weights, request, track, at, index, chosen))
        lengths = tuple(map(length_of, prefixes))
        widest = max(lengths)
        if (widest, where) not in turned:
            turned[widest, where] = backbone.rotation(torch.arange(widest, device=where))
        spare = spares[index] if spares else None
        layers.append(prefix_layer(backbone, prefixes, longest, turned[widest, where], spare))
        if lengths not in shared:
            shared[lengths] = geometry(backbone, lengths, columns, where)
        position, rotation, mask, next_position, decode_mask = shared[lengths]
        positions.append(next_position)
        masks.append(decode_mask)
        cache = Cache(layers=layers)  # pyright: ignore[reportArgumentType]
        hidden = call_layer(layer, hidden, rotation, backbone.layer_mask(mask), cache, position)
    reading = Reading(weights, modules, layers, positions, masks, [tuple(row) for row in recalled])
    if alone is not None:
        finalize(reading, SPARE_PREFIXES.keep, ref(alone.state.tracks[0].short_term), layers).atexit = False
    return Prefill(backbone.logits(hidden if all_logits else hidden[:, -1:]), reading)


def _track_of(state: MemoryState, layer: int) -> tuple[Track, int]:
    """The track that remembers for a layer, and the layer's place in it."""
    if len(state.tracks) == 1:
        return state.tracks[0], layer
    return state.tracks[layer], 0


def _prefix(
    weights: Weights, request: ReadRequest, track: Track, at: int, layer: int, chosen: Recalled
) -> list[KeysValues]:
    """[bos ; recalled ; short-term] of one layer: keys before rotary embedding, and values."""
    if not has_prefix(request):
        return []
    backbone = weights.backbone
    where = backbone.layer_device(layer)
    bos = weights.norm(layer, backbone.bos_states[layer : layer + 1].to(where), reading=True)
    parts = [backbone.keys_values(backbone.read_layers[layer], bos)]
    if len(chosen.index):
        parts.append(KeysValues(*gather(track, chosen.index, at, backbone.dtype, where)))
    content = track.short_term.content
    recent = KeysValues(content.keys[at], content.values[at])
    if request.sources is not None:
        kept = torch.isin(track.short_term.provenance.sources, request.sources).nonzero().flatten()
        recent = KeysValues(*(rows[kept.to(rows.device)] for rows in recent))
    return [*parts, recent]


def _recall_before_reading(weights: Weights, request: ReadRequest) -> Recalled | None:
    """The chunk layout's one choice for all layers, from the question read alone."""
    if request.config.layout != "chunk":
        return None
    track = request.state.tracks[0]
    if not len(track.long_term) + len(track.pending) or not request.config.recalled_tokens:
        return nothing_recalled()
    begin, end = request.query
    ids = torch.tensor(list(request.input_ids[max(begin, end - QUERY_TOKENS) : end]))
    states = weights.backbone.plain_states(ids, track.recall_layer)
    normed = weights.norm(track.recall_layer, states[-1], reading=False)
    return recall(weights, track, request.config, normed, request.sources)
