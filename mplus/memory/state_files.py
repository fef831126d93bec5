"""Writes a state as files and reads it again.

    tokens-<name>     keys, values and retrieval keys of one long-term or pending segment, or of one chunk in
                      short-term memory; never changes once it is written
    vectors-<name>    vectors of some chunks, made by the user's embedder
    records-<name>    some rows of a table of records, such as the sources, one JSON text a line
    state-<name>      everything else that is a tensor: provenance of all tokens; context

Names of the first three contain a hash of the content, so a save recognises files that an earlier save wrote.
"""

import typing
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.errors import CorruptMemoryError
from mplus.layouts.by_config import layout_of
from mplus.memory.long_term import LongTermMemory
from mplus.memory.mapped import (
    named_parts,
    opened_segment,
    read_content,
    read_vectors,
    segment_tensors,
    vector_tensors,
)
from mplus.memory.state import Context, MemoryState, Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.storage.columns import decode_column, encode_column
from mplus.storage.files import FileReader, FileSet
from mplus.storage.json_fields import Record, decode, encode
from mplus.storage.manifest import StateEntry, TrackEntry
from mplus.storage.shards import OpenShard
from mplus.words import no_words

# --- a state as files ---------------------------------------------------------------------------------


@cache
def plain_fields() -> dict[str, Any]:
    """Fields of a state with their types, without the pools."""
    hints = typing.get_type_hints(MemoryState)
    return {
        field.name: hints[field.name]
        for field in fields(MemoryState)
        if field.name not in ("tracks", "context", "lineage")
    }


def _record_type(hint: Any) -> Any:
    """The type of the records of a table; None if the field is not a table."""
    for option in (hint, *typing.get_args(hint)):
        arguments = typing.get_args(option)
        if typing.get_origin(option) is tuple and len(arguments) == 2 and arguments[1] is ...:
            return arguments[0] if isinstance(arguments[0], type) and issubclass(arguments[0], Record) else None
    return None


def describe_state(state: MemoryState, config: MemoryConfig, files: FileSet) -> StateEntry:
    """Add the files of a state to ``files``."""
    tensors: dict[str, Tensor] = {}
    tracks = [_describe_track(track, f"{n}", config, files, tensors) for n, track in enumerate(state.tracks)]
    context = None
    if state.context is not None:
        rows = {f"states.{n}": rows for n, rows in enumerate(state.context.states)}
        context = files.tensors("state", {"sources": state.context.sources, **rows})

    def keep(tensor: Tensor) -> str:
        name = f"values.{len(tensors)}"
        tensors[name] = tensor
        return name

    values: dict[str, Any] = {}
    records: dict[str, list[str] | None] = {}
    for name, hint in plain_fields().items():
        value = getattr(state, name)
        if (name == "moments" and not len(value)) or (name == "removed_rows" and not value):
            continue  # earlier versions do not know them
        if _record_type(hint) is None:
            values[name] = encode(value, keep)
        else:
            records[name] = None if value is None else files.records(value)
    return StateEntry(
        shard=files.tensors("state", tensors), context=context, tracks=tracks, values=values, records=records
    )


def _describe_track(
    track: Track, number: str, config: MemoryConfig, files: FileSet, tensors: dict[str, Tensor]
) -> TrackEntry:
    """Add the files of a track to ``files``, and its provenance to ``tensors``."""
    short = track.short_term
    tensors |= _provenance_columns(f"{number}.short_term", short.provenance)
    for name, store in (("pending", track.pending), ("long_term", track.long_term)):
        tensors |= _provenance_columns(f"{number}.{name}", store.provenance)
        tensors |= encode_column(f"{number}.{name}.segment", store.segment)
        tensors |= encode_column(f"{number}.{name}.row", store.row)
    return TrackEntry(
        short_term=[files.tensors("tokens", named_parts(part)) for part in _parts(short, config)],
        pending=_segments(track.pending, files),
        long_term=_segments(track.long_term, files),
        num_pending=len(track.pending),
        num_long_term=len(track.long_term),
        vectors=[files.tensors("vectors", vector_tensors(block)) for block in track.vectors.blocks],
        embedder=track.vectors.embedder,
    )


