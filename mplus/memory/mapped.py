"""Segments whose rows stay in a shard file until they are recalled."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.errors import CorruptMemoryError
from mplus.memory.precision import Plane
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content
from mplus.memory.vectors import ChunkVectors, VectorBlock
from mplus.storage.shards import OpenShard, write_shard

INPUT_IDS = "input_ids"
"""Name of token ids in a file."""


class ShardPlane(Plane):
    """A plane in a shard file: rows are read, and checked or decrypted, when they are used."""

    def __init__(self, shard: OpenShard, name: str) -> None:
        # Both fields of the base class are read from the file, so only the position in the file is stored.
        object.__setattr__(self, "_shard", shard)
        object.__setattr__(self, "_names", [n for n in (name, f"{name}.scale") if n in shard.table.tensors])

    _shard: OpenShard
    _names: list[str]
    """Names of the tensor and, if it is quantised, of its scales."""

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The whole tensor."""
        return self._shard.whole(self._names[0])

    @property
    def scale(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All scales, if it is stored in int8 or int4."""
        return self._shard.whole(self._names[1]) if len(self._names) > 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor and its scales."""
        return sum(self._shard.table.tensors[name].nbytes for name in self._names)

    def __len__(self) -> int:
        return self._shard.table.tensors[self._names[0]].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which it is stored."""
        return self._shard.table.tensors[self._names[0]].dtype

    def resident(self) -> Plane:
        """A copy of the plane in host memory."""
        return self._read(self._shard.resident)

    def take(self, index: Int[Tensor, " T"] | slice) -> Plane:
        """The rows at ``index`` in their stored form."""
        return self._read(lambda name: self._shard.rows(name, index))

    def prefetch(self, index: Int[Tensor, " T"] | slice) -> None:
        """Start reading the rows at ``index`` from disk in the background."""
        for name in self._names:
            self._shard.prefetch(name, index)

    def _read(self, read: Callable[[str], Tensor]) -> Plane:
        parts = [read(name) for name in self._names]
        return Plane(parts[0], parts[1] if len(parts) > 1 else None)


def segment_tensors(segment: Segment) -> dict[str, Tensor]:
    """Every tensor of a segment under its name in the file."""
    named: dict[str, Tensor] = {}
    for name, plane in named_parts(segment).items():
        named[name], scale = plane.data, plane.scale
        if scale is not None:
            named[f"{name}.scale"] = scale
    return named


def named_parts(held: Content | Segment) -> dict[str, Any]:
    """Tensors of content, or planes of a segment, under their names in a file."""
    kinds = {"keys": held.keys, "values": held.values, "states": held.states or ()}
    layers = {f"{kind}.{layer}": rows for kind, found in kinds.items() for layer, rows in enumerate(found)}
    ids = {} if held.input_ids is None else {INPUT_IDS: held.input_ids}
    return {"retrieval_keys": held.retrieval_keys, **ids, **layers}


def opened_segment(shard: OpenShard, like: Content, *, name: str) -> Segment:
    """A segment in a shard file; only its retrieval keys are read now, since recall scores all of them.

    Args:
        shard: The file.
        like: Content of the segment's track, for the shapes that the segment must have.
        name: Name of the segment.

    Raises:
        CorruptMemoryError: The file does not hold the tensors of a segment of this track.
    """
    _check_shapes(shard, like)
    scored = ShardPlane(shard, "retrieval_keys").resident().in_host_memory()
    return _in_shard(shard, like, scored, name)


def _in_shard(shard: OpenShard, like: Content | Segment, scored: Plane, name: str) -> Segment:
    def planes(kind: str, layers: Sequence[Any]) -> tuple[Plane, ...]:
        return tuple(ShardPlane(shard, f"{kind}.{layer}") for layer in range(len(layers)))

    states = None if like.states is None else planes("states", like.states)
    ids = None if like.input_ids is None else ShardPlane(shard, INPUT_IDS)
    return Segment(planes("keys", like.keys), planes("values", like.values), scored, states, "disk", ids, name)


def read_content(shard: OpenShard, like: Content) -> Content:
    """All content of a shard file, on the devices and in the dtype of its track.

    Raises:
        CorruptMemoryError: The file does not hold the tensors of this track.
    """
    _check_shapes(shard, like)

    def layers(kind: str, patterns: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Copied, so that a change on disk cannot reach a memory in use.
        return tuple(
            torch.clone(shard.whole(f"{kind}.{n}")).to(device=p.device, dtype=p.dtype) for n, p in enumerate(patterns)
        )

    return Content(
        layers("keys", like.keys),
        layers("values", like.values),
        shard.whole("retrieval_keys").clone().to(device=like.retrieval_keys.device, dtype=like.retrieval_keys.dtype),
        layers("states", like.states) if like.states is not None else None,
        shard.whole(INPUT_IDS).clone() if like.input_ids is not None else None,
    )


def vector_tensors(block: VectorBlock) -> dict[str, Tensor]:
    """Every tensor of a block of vectors under its name in the file."""
    scale = block.vectors.scale
    return {"chunks": block.chunks, "vectors": block.vectors.data} | ({} if scale is None else {"vectors.scale": scale})


def read_vectors(embedder: str, shards: Sequence[OpenShard]) -> ChunkVectors:
    """The vectors of a track, read into host memory, since recall scores all of them.

    Raises:
        CorruptMemoryError: The files do not hold vectors of one size, in the order of their chunks.
    """
    blocks: list[VectorBlock] = []
    for shard in shards:
        chunks, plane = shard.whole("chunks").clone(), ShardPlane(shard, "vectors").resident()
        like = blocks[0].vectors.data if blocks else plane.data
        fits = plane.data.dim() == 2 and plane.data.shape[1] == like.shape[-1] and chunks.shape == plane.data.shape[:1]
        scaled = plane.data.dtype.is_floating_point or (
            plane.data.dtype == torch.int8 and plane.scale is not None and plane.scale.shape == (len(plane), 1)
        )
        if not fits or not scaled or chunks.dtype != torch.int64 or not embedder:
            raise CorruptMemoryError("these are not the vectors of chunks", shard.path)
        blocks.append(VectorBlock(chunks, plane))
    vectors = ChunkVectors(embedder, tuple(blocks))
    if not bool((vectors.chunks.diff() > 0).all()):
        raise CorruptMemoryError("vectors are not in the order of their chunks")
    return vectors


def _check_shapes(shard: OpenShard, like: Content) -> None:
    expected = {name: tuple(pattern.shape[1:]) for name, pattern in named_parts(like).items()}
    held = shard.table.tensors
    length = held["retrieval_keys"].shape[0] if "retrieval_keys" in held else -1
    for name, shape in expected.items():
        tensor = held.get(name)
        found = None if tensor is None else tensor.shape
        if tensor is not None and tensor.dtype == torch.uint8:
            found = (*tensor.shape[:-1], 2 * tensor.shape[-1])  # four bits, two to a byte
        if tensor is None or found != (length, *shape):
            raise CorruptMemoryError(f"{name} has shape {found}, expected {(length, *shape)}", shard.path)
        if name == INPUT_IDS:
            if tensor.dtype != torch.int32:
                raise CorruptMemoryError(f"{name} is {tensor.dtype}, expected torch.int32", shard.path)
            continue
        scale = held.get(f"{name}.scale")
        if not tensor.dtype.is_floating_point and scale is None:
            raise CorruptMemoryError(f"{name} is {tensor.dtype} without scales", shard.path)
        if scale is not None and (scale.shape != (length, *shape[:-1], 1) or not scale.dtype.is_floating_point):
            raise CorruptMemoryError(f"the scales of {name} have shape {scale.shape}", shard.path)


def spilled(segment: Segment) -> Segment:
    """The same segment with keys and values in a file on disk, which is freed with the last tensor that uses it.

    The file's name is removed as soon as the file is mapped, so that even a killed process leaves nothing behind.
    """
    handle, name = tempfile.mkstemp(prefix="mplus-", suffix=".segment")
    path = Path(name)
    try:
        with open(handle, "wb") as file:
            written = write_shard(file, path.name, segment_tensors(segment), None)
        shard = OpenShard(path, written)
    finally:
        path.unlink()
    return _in_shard(shard, segment, segment.retrieval_keys, segment.name)
