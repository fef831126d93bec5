"""Segments as safetensors files that are memory-mapped when opened."""

import os
import tempfile
from pathlib import Path

from torch import Tensor

from mplus.errors import CorruptMemoryError
from mplus.memory.tiers import Plane, Segment


def segment_tensors(segment: Segment) -> dict[str, Tensor]:
    """Every tensor of a segment under its name in the file."""
    named: dict[str, Tensor] = {}
    kinds = (("keys", segment.keys), ("values", segment.values), ("states", segment.states or ()))
    planes = [(f"{kind}.{layer}", plane) for kind, layers in kinds for layer, plane in enumerate(layers)]
    for name, plane in [("retrieval_keys", segment.retrieval_keys), *planes]:
        named[name] = plane.data.contiguous()
        if plane.scale is not None:
            named[f"{name}.scale"] = plane.scale.contiguous()
    return named


def write_segment(segment: Segment, path: Path) -> None:
    """Write one segment file and force it to disk."""
    from safetensors.torch import save_file

    save_file(segment_tensors(segment), str(path))
    with path.open("rb") as file:
        os.fsync(file.fileno())


def open_segment(path: Path, *, name: str) -> Segment:
    """Map a segment file: rows are read from disk when they are recalled.

    Raises:
        CorruptMemoryError: The file is not a segment.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            named = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptMemoryError(f"{path.name}: not a readable segment of a saved memory ({error}).") from error

    def planes(kind: str) -> tuple[Plane, ...]:
        found: list[Plane] = []
        while (data := named.get(f"{kind}.{len(found)}")) is not None:
            found.append(Plane(data, named.get(f"{kind}.{len(found)}.scale")))
        return tuple(found)

    if "retrieval_keys" not in named or not planes("keys"):
        raise CorruptMemoryError(f"{path.name}: lacks the tensors of a segment; it holds {sorted(named)[:3]}.")
    # Recall scores every retrieval key, so these are brought into host memory for good.
    scale = named.get("retrieval_keys.scale")
    retrieval_keys = Plane(named["retrieval_keys"].clone(), None if scale is None else scale.clone())
    return Segment(planes("keys"), planes("values"), retrieval_keys, planes("states") or None, name=name)


def spilled(segment: Segment) -> Segment:
    """The same segment, its keys and values on disk in a file that ends with the last tensor using it.

    The file has no name once it is mapped, so nothing is left behind, not even by a killed process.
    """
    handle, name = tempfile.mkstemp(prefix="mplus-", suffix=".segment")
    os.close(handle)
    path = Path(name)
    try:
        write_segment(segment, path)
        return open_segment(path, name=segment.name)
    finally:
        path.unlink()
