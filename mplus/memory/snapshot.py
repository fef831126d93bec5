"""Saved memories: a folder with ``memory.json`` and memory-mapped safetensors shards.

    memory.json               format, model fingerprint, config, sources, counters, checksums of all shards
    state-<digest>.safetensors    short-term and pending tokens, provenance, context
    segment-<name>.safetensors    one long-term segment each; written once, shared by later saves

A save writes new shards, forces them to disk, and then renames one small file. Killed at any point, the
old or the new state loads. Shards that no state needs any more are removed afterwards.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.errors import CorruptMemoryError, MemoryMismatchError, MemoryNotFoundError
from mplus.memory.long_term import LongTermMemory
from mplus.memory.memory import Memory
from mplus.memory.shards import open_segment, write_segment
from mplus.memory.state import Context, MemoryState, SourceRecord, Tail, Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens

FORMAT = 1
MANIFEST = "memory.json"
VERIFIED_BYTES = 2**26
"""Shards up to this size are read whole and checked when a memory is opened; of larger ones the ends are,
and ``verify_memory`` checks the rest."""


@runtime_checkable
class MemoryMaker(Protocol):
    """What loading needs of a model: its fingerprint and a new memory of a given layout."""

    def new_memory(self, *, seed: int = 0, config: MemoryConfig | None = None) -> Memory:
        """A memory in which nothing has been written."""
        ...


def save_memory(memory: Memory, folder: Path) -> None:
    """Save a memory; an earlier save in the same folder is replaced, atomically.

    Raises:
        OSError: The folder cannot be written, or the disk is full; the earlier save is intact.
    """
    state = memory.state
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    shards: dict[str, dict[str, Any]] = {}
    known = _manifest_or_nothing(folder).get("shards", {})
    for track in state.tracks:
        for segment in track.long_term.segments:
            name = f"segment-{segment.name}.safetensors"
            if name not in known or not (folder / name).exists():
                _write_shard(folder, name, lambda path, s=segment: write_segment(s, path))
                shards[name] = _checksum(folder / name)
            else:
                shards[name] = known[name]
    tensors = _state_tensors(state)
    name = f"state-{memory.fingerprint[:24]}-{os.urandom(4).hex()}.safetensors"
    _write_shard(folder, name, lambda path: _save_tensors(tensors, path))
    shards[name] = _checksum(folder / name)
    manifest = {
        "format": FORMAT,
        "model": memory.model_fingerprint,
        "seed": memory.seed,
        "config": memory.config.model_dump(),
        "digest": state.digest,
        "counters": {
            "written_tokens": state.written_tokens,
            "text_tokens": state.text_tokens,
            "num_chunks": state.num_chunks,
            "waiting_tokens": state.waiting_tokens,
        },
        "tail": {"input_ids": state.tail.input_ids, "sources": state.tail.sources},
        "sources": [asdict(source) for source in state.sources],
        "long_term": [[f"segment-{s.name}.safetensors" for s in t.long_term.segments] for t in state.tracks],
        "has_context": state.context is not None,
        "state": name,
        "shards": shards,
    }
    # Through JSON once, so that the checksum is of what a load will see.
    manifest = json.loads(json.dumps(manifest, default=str))
    text = json.dumps(manifest, indent=1, sort_keys=True)
    sealed = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "memory": manifest})
    _write_shard(folder, MANIFEST, lambda path: path.write_text(sealed, encoding="utf-8"))
    for path in folder.glob("*.safetensors"):
        if path.name not in shards:
            path.unlink(missing_ok=True)


def load_memory(folder: Path, model: MemoryMaker) -> Memory:
    """Open a saved memory; long-term tokens stay on disk until they are recalled.

    Raises:
        MemoryNotFoundError: Nothing is saved there.
        CorruptMemoryError: The save is truncated, altered, or of a newer format.
        MemoryMismatchError: It was made by another model.
    """
    if not (folder / MANIFEST).exists():
        raise MemoryNotFoundError(f"{folder}: no saved memory. Expected a folder with {MANIFEST} in it.")
    manifest = _read_manifest(folder)
    try:
        config = MemoryConfig(**manifest["config"])
        memory = model.new_memory(seed=int(manifest["seed"]), config=config)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptMemoryError(f"{folder / MANIFEST}: not a memory this version can open ({error}).") from error
    if manifest["model"] != memory.model_fingerprint:
        raise MemoryMismatchError(
            f"{folder}: this memory was made by a model with fingerprint {manifest['model']}, the model given has "
            f"{memory.model_fingerprint}. Load it with the model that wrote it, or write its texts again."
        )
    _check_shards(folder, manifest)
    try:
        memory.commit(_read_state(folder, manifest, memory.state))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptMemoryError(f"{folder}: its parts do not fit together ({error}).") from error
    return memory


# --- manifest -----------------------------------------------------------------------------------------


def _manifest_or_nothing(folder: Path) -> dict[str, Any]:
    try:
        return _read_manifest(folder)
    except (CorruptMemoryError, OSError):
        return {}


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        sealed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest = sealed["memory"]
        text = json.dumps(manifest, indent=1, sort_keys=True)
        intact = hashlib.sha256(text.encode()).hexdigest() == sealed["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptMemoryError(f"{folder / MANIFEST}: not readable ({error}). Restore it from a copy.") from error
    if manifest.get("format") != FORMAT:
        raise CorruptMemoryError(
            f"{folder / MANIFEST}: format {manifest.get('format')!r}, this version reads {FORMAT}. Update mplus."
        )
    if not intact:
        raise CorruptMemoryError(f"{folder / MANIFEST}: was altered after it was saved. Restore it from a copy.")
    return manifest


def _check_shards(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Every shard is there, of the right size and unaltered, before anything of it is used."""
    for name, expected in manifest["shards"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise CorruptMemoryError(f"{folder}: shard {name!r} is missing. Restore it from a copy.")
        if path.stat().st_size != expected["bytes"]:
            raise CorruptMemoryError(
                f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}. It was cut short or altered."
            )
        whole = expected["bytes"] <= VERIFIED_BYTES
        if _head_and_tail(path) != expected["edges"] or (whole and _checksum(path) != expected):
            raise CorruptMemoryError(f"{path}: was altered after it was saved. Restore it from a copy.")


