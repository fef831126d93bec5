"""Write: text becomes new memory tokens, which enter short-term memory and push older ones out.

Two encodings. ``states``: every text token's own state at the input of each layer is kept, so all chunks
of a text go through a layer together, each attending to itself and to the chunk before it. ``adapter``:
a write adapter compresses a chunk into K tokens (spec section 3), one chunk after the other.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.backbone import KeysValues, Rotation, rotate
from mplus.config import MemoryConfig
from mplus.memory.memory import Memory
from mplus.memory.state import Context, MemoryState, chained
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.weights import Weights
from mplus.words import no_words

WRITE_BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Text tokens that go through a layer together. On a CPU more leave its caches (docs/performance.md); a GPU
wants more to be busy."""

Progress = Callable[[int, int], None]
"""Called with text tokens written so far and in total."""


class Chunk(NamedTuple):
    """Text that is written in one pass."""

    input_ids: list[int]
    sources: list[int]
    """Row of the memory's table of sources, per text token."""
    continues: bool
    """Whether it goes on from the chunk before it, and may see it."""
    since: float = 0.0
    """Unix time at which the first of its text was handed in."""


@dataclass(frozen=True)
class WriteReport:
    """What a write did.

    Attributes:
        text_tokens: Text tokens that were written or now wait in the tail.
        memory_tokens: New memory tokens per layer.
        evicted: Tokens per layer that left short-term memory.
        consolidated: Tokens per layer that moved from pending to long-term memory.
        seconds: Wall time.
    """

    text_tokens: int
    memory_tokens: int
    evicted: int
    consolidated: int
    seconds: float


class Encoded(NamedTuple):
    """New memory tokens of some chunks, by layer, and what the next chunk will see of them."""

    states: tuple[Float[Tensor, "T D"], ...]
    base: tuple[KeysValues, ...] | None
    """Keys and values under the write layers, where they were computed on the way."""
    hidden: Float[Tensor, "S D"] | None = None
    """Output of the last layer, where it was computed."""


def write_chunks(
    weights: Weights,
    memory: Memory,
    state: MemoryState,
    chunks: Sequence[Chunk],
    *,
    progress: Progress | None = None,
) -> tuple[MemoryState, WriteReport]:
    """Write chunks in order; the memory itself is not touched, the new state is returned."""
    (written,) = write_together(weights, [Writing(memory, state, chunks)], progress=progress)
    return written


class Writing(NamedTuple):
    """Chunks that are to be written into one memory."""

    memory: Memory
    state: MemoryState
    chunks: Sequence[Chunk]


def write_together(
    weights: Weights, writings: Sequence[Writing], *, progress: Progress | None = None
) -> list[tuple[MemoryState, WriteReport]]:
    """Write into several memories, each in order; their chunks go through the layers together.

    No memory is touched; new states are returned.
    """
    started = time.perf_counter()
    totals = [sum(len(chunk.input_ids) for chunk in writing.chunks) for writing in writings]
    reports = [WriteReport(total, 0, 0, 0, 0.0) for total in totals]
    states = [writing.state for writing in writings]
    waiting = [deque(writing.chunks) for writing in writings]
    done = 0
    while any(waiting):
        configs = [writing.memory.config for writing in writings]
        config, batch = _next_batch(configs, waiting, WRITE_BATCH_TOKENS.get(weights.backbone.device.type, 2048))
        parts = [Part(states[number], chunks) for number, chunks in batch]
        with torch.inference_mode():
            if config.encoding == "states":
                encoded = _encode_states(weights, config, parts)
            else:
                ((state, (chunk,)),) = parts
                encoded = [_encode_adapter(weights, config, state, chunk)]
        for (number, chunks), (new, context) in zip(batch, encoded, strict=True):
            generator = writings[number].memory.generator(states[number])
            states[number], out, moved = absorb(states[number], config, new, generator, context, chunks)
            known = reports[number]
            reports[number] = replace(
                known,
                memory_tokens=known.memory_tokens + len(new[0]),
                evicted=known.evicted + out,
                consolidated=known.consolidated + moved,
                seconds=time.perf_counter() - started,
            )
            done += sum(len(chunk.input_ids) for chunk in chunks)
        if progress is not None:
            progress(done, sum(totals))
    return list(zip(states, reports, strict=True))


