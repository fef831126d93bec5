"""Trained parts of a model: what M+ adds to a backbone, as files beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mplus.backbone.adapters import Adapter, LoraWeights
from mplus.checkpoint.limits import MAX_LAYERS, read_settings
from mplus.confidence import Calibration
from mplus.config import PRESETS, MemoryConfig
from mplus.decline_head import DeclineHead, ReadAs
from mplus.errors import CheckpointError
from mplus.recall.gate import Gate
from mplus.recall.late_interaction import LateInteraction
from mplus.recall.published_retriever import PublishedRetriever

FORMATS = (1, 2, 3)
"""Formats that are read; the second one has ``write_from``, the third a read adapter for text."""
MOST_SCALE = 1e6
MOST_TURNS = 2**20
MOST_ODDS = 1000
PARTS_FILE, PARTS_TENSORS = "mplus.json", "mplus.safetensors"


@dataclass(frozen=True)
class InitialMemory:
    """The memory that comes with a published checkpoint, by layer."""

    short_term: tuple[Tensor, ...]
    long_term: tuple[Tensor, ...]
    long_term_keys: tuple[Tensor, ...]
    long_term_ages: tuple[Tensor, ...]
    long_term_frequencies: tuple[Tensor, ...]


@dataclass(frozen=True)
class TrainedParts:
    """What training adds to a backbone; everything is optional."""

    memory: MemoryConfig | None = None
    recall_layer: int | None = None
    write_adapter: Adapter | None = None
    read_adapter: Adapter | None = None
    late: LateInteraction | None = None
    published: PublishedRetriever | None = None
    bos_states: Tensor | None = None
    write_position: Tensor | None = None
    initial: InitialMemory | None = None
    """The memory that a published checkpoint came with."""
    calibration: Calibration | None = None
    """Turns the evidence for an answer into the probability that it is right."""
    prompt_turns: int | None = None
    """How many of a conversation's latest turns stand in the prompt beside the question; None: as many as fit."""
    gate: Gate | None = None
    """Whether a question needs memory at all; None: always."""
    write_from: int | None = None
    """First decoder layer that encodes what is written through the read adapter, too; None: no layer does."""
    decline_threshold: float | None = None
    """Probability from which on an answer from memory declines; None: whenever that is likeliest."""
    decline_head: DeclineHead | None = None
    """Whether what was read answers a question; None: the probability of declining says so."""
    yes_odds: float | None = None
    """What the odds of yes to no are multiplied with where an answer from memory begins; None: nothing."""
    adapter_reads: ReadAs = "latent"
    """What the read adapter was trained to read: latents, or what recall brings as text."""


def write_parts(folder: Path, parts: TrainedParts) -> None:
    """Save trained parts beside a backbone, and the memory a published checkpoint came with."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for role, adapter in (("write_adapter", parts.write_adapter), ("read_adapter", parts.read_adapter)):
        for name, weights in (adapter or {}).items():
            tensors[f"{role}.{name}.down"] = weights.down
            tensors[f"{role}.{name}.up"] = weights.up
            scales[role] = weights.scale
    for kind, module in (
        ("late", parts.late),
        ("published", parts.published),
        ("gate", parts.gate),
        ("decline_head", parts.decline_head),
    ):
        if module is not None:
            tensors |= {f"{kind}.{name}": tensor for name, tensor in module.state_dict().items()}
    for name in ("bos_states", "write_position"):
        if (tensor := getattr(parts, name)) is not None:
            tensors[name] = tensor
    if parts.initial is not None:
        for name, layers in vars(parts.initial).items():
            tensors |= {f"initial.{name}.{layer}": rows for layer, rows in enumerate(layers)}
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, str(folder / PARTS_TENSORS))
    description = {
        "format": 3 if parts.adapter_reads == "text" else 1 if parts.write_from is None else 2,
        "memory": None if parts.memory is None else parts.memory.model_dump(),
        "recall_layer": parts.recall_layer,
        "lora_scale": scales,
        "calibration": None if parts.calibration is None else parts.calibration.model_dump(),
        "prompt_turns": parts.prompt_turns,
        **({} if parts.write_from is None else {"write_from": parts.write_from}),
        "decline_threshold": parts.decline_threshold,
        **({} if (head := parts.decline_head) is None else {"decline_head": {"layer": head.layer, "read": head.read}}),
        **({} if parts.yes_odds is None else {"yes_odds": parts.yes_odds}),
        **({} if parts.adapter_reads == "latent" else {"adapter_reads": parts.adapter_reads}),
    }
    (folder / PARTS_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_parts(folder: Path) -> TrainedParts:
    """Load what ``write_parts`` saved.

    Raises:
        CheckpointError: The files are of a newer format, or a tensor is missing or unknown.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    description = _description(folder)
    try:
        tensors = load_file(str(folder / PARTS_TENSORS))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: trained parts cannot be read ({error}).") from error
    scales = _scales(path := folder / PARTS_FILE, description.get("lora_scale"))
    for name in ("recall_layer", "write_from"):
        _check_layer(path, name, description.get(name))
    parts = TrainedParts(
        _memory(folder, description.get("memory")),
        description.get("recall_layer"),
        _adapter(folder, _section(tensors, "write_adapter"), scales.get("write_adapter")),
        _adapter(folder, _section(tensors, "read_adapter"), scales.get("read_adapter")),
        _late(_section(tensors, "late")),
        _published(_section(tensors, "published")),
        tensors.pop("bos_states", None),
        tensors.pop("write_position", None),
        _initial(_section(tensors, "initial")),
        _calibration(folder, description.get("calibration")),
        _prompt_turns(folder, description.get("prompt_turns")),
        _gate(_section(tensors, "gate")),
        description.get("write_from"),
        _decline_threshold(folder, description.get("decline_threshold")),
        _decline_head(folder, description.get("decline_head"), _section(tensors, "decline_head")),
        _yes_odds(folder, description.get("yes_odds")),
        adapter_reads(folder),
    )
    if tensors:
        raise CheckpointError(f"{folder}: {len(tensors)} tensors would be dropped, first {min(tensors)!r}.")
    return parts