def verify_memory(folder: Path) -> None:
    """Read every byte of a saved memory against its checksums.

    Raises:
        CorruptMemoryError: A shard was altered.
    """
    for name, expected in _read_manifest(folder)["shards"].items():
        if _checksum(folder / name) != expected:
            raise CorruptMemoryError(f"{folder / name}: was altered after it was saved. Restore it from a copy.")


# --- shards -------------------------------------------------------------------------------------------


def _write_shard(folder: Path, name: str, write: Any) -> None:
    """Write a file beside its place, force it to disk, and put it there in one step."""
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
    os.close(handle)
    path = Path(temporary)
    try:
        write(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.chmod(0o600)
        path.replace(folder / name)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        path.unlink(missing_ok=True)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(path))


def _checksum(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest(), "edges": _head_and_tail(path)}


def _head_and_tail(path: Path) -> str:
    """A checksum of a shard's ends, which an open can afford on a memory of any size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(2**16))
        file.seek(max(path.stat().st_size - 2**16, 0))
        digest.update(file.read(2**16))
    return digest.hexdigest()


# --- state --------------------------------------------------------------------------------------------


def _state_tensors(state: MemoryState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for number, track in enumerate(state.tracks):
        tensors |= _token_tensors(f"{number}.short_term", track.short_term)
        every = torch.arange(len(track.pending))
        if len(track.pending):
            pending = Tokens(track.pending.content(every, track.dtype, track.devices), track.pending.provenance)
            tensors |= _token_tensors(f"{number}.pending", pending)
        tensors |= _provenance_tensors(f"{number}.long_term", track.long_term.provenance)
        tensors[f"{number}.long_term.segment"] = track.long_term.segment
        tensors[f"{number}.long_term.row"] = track.long_term.row
    if state.context is not None:
        tensors["context.sources"] = state.context.sources
        tensors |= {f"context.states.{n}": rows for n, rows in enumerate(state.context.states)}
    # Forks and tracks share tensors; a file holds each of its own.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _token_tensors(name: str, tokens: Tokens) -> dict[str, Tensor]:
    content = tokens.content
    found = {f"{name}.retrieval_keys": content.retrieval_keys}
    for kind, layers in (
        ("keys", content.keys),
        ("values", content.values),
        ("states", content.states or ()),
    ):
        found |= {f"{name}.{kind}.{layer}": rows for layer, rows in enumerate(layers)}
    return found | _provenance_tensors(name, tokens.provenance)


def _provenance_tensors(name: str, provenance: Provenance) -> dict[str, Tensor]:
    return {f"{name}.{field}": tensor for field, tensor in vars(provenance).items()}


def _read_state(folder: Path, manifest: Mapping[str, Any], empty: MemoryState) -> MemoryState:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(folder / manifest["state"]))
    except (SafetensorError, OSError) as error:
        raise CorruptMemoryError(f"{folder / manifest['state']}: not readable ({error}).") from error
    tracks: list[Track] = []
    for number, track in enumerate(empty.tracks):
        segments = tuple(_open(folder, name) for name in manifest["long_term"][number])
        long_term = LongTermMemory(
            segments,
            _provenance(tensors, f"{number}.long_term"),
            tensors[f"{number}.long_term.segment"],
            tensors[f"{number}.long_term.row"],
        )
        _check_rows(long_term)
        pending = LongTermMemory.empty()
        if f"{number}.pending.ages" in tensors:
            waiting = _tokens(tensors, f"{number}.pending", track)
            pending = pending.append(Segment.store(waiting.content, "auto", None), waiting.provenance)
        tracks.append(
            Track(
                track.layers,
                track.recall_layer,
                _tokens(tensors, f"{number}.short_term", track),
                pending,
                long_term,
            )
        )
    context = None
    if manifest["has_context"]:
        devices = [device for track in empty.tracks for device in track.devices]
        rows = tuple(tensors[f"context.states.{n}"].to(device) for n, device in enumerate(devices))
        context = Context(rows, tensors["context.sources"])
    tail = manifest["tail"]
    return MemoryState(
        tuple(tracks),
        digest=str(manifest["digest"]),
        context=context,
        tail=Tail(tuple(map(int, tail["input_ids"])), tuple(map(int, tail["sources"]))),
        sources=tuple(_source_record(source) for source in manifest["sources"]),
        **{name: int(count) for name, count in manifest["counters"].items()},
    )


def _open(folder: Path, name: str) -> Segment:
    return open_segment(folder / name, name=name.removeprefix("segment-").removesuffix(".safetensors"))


def _check_rows(store: LongTermMemory) -> None:
    sizes = torch.tensor([len(segment) for segment in store.segments] or [0])
    if len(store) and (
        int(store.segment.min()) < 0
        or int(store.segment.max()) >= len(store.segments)
        or int(store.row.min()) < 0
        or bool((store.row >= sizes[store.segment]).any())
    ):
        raise CorruptMemoryError("a long-term token points outside its segment")


def _provenance(tensors: dict[str, Tensor], name: str) -> Provenance:
    found = {field: tensors[f"{name}.{field}"] for field in ("ages", "recall_frequencies", "sources", "chunks")}
    if len({len(tensor) for tensor in found.values()}) > 1:
        raise CorruptMemoryError(f"the columns of {name!r} have different lengths")
    return Provenance(**found)


def _tokens(tensors: dict[str, Tensor], name: str, track: Track) -> Tokens:
    """A pool, checked against the shapes that the model makes."""
    like = track.short_term.content

    def layers(kind: str) -> tuple[Tensor, ...]:
        pattern = getattr(like, kind) or ()
        return tuple(tensors[f"{name}.{kind}.{n}"].to(device=p.device, dtype=p.dtype) for n, p in enumerate(pattern))

    content = Content(layers("keys"), layers("values"), tensors[f"{name}.retrieval_keys"], layers("states") or None)
    provenance = _provenance(tensors, name)
    for ours, pattern in zip((*content.keys, *content.values), (*like.keys, *like.values), strict=True):
        if ours.shape != (len(provenance), *pattern.shape[1:]):
            raise CorruptMemoryError(f"{name!r} holds rows of shape {tuple(ours.shape[1:])}")
    return Tokens(content, provenance)


def _source_record(saved: dict[str, Any]) -> SourceRecord:
    texts = tuple(saved.pop("texts", ()))
    return SourceRecord(**saved, texts=texts)