def absorb(
    state: MemoryState,
    config: MemoryConfig,
    new: Sequence[Tokens],
    generator: torch.Generator,
    context: Context,
    chunks: Sequence[Chunk],
) -> tuple[MemoryState, int, int]:
    """New tokens into every track; returns the state, tokens evicted and tokens consolidated per layer."""
    tracks, evicted = [], 0
    for track, tokens in zip(state.tracks, new, strict=True):
        written, out = track.write(tokens, config, generator)
        tracks.append(written)
        evicted = max(evicted, out)
    num_new, digest = len(new[0]), state.digest
    # One chunk of K tokens, or chunks that keep each of their text tokens.
    sizes = [num_new] if len(chunks) == 1 else [len(chunk.input_ids) for chunk in chunks]
    ends = torch.tensor(sizes).cumsum(dim=0) + state.written_tokens
    times = torch.tensor([chunk.since for chunk in chunks], dtype=torch.float64)
    for chunk in chunks:
        digest = chained(digest, "write", chunk.input_ids, chunk.sources, chunk.continues)
    state = replace(
        state,
        tracks=tuple(tracks),
        context=context,
        written_tokens=state.written_tokens + num_new,
        text_tokens=state.text_tokens + sum(len(chunk.input_ids) for chunk in chunks),
        num_chunks=state.num_chunks + len(chunks),
        waiting_tokens=state.waiting_tokens + num_new,
        chunk_log=state.chunk_log.append(times, ends),
        digest=digest,
    )
    state, moved = state.consolidated_when_due(config)
    return state, evicted, moved


class Part(NamedTuple):
    """What goes into one memory of a batch of chunks."""

    state: MemoryState
    chunks: Sequence[Chunk]


