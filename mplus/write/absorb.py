"""Write: turns text into new memory tokens, which enter short-term memory and evict older ones.

``mplus.encode`` computes the tokens of a chunk.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from mplus.config import MemoryConfig
from mplus.encode import Chunk, Encoded, encode_adapter, encode_states
from mplus.layouts.by_config import layout_of
from mplus.memory.memory import Memory
from mplus.memory.state import Context, MemoryState, Track, chained
from mplus.memory.tokens import Provenance, Tokens
from mplus.progress import Progress
from mplus.weights import Weights
from mplus.words import no_words
from mplus.write.apart import provenance_of, tokens_apart
from mplus.write.vectors import with_vectors

WRITE_BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Text tokens that go through a layer together. More do not fit a CPU's caches (docs/lab/performance.md); a GPU
needs more to be busy."""


def batch_tokens(weights: Weights) -> int:
    """Text tokens that go through a layer together."""
    return WRITE_BATCH_TOKENS.get(weights.backbone.device.type, 2048)


@dataclass(frozen=True)
class WriteReport:
    """Result of a write.

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


def write_chunks(
    weights: Weights,
    memory: Memory,
    state: MemoryState,
    chunks: Sequence[Chunk],
    *,
    progress: Progress | None = None,
) -> tuple[MemoryState, WriteReport]:
    """Write chunks in order and return the new state; the memory itself is unchanged."""
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
    """Write into several memories, each in order, in common batches; returns the new states.

    The memories themselves are unchanged.
    """
    started = time.perf_counter()
    totals = [sum(len(chunk.input_ids) for chunk in writing.chunks) for writing in writings]
    reports = [WriteReport(total, 0, 0, 0, 0.0) for total in totals]
    writings = _embedded(weights, writings)
    states = [writing.state for writing in writings]
    waiting = [deque(writing.chunks) for writing in writings]
    done = 0
    while any(waiting):
        configs = [writing.memory.config for writing in writings]
        config, batch = _next_batch(configs, waiting, batch_tokens(weights))
        parts = [Writing(writings[n].memory, states[n], chunks) for n, chunks in batch]
        with torch.inference_mode():
            if config.encodes_apart:
                encoded = [(tokens_apart(weights, config, part.state, part.chunks), None) for part in parts]
            elif config.encoding == "states":
                encoded = _encode_states(weights, config, parts)
            else:
                ((_, state, (chunk,)),) = parts
                encoded = [_encode_adapter(weights, config, state, chunk)]
        for (number, chunks), (new, context) in zip(batch, encoded, strict=True):
            generator = writings[number].memory.generator(states[number])
            states[number], out, moved = absorb(states[number], config, new, generator, context, chunks)
            if moved:  # now, so that no read has to wait for it
                for track in states[number].tracks:
                    weights.scorers[config.recall].prepare(track.long_term, config)
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


def _embedded(weights: Weights, writings: Sequence[Writing]) -> list[Writing]:
    """The writings, with the vectors of their chunks where an embedder scores them."""
    found = list(writings)
    places = [n for n, writing in enumerate(found) if writing.memory.config.has_vectors and writing.chunks]
    if places:
        embedded = with_vectors(weights, [(found[n].state, found[n].chunks) for n in places])
        for place, (state, chunks) in zip(places, embedded, strict=True):
            found[place] = found[place]._replace(state=state, chunks=chunks)
    return found


def absorb(
    state: MemoryState,
    config: MemoryConfig,
    new: Sequence[Tokens],
    generator: torch.Generator,
    context: Context | None,
    chunks: Sequence[Chunk],
) -> tuple[MemoryState, int, int]:
    """Add new tokens to every track. Returns the state, and the tokens evicted and consolidated per layer."""
    tracks, evicted = list[Track](), 0
    vectors = [chunk.vector for chunk in chunks if chunk.vector is not None]
    for track, tokens in zip(state.tracks, new, strict=True):
        if vectors:
            serials, dtype = torch.arange(len(chunks)) + state.num_chunks, config.resolved_long_term_dtype
            track = replace(track, vectors=track.vectors.append(serials, torch.stack(vectors), dtype))
        written, out = track.write(tokens, config, generator)
        tracks.append(written)
        evicted = max(evicted, out)
    num_new, digest = len(new[0]), state.digest
    # One chunk of K tokens, or chunks that keep each of their text tokens.
    sizes = [num_new] if len(chunks) == 1 else [len(chunk.input_ids) for chunk in chunks]
    ends = torch.tensor(sizes).cumsum(dim=0) + state.written_tokens
    times = torch.tensor([chunk.since for chunk in chunks], dtype=torch.float64)
    for chunk in chunks:
        made_by = () if chunk.vector is None else (state.tracks[0].vectors.embedder,)
        digest = chained(digest, "write", chunk.input_ids, chunk.sources, chunk.continues, *made_by)
    state = replace(
        state,
        tracks=tuple(tracks),
        context=context,
        written_tokens=state.written_tokens + num_new,
        text_tokens=state.text_tokens + sum(len(chunk.input_ids) for chunk in chunks),
        num_chunks=state.num_chunks + len(chunks),
        waiting_tokens=state.waiting_tokens + num_new,
        chunk_log=state.chunk_log.append(times, ends),
        moments=state.moments.append(state.num_chunks, [chunk.latest for chunk in chunks]),
        digest=digest,
    )
    state, moved = state.consolidated_when_due(config)
    return state, evicted, moved


def _next_batch(
    configs: Sequence[MemoryConfig], waiting: Sequence[deque[Chunk]], tokens: int
) -> tuple[MemoryConfig, list[tuple[int, list[Chunk]]]]:
    """Take the next batch of chunks from ``waiting``, by number of their memory.

    The batch has whole chunks with up to ``tokens`` text tokens in total.
    """
    first = next(number for number, chunks in enumerate(waiting) if chunks)
    config = configs[first]
    if not layout_of(config).writes_together:
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


def _tokens(weights: Weights, config: MemoryConfig, encoded: Encoded, provenance: Provenance) -> list[Tokens]:
    """New tokens of every track."""
    states, base = encoded.states, encoded.base
    return [
        Tokens(
            weights.content(
                layers, recall_layer, tuple(states[i] for i in layers), config, base and [base[i] for i in layers]
            ),
            provenance,
        )
        for layers, recall_layer in weights.tracks(config)
    ]


# --- each text token's own state ----------------------------------------------------------------------


def _encode_states(
    weights: Weights, config: MemoryConfig, parts: Sequence[Writing]
) -> list[tuple[list[Tokens], Context]]:
    chunks = [chunk for part in parts for chunk in part.chunks]
    contexts: list[Context | None] = []
    for part in parts:
        # Later chunks of the same part continue the chunk before them.
        contexts += [part.state.context if part.chunks[0].continues else None, *[None] * (len(part.chunks) - 1)]
    encoded = encode_states(weights, chunks, contexts)
    provenances = [provenance_of(weights, config, part.state, part.chunks) for part in parts]
    everything = Provenance.cat(provenances) if len(parts) > 1 else provenances[0]
    together = _tokens(weights, config, encoded, everything)
    found: list[tuple[list[Tokens], Context]] = []
    end = 0
    for part, provenance in zip(parts, provenances, strict=True):
        start, end = end, end + len(provenance)
        # Rows of several memories are copied apart, so that no memory holds another's rows.
        own = together if len(parts) == 1 else [tokens.take(torch.arange(start, end)) for tokens in together]
        own = [replace(tokens, provenance=provenance) for tokens in own]
        keep = min(len(part.chunks[-1].input_ids), config.tokens_per_write)
        last = tuple(layer[end - keep : end].clone() for layer in encoded.states)
        found.append((own, Context(last, provenance.sources[-keep:].clone())))
    return found


# --- K compressed tokens per chunk --------------------------------------------------------------------


def _encode_adapter(
    weights: Weights, config: MemoryConfig, state: MemoryState, chunk: Chunk
) -> tuple[list[Tokens], Context]:
    backbone, context = weights.backbone, state.context
    past = (backbone.bos_states[:0],) * backbone.num_layers if context is None else context.states
    encoded = encode_adapter(weights, config, chunk.input_ids, past)
    count = encoded.states[0].shape[0]
    # K tokens represent the whole chunk; sources share them in proportion to their text.
    share = torch.linspace(0, len(chunk.sources) - 1, count).round().long()
    provenance = Provenance(
        ages=torch.arange(count - 1, -1, -1),
        recall_frequencies=torch.full((count,), config.initial_recall_frequency, dtype=torch.float64),
        sources=torch.tensor(chunk.sources)[share],
        chunks=torch.full((count,), state.num_chunks),
        words=no_words(count),
    )
    return _tokens(weights, config, encoded, provenance), Context(encoded.states, provenance.sources)
