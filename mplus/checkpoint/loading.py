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
from typing import Any, cast

import torch
from torch import Tensor, nn

from mplus.backbone.adapters import Adapter, LoraWeights
from mplus.backbone.attention import GROUPED_ATTENTION, register_attention
from mplus.backbone.backbone import Backbone
from mplus.backbone.cpu import is_slow_in
from mplus.backbone.own_layers import UNKNOWN_WINDOW, OwnLayers
from mplus.backbone.own_pass import register_own_attention
from mplus.backbone.quantised import dense, quantise_for_decoding
from mplus.chat_template import EndlessTemplateError, check_ends
from mplus.checkpoint.gguf_model import gguf_config, gguf_tokenizer, plain_weights
from mplus.checkpoint.limits import check_config, check_file, check_files, read_settings
from mplus.checkpoint.parts import PARTS_FILE, TrainedParts, read_memory_config, read_parts
from mplus.checkpoint.published_layout import backbone_config, is_published, published_memory_config, read_published
from mplus.checkpoint.tensor_files import TensorFiles
from mplus.checkpoint.trial import TrainedLayers, tried
from mplus.config import MemoryConfig, Recall
from mplus.errors import CheckpointError, UnsupportedModelError
from mplus.recall.attention_scorer import AttentionScorer
from mplus.recall.embedding_scorer import EmbeddingScorer
from mplus.recall.fused_scorer import FusedScorer
from mplus.recall.late_interaction import LateInteraction
from mplus.recall.published_retriever import PublishedRetriever
from mplus.recall.scorer import Scorer
from mplus.weights import Weights
from mplus.words import Words

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
CALIBRATION_TEXT = Path(__file__).with_name("calibration.txt")


QUANTISERS = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed-tensors",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "aqlm": "aqlm",
    "torchao": "torchao",
    "eetq": "eetq",
    "fbgemm_fp8": "fbgemm-gpu",
}
"""The package that each way of quantising needs."""


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
    trained: Path | None = None,
    gguf_file: str | None = None,
    **options: Any,
) -> Loaded:
    """Load a model folder.

    Args:
        folder: Backbone, published checkpoint or our own save.
        device: "auto", a torch device, or an accelerate device map.
        dtype: "auto", a torch dtype by name, or "int8": int8 weights for decoding beside bfloat16, on the CPU.
        attention: "auto", "sdpa", "eager" or "flash_attention_2".
        trained: Where our trained parts are, if not in ``folder``.
        gguf_file: The GGUF file in the folder that is the backbone.
        options: Passed on to transformers (quantization_config, offload_folder, …).

    Raises:
        CheckpointError: Weights are missing, of the wrong shape, or would be dropped.
        UnsupportedModelError: A backbone that M+ cannot read and write.
    """
    if trained is not None:
        check_files(trained)
    if gguf_file is None:
        check_files(folder)
        config = read_config(folder)
    else:
        check_file(folder / gguf_file)
        config = gguf_config(folder / gguf_file)
        options = options | {"gguf_file": gguf_file}
    quantised, dtype = dtype == "int8", "bfloat16" if dtype == "int8" else dtype
    if is_published(config):
        state_dict, parts = read_published(folder, config)
        model = _load_backbone(folder, backbone_config(config), state_dict, device, dtype, attention, options)
        if config.get("torch_dtype") == "bfloat16":
            round_rope_frequencies(model)
    else:
        parts_folder = trained or folder
        parts = read_parts(parts_folder) if (parts_folder / PARTS_FILE).exists() else TrainedParts()
        model = _load_backbone(folder, config, None, device, dtype, attention, options)
    trusted = bool(options.get("trust_remote_code"))
    tokenizer = load_tokenizer(folder, trusted=trusted) if gguf_file is None else gguf_tokenizer(folder / gguf_file)
    weights = assemble(model, tokenizer, parts)
    if is_slow_in(weights.backbone.dtype, weights.backbone.device):
        warnings.warn(
            f"dtype={'int8' if quantised else 'bfloat16'!r}: this CPU computes bfloat16 in software, dozens of times "
            "slower than float32. Load the model with dtype='float32'.",
            stacklevel=2,
        )
    if quantised:
        quantise_for_decoding([weights.backbone.model, weights.backbone.write_layers, weights.backbone.read_layers])
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
    about = _transformers_config(folder, config).get_text_config(decoder=True)
    return said or MemoryConfig.for_window(int(getattr(about, "max_position_embeddings", None) or UNKNOWN_WINDOW))