def _next_batch(
    configs: Sequence[MemoryConfig], waiting: Sequence[deque[Chunk]], tokens: int
) -> tuple[MemoryConfig, list[tuple[int, list[Chunk]]]]:
    """Chunks that go through the layers together next, taken from ``waiting``, by number of their memory.

    Whole chunks of up to ``tokens`` text tokens together.
    """
    first = next(number for number, chunks in enumerate(waiting) if chunks)
    config = configs[first]
    if config.encoding == "adapter" or config.layout == "token":
        return config, [(first, [waiting[first].popleft()])]
    room = max(tokens // config.chunk_tokens, 1)
    batch: list[tuple[int, list[Chunk]]] = []
    for number in range(first, len(waiting)):
        if configs[number] != config:
            continue
        taken = [waiting[number].popleft() for _ in range(min(room, len(waiting[number])))]
        room -= len(taken)
        if taken:
            batch.append((number, taken))
    return config, batch


# --- each text token's own state ----------------------------------------------------------------------


def _encode_states(weights: Weights, config: MemoryConfig, parts: Sequence[Part]) -> list[tuple[list[Tokens], Context]]:
    chunks = [chunk for part in parts for chunk in part.chunks]
    contexts: list[Context | None] = []
    for part in parts:
        # What follows in the same part goes on from the chunk before it.
        contexts += [part.state.context if part.chunks[0].continues else None, *[None] * (len(part.chunks) - 1)]
    encoded = encode_states(weights, chunks, contexts)
    provenances = [_provenance(weights, config, part) for part in parts]
    assert encoded.base is not None
    content = [
        _born(weights, encoded.states, encoded.base, layers, recall_layer, config)
        for layers, recall_layer in weights.tracks(config)
    ]
    everything = Provenance.cat(provenances) if len(parts) > 1 else provenances[0]
    together = [Tokens(track, everything) for track in content]
    found: list[tuple[list[Tokens], Context]] = []
    end = 0
    for part, provenance in zip(parts, provenances, strict=True):
        start, end = end, end + len(provenance)
        # Rows of several memories are taken apart, so that none holds another's.
        own = together if len(parts) == 1 else [tokens.take(torch.arange(start, end)) for tokens in together]
        own = [replace(tokens, provenance=provenance) for tokens in own]
        keep = min(len(part.chunks[-1].input_ids), config.tokens_per_write)
        last = tuple(layer[end - keep : end].clone() for layer in encoded.states)
        found.append((own, Context(last, provenance.sources[-keep:].clone())))
    return found


def _provenance(weights: Weights, config: MemoryConfig, part: Part) -> Provenance:
    """Where the tokens of a part come from, as its memory counts."""
    sizes = torch.tensor([len(chunk.input_ids) for chunk in part.chunks])
    total = int(sizes.sum())
    return Provenance(
        ages=torch.arange(total - 1, -1, -1),
        recall_frequencies=torch.full((total,), config.initial_recall_frequency, dtype=torch.float64),
        sources=torch.tensor([source for chunk in part.chunks for source in chunk.sources]),
        chunks=torch.arange(len(part.chunks)).repeat_interleave(sizes) + part.state.num_chunks,
        words=torch.cat([weights.words_of(chunk.input_ids) for chunk in part.chunks]),
    )


def _born(
    weights: Weights,
    states: tuple[Tensor, ...],
    base: tuple[KeysValues, ...],
    layers: tuple[int, ...],
    recall_layer: int,
    config: MemoryConfig,
) -> Content:
    """Keys, values and retrieval keys of new tokens, computed once; those writing needed are reused."""
    backbone = weights.backbone
    if backbone.read_layers is not backbone.write_layers:
        return weights.content(layers, recall_layer, tuple(states[i] for i in layers), config)
    scored = weights.norm(recall_layer, states[recall_layer], reading=False)
    return Content(
        tuple(base[i].keys for i in layers),
        tuple(base[i].values for i in layers),
        weights.retrieval_keys(recall_layer, scored, config),
        tuple(states[i] for i in layers) if config.keep_states else None,
    )


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
        here = slot.to(where)
        rotation = Rotation(table.cos.to(where), table.sin.to(where))
        at = position.to(where)
        queries = backbone.queries(layer, normed[1 + offset :])[here]
        queries = rotate(queries, Rotation(rotation.cos[at], rotation.sin[at]))
        rotated, laid_values = _laid_out(keys, values, here, past_slot.to(where), offset, rotation, at, reach)
        attended = backbone.attend(layer, queries.transpose(1, 2), rotated, laid_values, mask.to(where))
        hidden = backbone.finish(layer, hidden, attended[inside.to(where)])
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


# --- K compressed tokens per chunk --------------------------------------------------------------------


def _encode_adapter(
    weights: Weights, config: MemoryConfig, state: MemoryState, chunk: Chunk
) -> tuple[list[Tokens], Context]:
    context = state.context
    past = (
        context.states
        if context is not None
        else tuple(
            weights.backbone.bos_states.new_zeros(0, weights.backbone.hidden_size)
            for _ in range(weights.backbone.num_layers)
        )
    )
    encoded = encode_adapter(weights, config, chunk.input_ids, past)
    count = encoded.states[0].shape[0]
    # K tokens stand for the whole chunk: sources share them in proportion to their text.
    share = torch.linspace(0, len(chunk.sources) - 1, count).round().long()
    provenance = Provenance(
        ages=torch.arange(count - 1, -1, -1),
        recall_frequencies=torch.full((count,), config.initial_recall_frequency, dtype=torch.float64),
        sources=torch.tensor(chunk.sources)[share],
        chunks=torch.full((count,), state.num_chunks),
        words=no_words(count),
    )
    tokens = [
        Tokens(weights.content(layers, recall, tuple(encoded.states[i] for i in layers), config), provenance)
        for layers, recall in weights.tracks(config)
    ]
    return tokens, Context(encoded.states, provenance.sources)


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
