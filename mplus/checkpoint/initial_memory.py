"""The memory that comes with a published checkpoint, made of hidden states."""

from dataclasses import replace

import torch
from torch import Tensor

from mplus.checkpoint.loading import caster
from mplus.checkpoint.parts import InitialMemory
from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import Context, MemoryState, Track, arrival_tier
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.weights import Weights
from mplus.words import no_words


def initial_state(weights: Weights, config: MemoryConfig, initial: InitialMemory | None) -> MemoryState:
    """The state of a new memory: empty, or what the checkpoint starts with."""
    empty = weights.empty_state(config)
    if initial is None or config.encoding == "states":
        return empty
    tracks: list[Track] = []
    for track in empty.tracks:
        (layer,) = track.layers
        long_term = stored(
            weights,
            layer,
            initial.long_term[layer],
            initial.long_term_ages[layer],
            initial.long_term_frequencies[layer],
            config,
            retrieval_keys=initial.long_term_keys[layer],
        )
        ages = torch.arange(len(initial.short_term[layer]) - 1, -1, -1)
        short_term = tokens_from_states(weights, layer, initial.short_term[layer], ages, config)
        tracks.append(Track(track.layers, track.recall_layer, short_term, LongTermMemory.empty(), long_term))
    cast = caster(weights.backbone.model)
    num = config.tokens_per_write
    context = Context(
        tuple(cast(rows[-num:]).to(weights.backbone.layer_device(i)) for i, rows in enumerate(initial.short_term)),
        torch.full((min(num, len(initial.short_term[0])),), -1),
    )
    return replace(empty, tracks=tuple(tracks), context=context)


def tokens_from_states(weights: Weights, layer: int, states: Tensor, ages: Tensor, config: MemoryConfig) -> Tokens:
    """Memory tokens of one layer, given as hidden states; of no known source."""
    backbone = weights.backbone
    rows = states.to(device=backbone.layer_device(layer), dtype=backbone.dtype)
    with torch.no_grad():
        content = weights.content((layer,), layer, (rows,), config)
    unknown = torch.full((len(states),), -1)
    frequencies = torch.full((len(states),), config.initial_recall_frequency, dtype=torch.float64)
    return Tokens(content, Provenance(ages.long(), frequencies, unknown, unknown.clone(), no_words(len(unknown))))


def stored(
    weights: Weights,
    layer: int,
    states: Tensor,
    ages: Tensor,
    frequencies: Tensor,
    config: MemoryConfig,
    *,
    retrieval_keys: Tensor,
) -> LongTermMemory:
    """Long-term memory of one layer, given as hidden states."""
    tokens = tokens_from_states(weights, layer, states, ages, config)
    content = Content(
        tokens.content.keys,
        tokens.content.values,
        retrieval_keys.to(weights.backbone.dtype),
        tokens.content.states,
    )
    segment = Segment.store(content, config.resolved_long_term_dtype, arrival_tier(config))
    provenance = replace(tokens.provenance, ages=ages.long(), recall_frequencies=frequencies.double())
    return LongTermMemory.empty().append(segment, provenance)