def assemble(model: Any, tokenizer: Any, parts: TrainedParts) -> Weights:
    """Put a backbone and its trained parts together, calibrating what was not trained."""
    bos = _sink_token(model, tokenizer)
    cast = caster(model)
    backbone, _ = tried(
        model,
        bos,
        TrainedLayers(
            _cast_adapter(parts.write_adapter, cast),
            _cast_adapter(parts.read_adapter, cast),
            None if parts.bos_states is None else cast(parts.bos_states),
        ),
    )
    if isinstance(backbone, OwnLayers):
        _refuse_adapters(backbone, parts)
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
        backbone, scorers, recall_layer, fingerprints(backbone, parts), position, words, tokenizer, parts.gate
    )


def _refuse_adapters(backbone: OwnLayers, parts: TrainedParts) -> None:
    """Refuse trained parts that change layers, where layers are called as they are."""
    if parts.write_adapter or parts.read_adapter or parts.bos_states is not None:
        raise UnsupportedModelError(
            f"Backbone type {backbone.model.config.model_type!r} is read by its own layers, while adapters or bos "
            "vectors were trained for it. Remove mplus.json and mplus.safetensors from its folder."
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


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        CheckpointError: It is missing or not JSON.
    """
    try:
        return read_settings(folder / "config.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder}: no config.json. Expected a folder that transformers or M+ saved.") from error


def load_tokenizer(folder: Path, *, trusted: bool = False) -> Any:
    """The folder's tokenizer; None if it has none, and then nothing can be written or asked.

    Args:
        folder: The model's folder.
        trusted: Whether code in it may run.

    Raises:
        CheckpointError: It cannot be loaded, or its chat template does not end.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(f"{folder}: no tokenizer that transformers can load ({error}).") from error
    try:
        check_ends(tokenizer)
    except EndlessTemplateError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return tokenizer


def round_rope_frequencies(model: Any) -> None:
    """Round rotary frequencies to bfloat16, as the released 8B weights were trained with (spec section 8)."""
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.bfloat16().float()


def _transformers_config(
    folder: Path, config: dict[str, Any], gguf_file: str | None = None, *, trusted: bool = False
) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    known = dict(config)
    model_type = known.pop("model_type", None)
    if model_type is None:
        raise CheckpointError(f"{folder}: config.json has no model_type; expected a transformers config.")
    path = folder / (gguf_file or "config.json")
    weights = folder.glob("*.safetensors") if gguf_file is None else [path]
    check_config(path, config, sum(file.stat().st_size for file in weights))
    own_code = "auto_map" in config and gguf_file is None
    try:
        if own_code and trusted:
            found = AutoConfig.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
        else:
            found = AutoConfig.for_model(model_type, **known)
    except ValueError as error:
        if model_type in CONFIG_MAPPING or (own_code and trusted):
            raise CheckpointError(f"{path}: transformers refuses it ({error}).") from error
        advice = " It brings code of its own: if you trust it, pass trust_remote_code=True." if own_code else ""
        raise CheckpointError(f"{folder}: transformers does not know model_type {model_type!r}.{advice}") from error
    except (OSError, ImportError) as error:
        raise CheckpointError(f"{folder}: the code that its config.json names does not load ({error}).") from error
    except (TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{path}: transformers refuses it ({error!r}).") from error
    _check_rope(path, found)
    return found


def _check_rope(path: Path, config: Any) -> None:
    """Refuse a kind of rotary positions that transformers does not know, before it fails somewhere inside."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(rope, dict):
        return
    settings = cast("dict[str, Any]", rope)
    kind = settings.get("rope_type", settings.get("type", "default"))
    known = sorted({"default", *ROPE_INIT_FUNCTIONS})
    if kind not in known:
        raise UnsupportedModelError(
            f"{path}: rotary positions of the kind {kind!r:.40}; this version of transformers knows "
            f"{', '.join(known)}. Update transformers, or take another checkpoint."
        )


def _load_backbone(
    folder: Path,
    config: dict[str, Any],
    state_dict: dict[str, Tensor] | None,
    device: str | Mapping[str, Any],
    dtype: str,
    attention: str,
    options: dict[str, Any],
) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    register_attention()
    register_own_attention()
    implementation = GROUPED_ATTENTION if attention in ("auto", "sdpa") else attention
    trusted = bool(options.get("trust_remote_code"))
    backbone = _transformers_config(folder, config, options.get("gguf_file"), trusted=trusted)
    device_map = _device_map(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        arguments: dict[str, Any] = {
            "config": backbone,
            "dtype": _dtype(dtype, device_map),
            "device_map": device_map,
            "attn_implementation": implementation,
            "ignore_mismatched_sizes": True,  # reported below, by name and shape
            "output_loading_info": True,
            **options,
        }
        try:
            transformers_logging.disable_progress_bar()
            if state_dict is not None:
                loader: Any = type(AutoModelForCausalLM.from_config(_shrunk(backbone)))
                model, report = loader.from_pretrained(None, state_dict=state_dict, **arguments)
            else:
                if "gguf_file" not in options:
                    TensorFiles(folder)
                loader = AutoModelForCausalLM
                model, report = loader.from_pretrained(folder, local_files_only=True, **arguments)
        except ImportError as error:
            raise CheckpointError(_missing_quantiser(folder, config | options, error)) from error
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            if not isinstance(error, (OSError, RuntimeError)) and not _quantisation(config | options):
                raise
            raise CheckpointError(f"{folder}: the backbone does not load ({error}).") from error
    if "gguf_file" in options:
        plain_weights(model)
    _check_complete(folder, report, tied={"lm_head.weight"} if backbone.tie_word_embeddings else set())
    return model


def _quantisation(config: Mapping[str, Any]) -> str:
    """How the weights of a checkpoint are quantised; empty if they are not."""
    found: Any = config.get("quantization_config")
    if found is None:
        return ""
    method = cast("dict[str, Any]", found).get("quant_method") if isinstance(found, dict) else found.quant_method
    return str(getattr(method, "value", None) or method or "unknown")


def _missing_quantiser(folder: Path, config: Mapping[str, Any], error: ImportError) -> str:
    method = _quantisation(config)
    if not method:
        return f"{folder}: a package that loading it needs is not installed ({error})."
    package = QUANTISERS.get(method, method)
    return (
        f"{folder}: its weights are quantised with {method!r}, which needs a package that is not installed: "
        f"pip install {package}. Or take a checkpoint or options without quantization_config. ({error})"
    )


def _check_complete(folder: Path, report: Mapping[str, Any], *, tied: set[str]) -> None:
    """Refuse a backbone of which transformers would have filled in or dropped a tensor.

    Raises:
        CheckpointError: Weights are missing, of another shape, or left over.
    """
    missing = sorted(set(report["missing_keys"]) - tied)
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} weights are missing, first {missing[0]!r}. Fetch the checkpoint again."
        )
    if report.get("mismatched_keys"):
        name, found, expected = sorted(report["mismatched_keys"])[0]
        raise CheckpointError(
            f"{folder}: {name!r} has shape {tuple(found)}, expected {tuple(expected)} from config.json."
        )
    unexpected = sorted(key for key in report.get("unexpected_keys") or () if "rotary_emb.inv_freq" not in key)
    if unexpected:
        raise CheckpointError(
            f"{folder}: {len(unexpected)} tensors would be dropped, first {unexpected[0]!r}. The weights belong "
            "to another config."
        )


def _shrunk(config: Any) -> Any:
    """The same kind of config, small enough to build only to learn its class."""
    import copy

    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size = 1, 8
    small.pad_token_id = None
    small.intermediate_size = 8
    return small


def _device_map(device: str | Mapping[str, Any]) -> Any:
    if not isinstance(device, str):
        return dict(device)
    if device == "auto":
        return {"": "cuda:0"} if torch.cuda.is_available() else {"": "cpu"}
    if device in ("balanced", "balanced_low_0", "sequential"):
        return device
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device={device!r}: expected 'auto', 'cpu', 'cuda', 'cuda:1', or an accelerate device map."
        ) from error
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no GPU. Use device='cpu' or 'auto'.")
    return {"": device}


def _dtype(dtype: str, device_map: Any) -> Any:
    if dtype == "auto":
        on_cpu = isinstance(device_map, dict) and all(str(device) in ("cpu", "disk") for device in device_map.values())
        return torch.float32 if on_cpu or not torch.cuda.is_available() else "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: expected 'auto', 'float32', 'bfloat16', 'float16' or 'int8'.")
    return found


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
    for role, adapter in (("write", parts.write_adapter), ("read", parts.read_adapter)):
        for name, weights in sorted((adapter or {}).items()):
            named += [(f"{role}.{name}.down", weights.down), (f"{role}.{name}.up", weights.up)]
    named += _named("late", parts.late)
    digest.update(json.dumps([model.config.model_type, backbone.num_layers, backbone.hidden_size]).encode())
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