def _segments(store: LongTermMemory, files: FileSet) -> list[str]:
    return [files.segment(s.name, lambda s=s: segment_tensors(s)) for s in store.segments]


def _parts(pool: Tokens, config: MemoryConfig) -> list[Content]:
    """Short-term memory in pieces, each of which is saved as a file of its own."""
    if not len(pool):
        return []
    sizes = layout_of(config).saved_apart(pool.provenance.chunks)
    return [pool.content.take(index) for index in torch.arange(len(pool)).split(sizes)]


def _provenance_columns(name: str, provenance: Provenance) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    for field in fields(Provenance):
        columns |= encode_column(f"{name}.{field.name}", getattr(provenance, field.name))
    return columns


# --- files as states ----------------------------------------------------------------------------------


class StateReader:
    """Reads the states of one saved memory. A segment that several states contain is opened once and shared.

    Args:
        files: Opens the files.
        initial: A state of the same layout, for shapes, dtypes and devices.
    """

    def __init__(self, files: FileReader, initial: MemoryState) -> None:
        self._files, self._initial = files, initial
        self._segments: dict[str, Segment] = {}
        self._states: dict[str, MemoryState] = {}
        self._short_term: dict[tuple[int, tuple[str, ...]], Content] = {}

    def state(self, entry: StateEntry) -> MemoryState:
        """Read a state; long-term content stays in its files. Equal entries are one state.

        Args:
            entry: The state's entry in the manifest.

        Raises:
            CorruptMemoryError: Parts of the state contradict each other.
        """
        key = entry.model_dump_json()
        if key not in self._states:
            self._states[key] = self._read(entry)
        return self._states[key]

    def _read(self, entry: StateEntry) -> MemoryState:
        files, initial = self._files, self._initial
        tensors = {name: tensor.clone() for name, tensor in files.shard(entry.shard).tensors().items()}
        if len(entry.tracks) != len(initial.tracks):
            raise CorruptMemoryError(f"it has {len(entry.tracks)} tracks, expected {len(initial.tracks)}")
        tracks = tuple(self._track(entry.tracks[n], f"{n}", tensors, like) for n, like in enumerate(initial.tracks))
        values: dict[str, Any] = {}
        for name, hint in plain_fields().items():
            kind = _record_type(hint)
            if kind is None and name in entry.values:
                values[name] = decode(hint, entry.values[name], lambda key: tensors[key])
            elif kind is not None and name in entry.records:
                names = entry.records[name]
                values[name] = None if names is None else files.records(names, kind)
        unknown = (entry.values.keys() | entry.records.keys()) - plain_fields().keys()
        if unknown:
            raise CorruptMemoryError(f"a state has no field {sorted(unknown)[0]!r:.80}; update mplus-memory to read it")
        context = None if entry.context is None else _context(files.shard(entry.context), initial)
        state = MemoryState(tracks, context=context, **values)
        _check_sources(state)
        return state

    def _track(self, entry: TrackEntry, number: str, tensors: dict[str, Tensor], like: Track) -> Track:
        pattern = like.short_term.content
        content = self._content(int(number), tuple(entry.short_term), pattern)
        short_term = Tokens(content, _provenance(tensors, f"{number}.short_term", len(content)))

        def store(pool: str, names: list[str], length: int) -> LongTermMemory:
            segments = tuple(self._segment(name, pattern) for name in names)
            if not 0 <= length <= sum(map(len, segments)):
                raise CorruptMemoryError(f"{pool} has {length} tokens, its segments have {sum(map(len, segments))}")
            held = LongTermMemory.of(
                segments,
                _provenance(tensors, f"{number}.{pool}", length),
                decode_column(tensors, f"{number}.{pool}.segment", length=length),
                decode_column(tensors, f"{number}.{pool}.row", length=length),
            )
            _check_rows(held)
            return held

        pending = store("pending", entry.pending, entry.num_pending)
        long_term = store("long_term", entry.long_term, entry.num_long_term)
        vectors = read_vectors(entry.embedder, [self._files.shard(name) for name in entry.vectors])
        track = Track(like.layers, like.recall_layer, short_term, pending, long_term, vectors, like.warm)
        if len(vectors) and not bool(torch.isin(track.chunks, vectors.chunks).all()):
            raise CorruptMemoryError("a chunk has no vector")
        return track

    def _content(self, track: int, names: tuple[str, ...], pattern: Content) -> Content:
        """Content of short-term memory; states whose short-term memory is equal share it."""
        if (track, names) not in self._short_term:
            parts = [read_content(self._files.shard(name), pattern) for name in names]
            content = Content.cat(parts) if parts else pattern.take(torch.empty(0, dtype=torch.int64))
            self._short_term[track, names] = content
        return self._short_term[track, names]

    def _segment(self, name: str, like: Content) -> Segment:
        if name not in self._segments:
            shard = self._files.shard(name)
            self._segments[name] = opened_segment(shard, like, name=self._files.segment_name(name))
        return self._segments[name]


