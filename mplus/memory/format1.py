"""Memories saved in the first format, read only: a save over one is of the present format.

memory.json                   everything that is no tensor, and SHA-256 of all shards
state-<digest>.safetensors    short-term and pending tokens, provenance, context
segment-<name>.safetensors    one long-term segment each
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mplus.errors import CorruptMemoryError
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import Context, MemoryState, SourceRecord, Tail, Track
from mplus.memory.state_files import check_rows
from mplus.memory.tiers import Plane, Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.storage.shards import open_regular
from mplus.words import no_words

if TYPE_CHECKING:
    from mplus.memory.memory import Memory
    from mplus.memory.saving import MemoryMaker


def load_memory(folder: Path, text: bytes, model: "MemoryMaker") -> "Memory":
    """Open a memory of the first format; all of it is read and checked.

    Raises:
        CorruptMemoryError: The save is truncated or altered.
        MemoryMismatchError: It was made by another model.
    """
    from mplus.memory.saving import new_memory_for

    manifest = _manifest(folder, text)
    try:
        config, seed, fingerprint = manifest["config"], int(manifest["seed"]), manifest["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptMemoryError(f"{folder}: not a memory this version can open ({error}).") from error
    memory = new_memory_for(folder / "memory.json", model, config, seed, fingerprint)
    _check_shards(folder, manifest)
    try:
        memory.commit(_state(folder, manifest, memory.state))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptMemoryError(f"{folder}: its parts do not fit together ({error!r:.200}).") from error
    return memory


def verify_memory(folder: Path, text: bytes) -> None:
    """Read every byte of a memory of the first format against its checksums.

    Raises:
        CorruptMemoryError: Something was altered.
    """
    _check_shards(folder, _manifest(folder, text))


def _manifest(folder: Path, text: bytes) -> dict[str, Any]:
    try:
        sealed = json.loads(text)
        manifest = sealed["memory"]
        again = json.dumps(manifest, indent=1, sort_keys=True)
        intact = hashlib.sha256(again.encode()).hexdigest() == sealed["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptMemoryError(f"{folder}: memory.json is not readable ({error}). Restore it.") from error
    if not intact:
        raise CorruptMemoryError(f"{folder}: memory.json was altered after it was saved. Restore it from a copy.")
    return manifest


def _check_shards(folder: Path, manifest: Mapping[str, Any]) -> None:
    for name, expected in manifest["shards"].items():
        if Path(name).name != name:
            raise CorruptMemoryError(f"{folder}: names a shard {name!r:.80}, which no save makes.")
        digest, size = hashlib.sha256(), 0
        with open_regular(folder / name) as file:
            while block := file.read(2**22):
                digest.update(block)
                size += len(block)
        if size != expected["bytes"] or digest.hexdigest() != expected["sha256"]:
            raise CorruptMemoryError(f"{folder / name}: was cut short or altered after it was saved. Restore it.")


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CorruptMemoryError(f"{path}: not readable ({error}). Restore it from a copy.") from error


def _state(folder: Path, manifest: Mapping[str, Any], empty: MemoryState) -> MemoryState:
    tensors = {name: tensor.clone() for name, tensor in _tensors(folder / manifest["state"]).items()}
    tracks: list[Track] = []
    for number, track in enumerate(empty.tracks):
        long_term = LongTermMemory(
            tuple(_segment(folder, name) for name in manifest["long_term"][number]),
            _provenance(tensors, f"{number}.long_term"),
            tensors[f"{number}.long_term.segment"],
            tensors[f"{number}.long_term.row"],
        )
        check_rows(long_term)
        pending = LongTermMemory.empty()
        if f"{number}.pending.ages" in tensors:
            waiting = _tokens(tensors, f"{number}.pending", track)
            pending = pending.append(Segment.store(waiting.content, "auto"), waiting.provenance)
        short_term = _tokens(tensors, f"{number}.short_term", track)
        tracks.append(Track(track.layers, track.recall_layer, short_term, pending, long_term))
    context = None
    if manifest["has_context"]:
        devices = [device for track in empty.tracks for device in track.devices]
        rows = tuple(tensors[f"context.states.{n}"].to(device) for n, device in enumerate(devices))
        context = Context(rows, tensors["context.sources"])
    tail, counters = manifest["tail"], {name: int(count) for name, count in manifest["counters"].items()}
    return MemoryState(
        tuple(tracks),
        digest=str(manifest["digest"]),
        context=context,
        tail=Tail(tuple(map(int, tail["input_ids"])), tuple(map(int, tail["sources"]))),
        sources=tuple(SourceRecord(**(s | {"texts": tuple(s.get("texts", ()))})) for s in manifest["sources"]),
        written_tokens=counters["written_tokens"],
        text_tokens=counters["text_tokens"],
        num_chunks=counters["num_chunks"],
        waiting_tokens=counters["waiting_tokens"],
    )


def _segment(folder: Path, name: str) -> Segment:
    named = _tensors(folder / name)

    def planes(kind: str) -> tuple[Plane, ...]:
        found: list[Plane] = []
        while (data := named.get(f"{kind}.{len(found)}")) is not None:
            found.append(Plane(data, named.get(f"{kind}.{len(found)}.scale")))
        return tuple(found)

    inner = name.removeprefix("segment-").removesuffix(".safetensors")
    scored = Plane(named["retrieval_keys"].clone(), None)
    return Segment(planes("keys"), planes("values"), scored, planes("states") or None, name=inner)


def _provenance(tensors: dict[str, Tensor], name: str) -> Provenance:
    found = {field: tensors[f"{name}.{field}"] for field in ("ages", "recall_frequencies", "sources", "chunks")}
    if len({len(tensor) for tensor in found.values()}) > 1:
        raise CorruptMemoryError(f"the columns of {name!r} have different lengths")
    return Provenance(**found, words=no_words(len(found["ages"])))


def _tokens(tensors: dict[str, Tensor], name: str, track: Track) -> Tokens:
    """A pool, checked against the shapes that the model makes."""
    like = track.short_term.content

    def layers(patterns: tuple[Tensor, ...] | None, kind: str) -> tuple[Tensor, ...]:
        return tuple(
            tensors[f"{name}.{kind}.{n}"].to(device=p.device, dtype=p.dtype) for n, p in enumerate(patterns or ())
        )

    content = Content(
        layers(like.keys, "keys"),
        layers(like.values, "values"),
        tensors[f"{name}.retrieval_keys"],
        layers(like.states, "states") or None,
    )
    provenance = _provenance(tensors, name)
    for ours, pattern in zip((*content.keys, *content.values), (*like.keys, *like.values), strict=True):
        if ours.shape != (len(provenance), *pattern.shape[1:]):
            raise CorruptMemoryError(f"{name!r} holds rows of shape {tuple(ours.shape[1:])}")
    return Tokens(content, provenance)
