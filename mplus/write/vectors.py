"""Vectors of chunks by the user's embedder, for new chunks and for those that were written without it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Int32
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.encode import Chunk
from mplus.errors import EmbedderError, LedgerMissingError, MemoryMismatchError
from mplus.memory.forgetting import within_age_limits
from mplus.memory.ledger import Ledger
from mplus.memory.state import MemoryState
from mplus.memory.tokens import Provenance
from mplus.memory.vectors import ChunkVectors
from mplus.recall.embedder import Embedder
from mplus.sentences import SentenceEnds
from mplus.weights import Weights
from mplus.words import same_words
from mplus.write.chunks import ready_chunks


class Embedded(NamedTuple):
    """Chunks with their vectors, and the state that they are to be written into."""

    state: MemoryState
    chunks: Sequence[Chunk]


def with_vectors(weights: Weights, given: Sequence[tuple[MemoryState, Sequence[Chunk]]]) -> list[Embedded]:
    """Chunks for several memories with their vectors, all made in one call of the embedder.

    Raises:
        EmbedderError: It failed, or its vectors are not of the size of those of a memory.
    """
    embedder = weights.embedder
    assert embedder is not None, "a memory was written without its embedder"
    texts = [weights.text_of(chunk.input_ids) for _, chunks in given for chunk in chunks]
    vectors = iter(embedder.passages(texts).unbind() if texts else ())
    found: list[Embedded] = []
    for state, chunks in given:
        embedded = [chunk._replace(vector=next(vectors)) for chunk in chunks]
        (track,) = state.tracks
        _check_size(track.vectors, embedder, [chunk.vector for chunk in embedded])
        track = replace(track, vectors=replace(track.vectors, embedder=embedder.name))
        found.append(Embedded(replace(state, tracks=(track,)), embedded))
    return found


def _check_size(known: ChunkVectors, embedder: Embedder, vectors: Iterable[Tensor | None]) -> None:
    size = known.size
    for vector in vectors:
        if vector is not None and size not in (None, len(vector)):
            raise EmbedderError(
                f"The embedder {embedder.name!r} returned vectors of {len(vector)} numbers: expected {size}, as this "
                "memory has from it. Nothing was changed; use the embedder that the memory was written with."
            )


# --- chunks that were written without vectors -----------------------------------------------------------


class WrittenChunk(NamedTuple):
    """A chunk that the ledger gives when it is cut again."""

    source: str
    words: Int32[Tensor, " T"]
    text: str


def completed(
    weights: Weights, config: MemoryConfig, ends: SentenceEnds, states: Sequence[MemoryState]
) -> list[ChunkVectors]:
    """Vectors of all chunks of each state; missing ones are made in one call of the embedder.

    The text of a chunk is found in the ledger, which is cut again as it was when it was written.

    Args:
        weights: The model, with its embedder.
        config: The memory's layout.
        ends: Detects sentence ends.
        states: States of one memory.

    Raises:
        EmbedderError: The embedder failed.
        LedgerMissingError: A memory without a ledger has chunks without vectors.
        MemoryMismatchError: The ledger does not have the text of a chunk.
    """
    embedder = weights.embedder
    assert embedder is not None, "vectors were asked for without an embedder"
    known: list[ChunkVectors] = []
    missing: list[Mapping[int, str]] = []
    for state in states:
        (track,) = state.tracks
        same = track.vectors.embedder == embedder.name
        known.append(track.vectors if same else ChunkVectors(embedder.name))
        lacking = set(track.chunks.tolist()) - set(known[-1].chunks.tolist())
        missing.append(_texts_of(weights, config, ends, state, lacking) if lacking else {})
    texts = list(dict.fromkeys(text for found in missing for text in found.values()))
    made = dict(zip(texts, embedder.passages(texts).unbind(), strict=True)) if texts else {}
    together: list[ChunkVectors] = []
    for vectors, found in zip(known, missing, strict=True):
        if found:
            serials = sorted(found)
            rows = [made[found[number]] for number in serials]
            _check_size(vectors, embedder, rows)
            vectors = vectors.append(torch.tensor(serials), torch.stack(rows), config.resolved_long_term_dtype)
        together.append(vectors)
    return together


def _texts_of(
    weights: Weights, config: MemoryConfig, ends: SentenceEnds, state: MemoryState, wanted: set[int]
) -> dict[int, str]:
    """The texts of chunks by their serial numbers.

    Sources may have been forgotten since, so numbers do not tell which chunk of the ledger is meant. Chunks of one
    source are matched from the last to the first, by their words.
    """
    if state.ledger is None:
        raise LedgerMissingError(
            "What was written into this memory was not kept, so it cannot be embedded now. Write its texts again into "
            "a memory of the new layout, or make memories with MemoryConfig(ledger=True)."
        )
    written: dict[str, list[WrittenChunk]] = {}
    for chunk in _cut_again(weights, config, ends, state.ledger):
        written.setdefault(chunk.source, []).append(chunk)
    (track,) = state.tracks
    known = Provenance.cat([pool.provenance for pool in track.pools])
    found: dict[int, str] = {}
    for number in sorted(set(known.chunks.tolist()), reverse=True):
        rows = (known.chunks == number).nonzero().flatten()
        name = state.sources[int(known.sources[rows[0]])].name
        text = _last_like(written.get(name, []), known.words[rows])
        if text is None:
            raise MemoryMismatchError(
                f"The text of chunk {number} of source {name!r} is not in the memory's ledger, so it cannot be "
                "embedded now. Write the texts of this source again."
            )
        if number in wanted:
            found[number] = text
    return found


def _last_like(chunks: list[WrittenChunk], words: Int32[Tensor, " T"]) -> str | None:
    """Remove the last chunk that ends with these words and all later ones; its text, or None if there is none."""
    while chunks:
        chunk = chunks.pop()
        # A chunk may have lost its first tokens when long-term memory was full.
        if len(chunk.words) >= len(words) and same_words(chunk.words[len(chunk.words) - len(words) :], words):
            return chunk.text
    return None


def _cut_again(weights: Weights, config: MemoryConfig, ends: SentenceEnds, ledger: Ledger) -> Iterator[WrittenChunk]:
    """The chunks that writing a ledger makes, in order; none is encoded."""
    state = weights.empty_state(config)
    for entry in ledger:
        state, chunks = ready_chunks(within_age_limits(state, config, entry.time), config, entry, ends)
        for chunk in chunks:
            name, ids = state.sources[chunk.sources[0]].name, chunk.input_ids
            yield WrittenChunk(name, weights.words_of(ids), weights.text_of(ids))
