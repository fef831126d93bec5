"""A state as files, and back.

    tokens-<name>     keys, values and retrieval keys of one long-term or pending segment, or of one chunk in
                      short-term memory; never changes once it is written
    records-<name>    some rows of a table of records, such as the sources, one JSON text a line
    state-<name>      everything else that is a tensor: provenance of all tokens; context

Names of the first two say what is in them, so a save finds by name what an earlier one wrote already.
"""

import hashlib
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.errors import CorruptMemoryError
from mplus.layouts.by_config import layout_of
from mplus.memory.long_term import LongTermMemory
from mplus.memory.mapped import content_tensors, opened_segment, read_content, segment_tensors
from mplus.memory.state import Context, MemoryState, Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.storage.codec import decode, encode, from_json, to_json
from mplus.storage.columns import decode_column, encode_column
from mplus.storage.encryption import MemoryKey
from mplus.storage.folders import Sink
from mplus.storage.manifest import StateEntry, TrackEntry
from mplus.storage.shards import OpenShard, ShardSum, content_hash, open_regular, shard_bytes, write_shard
from mplus.words import no_words

RECORDS_BYTES = 2**18
"""A file of records ends once it has this many bytes: so more records leave earlier files alone."""
MAX_RECORDS_BYTES = 2**30


@dataclass(frozen=True)
class NewFile:
    """A file that is to be written."""

    size: int
    write: Callable[[Sink], ShardSum]


class FileSet:
    """The files that a save consists of: those that are there already, and those to be written.

    Args:
        known: Files of the last save there.
        key: For encryption; None for none.
    """

    def __init__(self, known: Mapping[str, ShardSum], key: MemoryKey | None) -> None:
        self._known, self._key = known, key
        self.kept: dict[str, ShardSum] = {}
        self.new: dict[str, NewFile] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(s.nbytes for s in self.kept.values()) + sum(f.size for f in self.new.values())

    def segment(self, segment: Segment) -> str:
        """The file of a segment."""
        return self._shard("tokens", segment.name, lambda: segment_tensors(segment))

    def tensors(self, kind: str, tensors: Mapping[str, Tensor]) -> str:
        """The file of tensors that have no name of their own."""
        return self._shard(kind, content_hash(tensors, self._secret), lambda: tensors)

    def records(self, records: Sequence[Any]) -> list[str]:
        """The files of a table of records, in order."""
        names: list[str] = []
        lines: list[bytes] = []
        size = 0
        for record in records:
            lines.append(_line(record))
            size += len(lines[-1])
            if size >= RECORDS_BYTES:
                names.append(self._text(b"".join(lines)))
                lines, size = [], 0
        return [*names, self._text(b"".join(lines))] if lines else names

    @property
    def _secret(self) -> bytes:
        return b"" if self._key is None else self._key.secret

    def _shard(self, kind: str, name: str, tensors: Callable[[], Mapping[str, Tensor]]) -> str:
        name = f"{kind}-{name}.{'safetensors' if self._key is None else 'sealed'}"
        if not self._has(name):
            key = self._key

            def write(file: Sink) -> ShardSum:
                return write_shard(file, name, tensors(), key)

            self.new[name] = NewFile(shard_bytes(tensors(), key), write)
        return name

    def _text(self, text: bytes) -> str:
        name = f"records-{hashlib.sha256(self._secret + text).hexdigest()[:32]}.jsonl"
        if not self._has(name):
            whole = text if self._key is None else self._key.seal(name, text)

            def write(file: Sink) -> ShardSum:
                file.write(whole)
                return ShardSum(nbytes=len(whole), sha256=hashlib.sha256(whole).hexdigest())

            self.new[name] = NewFile(len(whole), write)
        return name

    def _has(self, name: str) -> bool:
        if name in self._known:
            self.kept[name] = self._known[name]
        return name in self.kept or name in self.new


_LINES: dict[int, tuple[weakref.ref[Any], bytes]] = {}


def _line(record: Any) -> bytes:
    """A record as a line of JSON. Records are immutable, so each is put into words once."""
    known = _LINES.get(id(record))
    if known is not None and known[0]() is record:
        return known[1]
    line = to_json(encode(record)) + b"\n"
    number = id(record)
    _LINES[number] = (weakref.ref(record, lambda _: _LINES.pop(number, None)), line)
    return line


# --- a state as files ---------------------------------------------------------------------------------


@cache
def plain_fields() -> dict[str, Any]:
    """Fields of a state with their types, but for those that are pools."""
    hints = typing.get_type_hints(MemoryState)
    return {field.name: hints[field.name] for field in fields(MemoryState) if field.name not in ("tracks", "context")}