def read_memory_config(folder: Path) -> MemoryConfig | None:
    """The memory settings that trained parts come with, without their tensors; None where there are none.

    Raises:
        CheckpointError: The file is of a newer format, or its settings are unknown.
    """
    return _memory(folder, _description(folder).get("memory")) if (folder / PARTS_FILE).exists() else None


def has_read_adapter(folder: Path) -> bool:
    """Whether trained parts have a read adapter, looked up without their tensors.

    Raises:
        CheckpointError: The file is of a newer format.
    """
    return (folder / PARTS_FILE).exists() and "read_adapter" in _description(folder).get("lora_scale", {})


def adapter_reads(folder: Path) -> ReadAs:
    """What the read adapter of trained parts was trained to read, looked up without their tensors.

    Raises:
        CheckpointError: The file is of a newer format, or names another way of reading.
    """
    said = _description(folder).get("adapter_reads", "latent") if (folder / PARTS_FILE).exists() else "latent"
    if said not in ("latent", "text"):
        raise CheckpointError(
            f'{folder / PARTS_FILE}: adapter_reads={said!r:.40}; expected "latent" or "text", or no such field.'
        )
    return said


def _description(folder: Path) -> dict[str, Any]:
    path = folder / PARTS_FILE
    try:
        description = read_settings(path)
    except OSError as error:
        raise CheckpointError(f"{folder}: trained parts cannot be read ({error}).") from error
    if description.get("format") not in FORMATS:
        raise CheckpointError(
            f"{path}: format {description.get('format')!r}, this version reads {FORMATS[0]} to {FORMATS[-1]}. Update "
            "mplus-memory."
        )
    return description


def _scales(path: Path, saved: Any) -> dict[str, float]:
    """The factor of each adapter."""
    found = cast("dict[str, Any]", saved) if isinstance(saved, dict) else {}
    if not isinstance(saved, dict) or any(type(n) not in (int, float) or abs(n) > MOST_SCALE for n in found.values()):
        raise CheckpointError(f"{path}: lora_scale={saved!r:.80}; expected a number up to {MOST_SCALE:g} by adapter.")
    return {name: float(scale) for name, scale in found.items()}


def _check_layer(path: Path, name: str, saved: Any) -> None:
    if saved is not None and (type(saved) is not int or not 0 <= saved < MAX_LAYERS):
        raise CheckpointError(f"{path}: {name}={saved!r:.40}; expected the number of a layer, or null.")


