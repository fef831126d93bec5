"""New tokens of chunks that are encoded by themselves, whole or only as far as recall needs it."""

from collections.abc import Sequence

import torch

from mplus.config import MemoryConfig
from mplus.encode import Chunk, encode_apart
from mplus.memory.state import MemoryState, Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.memory.warm import WarmChunks, chunk_key
from mplus.weights import Weights


def provenance_of(weights: Weights, config: MemoryConfig, state: MemoryState, chunks: Sequence[Chunk]) -> Provenance:
    """Provenance of the tokens of chunks, in the numbering of the memory that they are written into."""
    sizes = torch.tensor([len(chunk.input_ids) for chunk in chunks])
    total = int(sizes.sum())
    return Provenance(
        ages=torch.arange(total - 1, -1, -1),
        recall_frequencies=torch.full((total,), config.initial_recall_frequency, dtype=torch.float64),
        sources=torch.tensor([source for chunk in chunks for source in chunk.sources]),
        chunks=torch.arange(len(chunks)).repeat_interleave(sizes) + state.num_chunks,
        words=torch.cat([weights.words_of(chunk.input_ids) for chunk in chunks]),
    )


def tokens_apart(weights: Weights, config: MemoryConfig, state: MemoryState, chunks: Sequence[Chunk]) -> list[Tokens]:
    """New tokens of every track. A memory of token ids gets no keys and values, unless there is room to hold them."""
    provenance = provenance_of(weights, config, state, chunks)
    if config.keeps_ids:
        (track,) = state.tracks
        contents = [[_cold(weights, config, track, chunk.input_ids) for chunk in chunks]]
    else:
        made = [encode_apart(weights, chunk.input_ids) for chunk in chunks]
        contents = [
            [
                weights.content(
                    layers,
                    recall_layer,
                    tuple(encoded.states[layer] for layer in layers),
                    config,
                    encoded.base and [encoded.base[layer] for layer in layers],
                )
                for encoded in made
            ]
            for layers, recall_layer in weights.tracks(config)
        ]
    return [Tokens(Content.cat(parts), provenance) for parts in contents]


def _cold(weights: Weights, config: MemoryConfig, track: Track, input_ids: list[int]) -> Content:
    """Retrieval keys and token ids of one chunk."""
    ids, warm = torch.tensor(input_ids, dtype=torch.int32), track.warm
    assert isinstance(warm, WarmChunks), "a memory of token ids has room for what is made of them"
    if config.long_term_keep == "auto" and warm.room >= len(ids) * weights.latent_bytes:
        encoded = encode_apart(weights, input_ids)
        rows = weights.latents(track.layers, encoded.states, encoded.base)
        made = tuple(one.keys for one in rows), tuple(one.values for one in rows)
        warm.put(chunk_key(ids), "auto", Segment.of_latents(*made, "auto", warm.tier))
    else:
        encoded = encode_apart(weights, input_ids, num_layers=track.recall_layer + 1)
    keys = weights.scored(track.recall_layer, encoded.states[track.recall_layer], config)
    return Content((), (), keys, None, ids)