def _record_type(hint: Any) -> Any:
    """The type of the records of a table, None where a field is no table."""
    for option in (hint, *typing.get_args(hint)):
        arguments = typing.get_args(option)
        if typing.get_origin(option) is tuple and len(arguments) == 2 and arguments[1] is ...:
            return arguments[0] if is_dataclass(arguments[0]) else None
    return None


def describe_state(state: MemoryState, config: MemoryConfig, files: FileSet) -> StateEntry:
    """Put a state into files."""
    tensors: dict[str, Tensor] = {}
    tracks: list[TrackEntry] = []
    for number, track in enumerate(state.tracks):
        short = track.short_term
        tensors |= _provenance_columns(f"{number}.short_term", short.provenance)
        for pool in ("pending", "long_term"):
            store: LongTermMemory = getattr(track, pool)
            tensors |= _provenance_columns(f"{number}.{pool}", store.provenance)
            tensors |= encode_column(f"{number}.{pool}.segment", store.segment)
            tensors |= encode_column(f"{number}.{pool}.row", store.row)
        tracks.append(
            TrackEntry(
                short_term=[files.tensors("tokens", content_tensors(part)) for part in _parts(short, config)],
                pending=[files.segment(segment) for segment in track.pending.segments],
                long_term=[files.segment(segment) for segment in track.long_term.segments],
                num_pending=len(track.pending),
                num_long_term=len(track.long_term),
            )
        )
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
        if _record_type(hint) is None:
            values[name] = encode(value, keep)
        else:
            records[name] = None if value is None else files.records(value)
    return StateEntry(
        shard=files.tensors("state", tensors), context=context, tracks=tracks, values=values, records=records
    )


def _parts(pool: Tokens, config: MemoryConfig) -> list[Content]:
    """Short-term memory in pieces that are saved each by itself."""
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


class FileReader:
    """Opens the files of one saved memory, each once: what several states share is shared again.

    Args:
        folder: Where they are.
        files: What they must be like.
        key: For encryption.
        verify: Read every byte against its checksum at once, not when it is first used.
    """

    def __init__(self, folder: Path, files: Mapping[str, ShardSum], key: MemoryKey | None, *, verify: bool) -> None:
        self._folder, self._files, self._key, self._verify = folder, files, key, verify
        self._segments: dict[str, Segment] = {}
        self._interned: dict[bytes, Any] = {}

    def shard(self, name: str) -> OpenShard:
        """A shard by its file name."""
        shard = OpenShard(self._folder / name, self._expected(name), seal=self._key)
        if self._verify:
            shard.verify()
        return shard

    def segment(self, name: str, like: Content) -> Segment:
        """A segment by its file name."""
        if name not in self._segments:
            inner = name.removeprefix("tokens-").partition(".")[0]
            self._segments[name] = opened_segment(self.shard(name), like, name=inner)
        return self._segments[name]

    def records(self, names: Sequence[str], kind: Any) -> tuple[Any, ...]:
        """The records of a table; equal ones are the same object, whichever state they are of."""
        records: list[Any] = []
        for name in names:
            for line in self.text(name).splitlines():
                if line not in self._interned:
                    self._interned[line] = decode(kind, from_json(line))
                records.append(self._interned[line])
        return tuple(records)

    def text(self, name: str) -> bytes:
        """A file of records, checked."""
        path, expected = self._folder / name, self._expected(name)
        if expected.nbytes > MAX_RECORDS_BYTES:
            raise CorruptMemoryError(f"{path}: {expected.nbytes:,} bytes, at most {MAX_RECORDS_BYTES:,} are read.")
        with open_regular(path) as file:
            text = file.read(expected.nbytes + 1)
        if len(text) != expected.nbytes or hashlib.sha256(text).hexdigest() != expected.sha256:
            raise CorruptMemoryError(f"{path}: was altered after it was saved. Restore it from a copy.")
        return text if self._key is None else self._key.unseal(name, text)

    def _expected(self, name: str) -> ShardSum:
        expected = self._files.get(name)
        if expected is None:
            raise CorruptMemoryError(f"{self._folder}: {name!r:.80} is used, but not listed")
        return expected


