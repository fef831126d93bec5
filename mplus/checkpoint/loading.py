"""A model folder becomes ``Weights``: published M+, our own save, or a plain backbone.

folder/config.json, model.safetensors, tokenizer…   the backbone, as transformers saves it
folder/mplus.json, mplus.safetensors                our trained parts, where there are any
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mplus.backbone.adapters import Adapter, LoraWeights
from mplus.backbone.backbone import Backbone
from mplus.backbone.cpu import computes_bfloat16, is_slow_in
from mplus.backbone.few_rows import check_decode_dtype, prepare_for_decoding
from mplus.backbone.own_layers import UNKNOWN_WINDOW, OwnLayers
from mplus.backbone.quantised import dense
from mplus.checkpoint.backbone_files import (
    load_backbone,
    load_tokenizer,
    read_config,
    round_rope_frequencies,
    transformers_config,
)
from mplus.checkpoint.gguf_model import gguf_config, gguf_tokenizer
from mplus.checkpoint.limits import check_file, check_files
from mplus.checkpoint.parts import PARTS_FILE, TrainedParts, read_memory_config, read_parts
from mplus.checkpoint.published_layout import backbone_config, is_published, published_memory_config, read_published
from mplus.checkpoint.trial import TrainedLayers, through_adapter, tried
from mplus.config import MemoryConfig, Recall
from mplus.decline_head import DeclineHead
from mplus.errors import CheckpointError, UnsupportedModelError
from mplus.recall.attention_scorer import AttentionScorer
from mplus.recall.embedding_scorer import EmbeddingScorer
from mplus.recall.fused_scorer import FusedScorer
from mplus.recall.late_interaction import LateInteraction
from mplus.recall.published_retriever import PublishedRetriever
from mplus.recall.scorer import Scorer
from mplus.weights import Weights
from mplus.words import Words

CALIBRATION_TEXT = Path(__file__).with_name("calibration.txt")


@dataclass(frozen=True)
class Loaded:
    """A model folder, loaded."""

    weights: Weights
    tokenizer: Any
    memory: MemoryConfig
    """The layout that the checkpoint names, else the preset for its backbone."""
    parts: TrainedParts


def load(
    folder: Path,
    *,
    device: str | Mapping[str, Any],
    dtype: str,
    attention: str,
    decode_dtype: str | None = None,
    trained: Path | None = None,
    gguf_file: str | None = None,
    **options: Any,
) -> Loaded:
    """Load a model folder.

    Args:
        folder: Backbone, published checkpoint or our own save.
        device: "auto", a torch device, or an accelerate device map.
        dtype: "auto", a torch dtype by name, or "int8": bfloat16, or float32 where the CPU has no bfloat16, and
            ``decode_dtype="int8"``.
        attention: "auto", "sdpa", "eager" or "flash_attention_2".
        decode_dtype: How coarse the copies of weights may be with which a CPU answers: "auto" or "int8"; None: there
            are none.
        trained: Where our trained parts are, if not in ``folder``.
        gguf_file: The GGUF file in the folder that is the backbone.
        options: Passed on to transformers (quantization_config, offload_folder, …).

    Raises:
        CheckpointError: Weights are missing, of the wrong shape, or would be dropped.
        UnsupportedModelError: A backbone that M+ cannot read and write.
    """
    check_decode_dtype(decode_dtype)
    if trained is not None:
        check_files(trained)
    if gguf_file is None:
        check_files(folder)
        config = read_config(folder)
    else:
        check_file(folder / gguf_file)
        config = gguf_config(folder / gguf_file)
        options = options | {"gguf_file": gguf_file}
    if dtype == "int8":
        dtype, decode_dtype = "bfloat16" if computes_bfloat16() else "float32", decode_dtype or "int8"
    if is_published(config):
        state_dict, parts = read_published(folder, config)
        model = load_backbone(folder, backbone_config(config), state_dict, device, dtype, attention, options)
        if config.get("torch_dtype") == "bfloat16":
            round_rope_frequencies(model)
    else:
        parts_folder = trained or folder
        parts = read_parts(parts_folder) if (parts_folder / PARTS_FILE).exists() else TrainedParts()
        model = load_backbone(folder, config, None, device, dtype, attention, options)
    trusted = bool(options.get("trust_remote_code"))
    tokenizer = load_tokenizer(folder, trusted=trusted) if gguf_file is None else gguf_tokenizer(folder / gguf_file)
    weights = assemble(model, tokenizer, parts)
    if is_slow_in(weights.backbone.dtype, weights.backbone.device):
        warnings.warn(
            "dtype='bfloat16': this CPU computes bfloat16 in software, dozens of times slower than float32. Load the "
            "model with dtype='float32'.",
            stacklevel=2,
        )
    if decode_dtype is not None:
        prepare_for_decoding([*weights.backbone.trees, *weights.for_text.backbone.trees], decode_dtype)
    return Loaded(weights, tokenizer, parts.memory or MemoryConfig.for_window(weights.backbone.window), parts)


def memory_settings(folder: Path, trained: Path | None = None) -> MemoryConfig:
    """What ``load`` would make of a model folder's memory settings, read without its weights.

    Args:
        folder: Backbone, published checkpoint or our own save.
        trained: Where our trained parts are, if not in ``folder``.

    Raises:
        CheckpointError: A file is missing or cannot be read.
    """
    from transformers import CONFIG_MAPPING

    config = read_config(folder)
    if is_published(config):
        return published_memory_config(config)
    said = read_memory_config(trained or folder)
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:  # whose code does not run for this
        return said or MemoryConfig.for_window(int(config.get("max_position_embeddings") or UNKNOWN_WINDOW))
    about = transformers_config(folder, config).get_text_config(decoder=True)
    return said or MemoryConfig.for_window(int(getattr(about, "max_position_embeddings", None) or UNKNOWN_WINDOW))


def assemble(model: Any, tokenizer: Any, parts: TrainedParts) -> Weights:
    """Put a backbone and its trained parts together, calibrating what was not trained."""
    bos = _sink_token(model, tokenizer)
    cast = caster(model)
    adapter = _cast_adapter(parts.read_adapter, cast)
    reads_text = parts.adapter_reads == "text"
    backbone, _ = tried(
        model,
        bos,
        TrainedLayers(
            _cast_adapter(parts.write_adapter, cast),
            None if reads_text else adapter,
            None if parts.bos_states is None else cast(parts.bos_states),
            parts.write_from,
        ),
    )
    if isinstance(backbone, OwnLayers):
        _refuse_writing_parts(backbone, parts)
    recall_layer = parts.recall_layer
    if recall_layer is None:
        recall_layer = min(max(backbone.num_layers // 5, 1), backbone.num_layers - 1)
    scorers: dict[Recall, Scorer] = {}
    if backbone.scores_by_attention:
        attentions = backbone.projections()
        scorers["attention"] = AttentionScorer(attentions, backbone.num_key_value_heads, backbone.head_size)
    if parts.published is not None:
        scorers["published"] = beside_layers(parts.published, backbone)
    scorers["late"] = parts.late if parts.late is not None else calibrated(backbone, tokenizer)
    scorers |= with_embeddings(scorers)
    position = None if parts.write_position is None else cast(parts.write_position)
    words = None if tokenizer is None else Words(tokenizer)
    return Weights(
        backbone,
        scorers,
        recall_layer,
        fingerprints(backbone, parts),
        position,
        words,
        tokenizer,
        parts.gate,
        decline_head=_on_device(parts.decline_head, backbone),
        text_backbone=through_adapter(backbone, adapter) if reads_text and adapter else None,
    )


def _on_device(head: DeclineHead | None, backbone: Backbone) -> DeclineHead | None:
    """The decline head beside the layer whose input it looks at."""
    if head is None:
        return None
    if head.layer >= backbone.num_layers or head.state.in_features != backbone.hidden_size:
        raise CheckpointError(
            f"The decline head is for states of {head.state.in_features} numbers at layer {head.layer}; this model has "
            f"{backbone.num_layers} layers of {backbone.hidden_size}. Train it on this model: --stages decline."
        )
    return head.to(backbone.layer_device(head.layer))


def _refuse_writing_parts(backbone: OwnLayers, parts: TrainedParts) -> None:
    """Refuse trained parts of the published write, where layers are called as they are."""
    if parts.write_adapter or parts.bos_states is not None:
        raise UnsupportedModelError(
            f"Backbone type {backbone.model.config.model_type!r} is read by its own layers, while a write adapter or "
            "bos vectors were trained for it. Remove mplus.json and mplus.safetensors from its folder."
        )


def with_embeddings(scorers: Mapping[Recall, Scorer]) -> dict[Recall, Scorer]:
    """The scorers of memories whose chunks have vectors of the user's embedder: by these alone, or beside another."""
    alone = EmbeddingScorer(scorers["late"])
    found: dict[Recall, Scorer] = {"embedding": alone}
    beside: dict[Recall, Recall] = {
        "embedding+late": "late",
        "embedding+attention": "attention",
        "embedding+published": "published",
    }
    for name, other in beside.items():
        if other in scorers:
            found[name] = FusedScorer(scorers[other], alone, lambda config: config.embedding_weight)
    return found


