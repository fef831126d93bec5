"""Makes keys and values of chunks that a memory keeps as token ids, where a read needs them and they are not held.

Every chunk is encoded by itself, so that they are the same bits whenever they are made.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int32
from torch import Tensor

from mplus.config import StorageDtype
from mplus.encode import latents_apart
from mplus.errors import CorruptMemoryError
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import MemoryState, Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.memory.warm import WarmChunks, chunk_key, runs
from mplus.recall.choose import Recalled
from mplus.shapes import Index
from mplus.weights import Weights


def warmed_state(weights: Weights, state: MemoryState) -> MemoryState:
    """The state with keys and values in short-term memory; the same one if they are there."""
    if not any(track.short_term.content.is_cold for track in state.tracks):
        return state
    tracks = tuple(replace(track, short_term=_whole(weights, track)) for track in state.tracks)
    return replace(state, tracks=tracks)


@torch.inference_mode()
def _whole(weights: Weights, track: Track) -> Tokens:
    """Short-term memory with keys and values; one object for as long as the pool lives, as reads of it go by that."""
    pool, warm = track.short_term, track.warm
    assert isinstance(warm, WarmChunks), "memories are made whole before they are put together"
    whole = warm.short_term(pool)
    if whole is None:
        backbone, known = weights.backbone, pool.provenance
        devices = tuple(backbone.layer_device(layer) for layer in track.layers)
        parts = [weights.no_latents(track.layers, pool.content.retrieval_keys[:0])]
        for run in runs(known.chunks):
            segment = warm_chunk(weights, track, warm, pool.input_ids(run), "auto")
            parts.append(segment.content(torch.arange(len(run)), backbone.dtype, devices))
        content = Content.cat([replace(part, retrieval_keys=part.retrieval_keys[:, :0]) for part in parts])
        whole = Tokens(replace(content, retrieval_keys=pool.content.retrieval_keys), known)
        warm.keep_short_term(pool, whole)
    return whole


def warmed_rows(weights: Weights, track: Track, recalled: Recalled) -> tuple[Sequence[LongTermMemory], Index]:
    """Stores, and rows in them, that have keys and values of what was recalled from a track: whole chunks."""
    stores, index = (track.long_term, track.pending), recalled.index
    if not any(segment.is_cold for store in stores for segment in store.segments):
        return stores, index
    rows, ahead = _Rows(), 0
    for store in stores:
        inside = ((index >= ahead) & (index < ahead + len(store))).nonzero().flatten()
        held, order = (index[inside] - ahead).sort()
        ahead += len(store)
        for run in runs(store.provenance.at("chunks", held)):
            one, places = held[run], inside[order[run]]
            segment, row = store.located(one)
            for number in segment.unique().tolist() if not _is_cold(store, one) else ():
                mine = segment == number
                rows.add(store.segments[number], row[mine], places[mine])
            if _is_cold(store, one):
                assert track.warm is not None, "a memory of token ids has room for what is made of them"
                room = track.warm.at(int(store.provenance.at("sources", one[:1])))
                dtype = room.dtype if store is track.long_term else "auto"
                made = warm_chunk(weights, track, room, store.input_ids(one), dtype)
                rows.add(made, torch.arange(len(one)), places)
    return (rows.store(recalled.provenance),), torch.arange(len(index))


def warm_ahead(weights: Weights, state: MemoryState, goes_on: Callable[[], bool]) -> int:
    """Make keys and values of what is in short-term memory and of the newest other chunks, as far as there is room.

    Args:
        weights: The model.
        state: The present state of a memory.
        goes_on: Asked before each chunk; False ends it.

    Returns:
        How many text tokens were encoded.
    """
    rooms = [track.warm for track in state.tracks if isinstance(track.warm, WarmChunks)]
    before = sum(room.encoded_tokens for room in rooms)
    warmed_state(weights, state)
    for track, room in zip(state.tracks, rooms, strict=False):
        stores: list[tuple[LongTermMemory, StorageDtype]] = [(track.pending, "auto"), (track.long_term, room.dtype)]
        for store, dtype in stores:
            for run in reversed(runs(store.provenance.chunks)):
                if room.room < len(run) * weights.latent_bytes or not goes_on():
                    break
                warm_chunk(weights, track, room, store.input_ids(run), dtype)
    return sum(room.encoded_tokens for room in rooms) - before


def _check_ids(weights: Weights, input_ids: Int32[Tensor, " T"]) -> None:
    low, high = (int(bound) for bound in input_ids.aminmax())
    size = weights.backbone.vocabulary_size
    if low < 0 or high >= size:
        raise CorruptMemoryError(
            f"a chunk has the token id {low if low < 0 else high}, but this model has ids 0 to {size - 1}"
        )


def _is_cold(store: LongTermMemory, rows: Index) -> bool:
    return store.segments[int(store.located(rows[:1])[0])].is_cold


class _Rows:
    """Rows of several segments, put in the order in which they were recalled."""

    def __init__(self) -> None:
        self._segments = list[Segment]()
        self._segment, self._row, self._places = list[Tensor](), list[Tensor](), list[Tensor]()

    def add(self, segment: Segment, rows: Index, places: Index) -> None:
        """Rows of a segment, and their places among all."""
        self._segment.append(torch.full((len(rows),), len(self._segments)))
        self._segments.append(segment)
        self._row.append(rows)
        self._places.append(places)

    def store(self, provenance: Provenance) -> LongTermMemory:
        """All of them."""
        order = torch.cat(self._places).argsort()
        segment, row = torch.cat(self._segment)[order], torch.cat(self._row)[order]
        return LongTermMemory.of(tuple(self._segments), provenance, segment, row)


@torch.inference_mode()
def warm_chunk(
    weights: Weights, track: Track, room: WarmChunks, input_ids: Int32[Tensor, " T"], dtype: StorageDtype
) -> Segment:
    """Keys and values of one chunk, made now if they are not held.

    Args:
        weights: The model.
        track: The track that the chunk belongs to.
        room: Where they are held.
        input_ids: Token ids of the chunk.
        dtype: Storage dtype that they are read from; "auto": the model's own.
    """
    key = chunk_key(input_ids)
    found = room.get(key, dtype)
    if found is None:
        _check_ids(weights, input_ids)
        keys, values = latents_apart(weights, track.layers, input_ids.tolist())
        room.note_encoded(len(input_ids))
        found = Segment.of_latents(keys, values, dtype, room.tier)
        room.put(key, dtype, found)
    return found