def read_state(entry: StateEntry, reader: FileReader, initial: MemoryState) -> MemoryState:
    """The state again; long-term content stays in its files.

    Args:
        entry: What the manifest says of it.
        reader: Opens its files.
        initial: A state of the same layout, for shapes, dtypes and devices.

    Raises:
        CorruptMemoryError: Its parts do not fit together.
    """
    shard = reader.shard(entry.shard)
    tensors = {name: shard.whole(name).clone() for name in shard.layout.tensors}
    if len(entry.tracks) != len(initial.tracks):
        raise CorruptMemoryError(f"it has {len(entry.tracks)} tracks, expected {len(initial.tracks)}")
    tracks = tuple(_track(entry.tracks[n], f"{n}", tensors, reader, like) for n, like in enumerate(initial.tracks))
    values: dict[str, Any] = {}
    for name, hint in plain_fields().items():
        kind = _record_type(hint)
        if kind is None and name in entry.values:
            values[name] = decode(hint, entry.values[name], lambda key: tensors[key])
        elif kind is not None and name in entry.records:
            names = entry.records[name]
            values[name] = None if names is None else reader.records(names, kind)
    unknown = (entry.values.keys() | entry.records.keys()) - plain_fields().keys()
    if unknown:
        raise CorruptMemoryError(f"a state has no field {sorted(unknown)[0]!r:.80}; update mplus to read it")
    context = None if entry.context is None else _context(reader.shard(entry.context), initial)
    state = MemoryState(tracks, context=context, **values)
    _check_sources(state)
    return state


def _track(entry: TrackEntry, number: str, tensors: dict[str, Tensor], reader: FileReader, like: Track) -> Track:
    pattern = like.short_term.content
    parts = [read_content(reader.shard(name), pattern) for name in entry.short_term]
    content = Content.cat(parts) if parts else pattern.take(torch.empty(0, dtype=torch.int64))
    short_term = Tokens(content, _provenance(tensors, f"{number}.short_term", len(content)))

    def store(pool: str, names: list[str], length: int) -> LongTermMemory:
        segments = tuple(reader.segment(name, pattern) for name in names)
        if not 0 <= length <= sum(map(len, segments)):
            raise CorruptMemoryError(f"{pool} has {length} tokens, its segments have {sum(map(len, segments))}")
        held = LongTermMemory(
            segments,
            _provenance(tensors, f"{number}.{pool}", length),
            decode_column(tensors, f"{number}.{pool}.segment", length=length),
            decode_column(tensors, f"{number}.{pool}.row", length=length),
        )
        check_rows(held)
        return held

    return Track(
        like.layers,
        like.recall_layer,
        short_term,
        store("pending", entry.pending, entry.num_pending),
        store("long_term", entry.long_term, entry.num_long_term),
    )


def _provenance(tensors: dict[str, Tensor], name: str, length: int) -> Provenance:
    like = Provenance.none()
    columns: dict[str, Tensor] = {}
    for field in fields(Provenance):
        if field.name == "words" and not any(key.startswith(f"{name}.words") for key in tensors):
            columns["words"] = no_words(length)  # saved before words were kept: recalled by states alone
            continue
        column = decode_column(tensors, f"{name}.{field.name}", length=length)
        expected = getattr(like, field.name).dtype
        if column.dtype != expected:
            raise CorruptMemoryError(f"column {name}.{field.name} is {column.dtype}, expected {expected}")
        columns[field.name] = column
    return Provenance(**columns)


def _context(shard: OpenShard, initial: MemoryState) -> Context:
    devices = [device for track in initial.tracks for device in track.devices]
    sources = shard.whole("sources").clone()
    rows = tuple(shard.whole(f"states.{n}").clone().to(device) for n, device in enumerate(devices))
    if sources.dtype != torch.int64 or any(row.dim() != 2 or len(row) != len(sources) for row in rows):
        raise CorruptMemoryError("the rows of the context do not fit its sources")
    return Context(rows, sources)


def check_rows(store: LongTermMemory) -> None:
    """Every token points into its segment.

    Raises:
        CorruptMemoryError: One does not.
    """
    sizes = torch.tensor([len(segment) for segment in store.segments] or [0])
    if not len(store):
        return
    if (
        not store.segment.dtype == store.row.dtype == torch.int64
        or int(store.segment.min()) < 0
        or int(store.segment.max()) >= len(store.segments)
        or int(store.row.min()) < 0
        or bool((store.row >= sizes[store.segment]).any())
    ):
        raise CorruptMemoryError("a long-term token points outside its segment")


def _check_sources(state: MemoryState) -> None:
    named = [p.provenance.sources for t in state.tracks for p in (t.short_term, t.pending, t.long_term) if len(p)]
    named += [torch.tensor(state.tail.sources)] if state.tail.sources else []
    if any(int(row.min()) < -1 or int(row.max()) >= len(state.sources) for row in named):
        raise CorruptMemoryError("a token is of a source that is not in the table of sources")
    counters = (state.written_tokens, state.text_tokens, state.num_chunks, state.waiting_tokens)
    if min(counters) < 0 or len(state.tail.input_ids) != len(state.tail.sources):
        raise CorruptMemoryError("its counters contradict its tokens")