def _section(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Take the tensors of one kind out of all."""
    names = [name for name in tensors if name.startswith(f"{kind}.")]
    return {name[len(kind) + 1 :]: tensors.pop(name) for name in names}


def _adapter(folder: Path, tensors: dict[str, Tensor], scale: float | None) -> Adapter | None:
    if not tensors:
        return None
    names = sorted({name.rsplit(".", 1)[0] for name in tensors})
    expected = {f"{name}.{factor}" for name in names for factor in ("down", "up")}
    if odd := sorted(expected ^ tensors.keys()):
        raise CheckpointError(f"{folder}: trained parts lack a factor of an adapter, or have one too many: {odd[0]!r}.")
    if scale is None:
        raise CheckpointError(f"{folder}: trained parts lack the scale of an adapter, lora_scale in {PARTS_FILE}.")
    return {name: LoraWeights(tensors[f"{name}.down"], tensors[f"{name}.up"], scale) for name in names}


def _memory(folder: Path, saved: Any) -> MemoryConfig | None:
    """Settings, or the name of a preset."""
    if saved is None:
        return None
    if isinstance(saved, str):
        if saved not in PRESETS:
            raise CheckpointError(f"{folder / PARTS_FILE}: memory={saved!r}; expected one of {', '.join(PRESETS)}.")
        return PRESETS[saved]()
    try:
        return MemoryConfig.model_validate(saved)
    except ValidationError as error:
        raise CheckpointError(f"{folder / PARTS_FILE}: its memory settings are wrong ({_first(error)}).") from error


def _first(error: ValidationError) -> str:
    return ", ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])


def _calibration(folder: Path, saved: Any) -> Calibration | None:
    try:
        return None if saved is None else Calibration.model_validate(saved)
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / PARTS_FILE}: its calibration cannot be used ({_first(error)}). Fit it again."
        ) from error


def _prompt_turns(folder: Path, saved: Any) -> int | None:
    if saved is None or (type(saved) is int and 0 <= saved <= MOST_TURNS):
        return saved
    raise CheckpointError(
        f"{folder / PARTS_FILE}: prompt_turns={saved!r:.40}; expected a number of turns, 0 or more, or null for "
        "as many as fit."
    )


def _decline_threshold(folder: Path, saved: Any) -> float | None:
    if saved is None or (type(saved) in (int, float) and 0 <= saved <= 1):
        return saved
    raise CheckpointError(
        f"{folder / PARTS_FILE}: decline_threshold={saved!r:.40}; expected a probability, 0 to 1, or null for "
        "declining whenever it is likeliest."
    )


def _decline_head(folder: Path, saved: Any, tensors: dict[str, Tensor]) -> DeclineHead | None:
    if saved is None and not tensors:
        return None
    about = cast("dict[str, Any]", saved) if isinstance(saved, dict) else {}
    layer, read = about.get("layer"), about.get("read")
    if type(layer) is not int or not 0 <= layer < MAX_LAYERS or read not in ("latent", "text"):
        raise CheckpointError(
            f"{folder / PARTS_FILE}: decline_head={saved!r:.80}; expected the number of a layer and how memory is "
            'read, as in {"layer": 14, "read": "text"}.'
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    size = (shapes.get("state.weight") or (0,))[-1]
    if not size or shapes != {"state.weight": (1, size), "state.bias": (1,), "own": ()}:
        raise CheckpointError(f"{folder}: the decline head has tensors {shapes}; expected a weight, a bias and own.")
    head = DeclineHead(size, layer, read)
    head.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return head.requires_grad_(False)


def _yes_odds(folder: Path, saved: Any) -> float | None:
    if saved is None or (type(saved) in (int, float) and 1 / MOST_ODDS <= saved <= MOST_ODDS):
        return saved
    raise CheckpointError(
        f"{folder / PARTS_FILE}: yes_odds={saved!r:.40}; expected a factor, 1/{MOST_ODDS} to {MOST_ODDS}, or null for "
        "none."
    )


def _initial(tensors: dict[str, Tensor]) -> InitialMemory | None:
    if not tensors:
        return None
    layers: dict[str, list[Tensor]] = {}
    for name in sorted(tensors, key=lambda n: int(n.rsplit(".", 1)[1])):
        layers.setdefault(name.rsplit(".", 1)[0], []).append(tensors[name])
    return InitialMemory(**{name: tuple(rows) for name, rows in layers.items()})


def _late(tensors: dict[str, Tensor]) -> LateInteraction | None:
    if not tensors:
        return None
    return LateInteraction(
        tensors["mean"],
        tensors["deviation"],
        query_projection=tensors.get("query_projection"),
        key_projection=tensors.get("key_projection"),
        query_weights=tensors.get("query_weights"),
    ).requires_grad_(False)


def _gate(tensors: dict[str, Tensor]) -> Gate | None:
    if not tensors:
        return None
    gate = Gate(tensors["mean"], tensors["deviation"], len(tensors["first.bias"]))
    try:
        gate.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"The gate in {PARTS_TENSORS} is of another version of M+ ({error}). Train it again: mplus train --stages "
            "gate."
        ) from error
    return gate.requires_grad_(False)


def _published(tensors: dict[str, Tensor]) -> PublishedRetriever | None:
    if not tensors:
        return None
    num_layers = 1 + max(int(name.split(".")[1]) for name in tensors)
    width, hidden = tensors["query_projections.0.0.weight"].shape
    with torch.device("meta"):
        module = PublishedRetriever(
            *(
                nn.ModuleList([PublishedRetriever.projection(hidden, width // 2) for _ in range(num_layers)])
                for _ in range(2)
            )
        )
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False)