def _provenance(tensors: dict[str, Tensor], name: str, length: int) -> Provenance:
    like = Provenance.none()
    columns: dict[str, Tensor] = {}
    for field in fields(Provenance):
        if field.name == "words" and not any(key.startswith(f"{name}.words") for key in tensors):
            columns["words"] = no_words(length)  # saved by a version without words; recall then compares states alone
            continue
        column = decode_column(tensors, f"{name}.{field.name}", length=length)
        expected = getattr(like, field.name).dtype
        if column.dtype != expected:
            raise CorruptMemoryError(f"column {name}.{field.name} is {column.dtype}, expected {expected}")
        columns[field.name] = column
    provenance = Provenance(**columns)
    frequencies = provenance.recall_frequencies
    if not bool(frequencies.isfinite().all()) or (length and int(provenance.ages.min()) < 0):
        raise CorruptMemoryError(f"{name} has an age below 0, or a recall frequency that is not finite")
    return provenance


def _context(shard: OpenShard, initial: MemoryState) -> Context:
    devices = [device for track in initial.tracks for device in track.devices]
    sources = shard.whole("sources").clone()
    rows = tuple(shard.whole(f"states.{n}").clone().to(device) for n, device in enumerate(devices))
    if sources.dtype != torch.int64 or any(row.dim() != 2 or len(row) != len(sources) for row in rows):
        raise CorruptMemoryError("the rows of the context do not fit its sources")
    return Context(rows, sources)


def _check_rows(store: LongTermMemory) -> None:
    sizes = torch.tensor([len(segment) for segment in store.segments] or [0])
    if not len(store):
        return
    segment, row = store.segment, store.row
    if (
        not segment.dtype == row.dtype == torch.int64
        or int(segment.min()) < 0
        or int(segment.max()) >= len(store.segments)
        or int(row.min()) < 0
        or bool((row >= sizes[segment]).any())
    ):
        raise CorruptMemoryError("a long-term token points outside its segment")


def _check_sources(state: MemoryState) -> None:
    named = [p.provenance.sources for t in state.tracks for p in t.pools if len(p)]
    named += [torch.tensor(state.tail.sources)] if state.tail.sources else []
    if any(int(row.min()) < -1 or int(row.max()) >= len(state.sources) for row in named):
        raise CorruptMemoryError("a token is of a source that is not in the table of sources")
    counters = (state.written_tokens, state.text_tokens, state.num_chunks, state.waiting_tokens, state.removed_rows)
    if min(counters) < 0 or len(state.tail.input_ids) != len(state.tail.sources):
        raise CorruptMemoryError("its counters contradict its tokens")
    log = state.chunk_log
    if log.first < 0 or len(log.times) != len(log.ends) or not bool(log.times.isfinite().all()):
        raise CorruptMemoryError("its log of chunks has no time for each of them")
    said = state.moments
    if len(said) != len(said.times) or not bool(said.times.isfinite().all()):
        raise CorruptMemoryError("its moments do not have a time for each of them")
    if len(said) and not 0 <= int(said.chunks.min()) <= int(said.chunks.max()) < state.num_chunks:
        raise CorruptMemoryError("it tells when a chunk was said that was never written")