def beside_layers(retriever: PublishedRetriever, backbone: Backbone) -> PublishedRetriever:
    """The same retriever, with the parts of each layer on the device of that layer."""
    for projections in (retriever.query_projections, retriever.key_projections):
        for layer, projection in enumerate(projections):
            projection.to(device=backbone.layer_device(layer), dtype=backbone.dtype)
    return retriever


def calibrated(backbone: Backbone, tokenizer: Any) -> LateInteraction:
    """Late interaction without training: centre and spread of each layer's states on a fixed short text."""
    if tokenizer is None:
        ids = torch.randint(backbone.vocabulary_size, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    else:
        text = CALIBRATION_TEXT.read_text(encoding="utf-8")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:768]
    with torch.no_grad():
        states = backbone.plain_states(torch.tensor(ids), backbone.num_layers - 1)
        normed = [
            backbone.normed(backbone.write_layers, layer, state).float().cpu() for layer, state in enumerate(states)
        ]
    # The first rows are attention sinks: far from all other rows, and the same in every text.
    mean = torch.stack([rows[4:].mean(dim=0) for rows in normed])
    deviation = torch.stack([rows[4:].std(dim=0) for rows in normed]).clamp(min=1e-4)
    return LateInteraction(mean, deviation)


def _sink_token(model: Any, tokenizer: Any) -> int:
    for holder in (tokenizer, model.config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(holder, name, None)
            token = token[0] if isinstance(token, list) and token else token
            if isinstance(token, int):
                return token
    return 0


def caster(model: Any) -> Any:
    """Brings tensors to a model's dtype and device."""
    weight = model.get_input_embeddings().weight
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    return lambda tensor: tensor.to(device=device, dtype=model.dtype)


def _cast_adapter(adapter: Adapter | None, cast: Any) -> dict[str, LoraWeights] | None:
    if not adapter:
        return None
    return {name: LoraWeights(cast(w.down), cast(w.up), w.scale) for name, w in adapter.items()}


def fingerprints(backbone: Backbone, parts: TrainedParts) -> dict[Recall, str]:
    """Identify weights by a sample of every tensor: memories of other weights are refused by it.

    The paper's retriever counts only where a memory recalls by it: a model that gets one, to be compared with,
    still opens the memories it has made.
    """
    digest = hashlib.sha256()
    model = backbone.model
    named: list[tuple[str, Tensor]] = [(n, present(model, n, p)) for n, p in model.named_parameters()]
    # Memories do not depend on how text is read.
    read_adapter = None if parts.adapter_reads == "text" else parts.read_adapter
    for role, adapter in (("write", parts.write_adapter), ("read", read_adapter)):
        for name, weights in sorted((adapter or {}).items()):
            named += [(f"{role}.{name}.down", weights.down), (f"{role}.{name}.up", weights.up)]
    named += _named("late", parts.late)
    about = [model.config.model_type, backbone.num_layers, backbone.hidden_size]
    about += [] if parts.write_from is None else [parts.write_from]
    about += ["keys without bias"] if any(offset is not None for offset in backbone.key_offsets) else []
    digest.update(json.dumps(about).encode())
    digest.update(_sampled(named))
    with_retriever = digest.copy()
    with_retriever.update(_sampled(_named("published", parts.published)))
    own, published = digest.hexdigest()[:32], with_retriever.hexdigest()[:32]
    return {
        "late": own,
        "attention": own,
        "published": published,
        "embedding": own,
        "embedding+late": own,
        "embedding+attention": own,
        "embedding+published": published,
    }


def present(model: nn.Module, name: str, parameter: Tensor) -> Tensor:
    """A parameter with its numbers: of one that accelerate keeps on disk, those that are there.

    Raises:
        CheckpointError: Nothing knows its numbers.
    """
    if parameter.device.type != "meta":
        return parameter
    owner, _, own = name.rpartition(".")
    hook: Any = getattr(model.get_submodule(owner), "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        kept: Any = getattr(one, "weights_map", None)
        if kept is not None and own in kept:
            return kept[own]
    raise CheckpointError(f"The weights of {name!r} are neither in memory nor offloaded. Load the model again.")


def _named(kind: str, module: nn.Module | None) -> list[tuple[str, Tensor]]:
    return [(f"{kind}.{name}", tensor) for name, tensor in (module.named_parameters() if module is not None else ())]


def _sampled(named: Sequence[tuple[str, Tensor]]) -> bytes:
    found: list[bytes] = []
    for name, tensor in named:
        flat = dense(tensor).flatten()
        sample = flat[:: max(len(flat) // 32, 1)][:32].to(device="cpu", dtype=torch.float32)
        found += [f"{name}{tuple(tensor.shape)}".encode(), sample.bfloat16().view(torch.int16).numpy().tobytes()]
    return b"".join(found)
