"""The files of a model folder that transformers reads: config, tokenizer, weights; refused with what is wrong."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mplus.backbone.attention import GROUPED_ATTENTION, register_attention
from mplus.backbone.own_pass import register_own_attention
from mplus.chat_template import EndlessTemplateError, check_ends
from mplus.checkpoint.gguf_model import plain_weights, taken_out
from mplus.checkpoint.limits import LIMITS, check_config, check_weights, read_settings
from mplus.checkpoint.tensor_files import TensorFiles
from mplus.errors import CheckpointError, UnknownNameError, UnsupportedModelError

TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")
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
ROPE_ABOVE_ZERO = frozenset(
    {"factor", "rope_theta", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "beta_fast"}
)
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
INSTEAD = {
    "load_in_4bit": "quantization_config=transformers.BitsAndBytesConfig(load_in_4bit=True)",
    "load_in_8bit": "quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)",
    "use_flash_attention_2": "attention='flash_attention_2'",
}
"""What to write instead of options that models once took."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        CheckpointError: It is missing or not JSON.
    """
    try:
        return read_settings(folder / "config.json")
    except (FileNotFoundError, NotADirectoryError) as error:
        files = sorted(path.name for path in folder.glob("*.gguf")) if folder.is_dir() else []
        advice = f" It has GGUF files: pass gguf_file={files[0]!r}." if files else ""
        raise CheckpointError(
            f"{folder}: no config.json. Expected a folder that transformers or M+ saved.{advice}"
        ) from error


def load_tokenizer(folder: Path, *, trusted: bool = False) -> Any:
    """The folder's tokenizer; None if it has none, and then nothing can be written or asked.

    Args:
        folder: The model's folder.
        trusted: Whether code in it may run.

    Raises:
        CheckpointError: It cannot be loaded, or its chat template does not end.
    """
    from transformers import AutoTokenizer

    from mplus.template_limits import LargeTemplateError

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # a damaged file may fail anywhere in it
        raise CheckpointError(f"{folder}: no tokenizer that transformers can load ({error!r:.300}).") from error
    template: Any = getattr(tokenizer, "chat_template", None)
    if template is not None and not isinstance(template, str | dict):
        raise CheckpointError(f"{folder}: chat_template={template!r:.40}; expected the text of a template.")
    try:
        check_ends(tokenizer)
    except (EndlessTemplateError, LargeTemplateError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return tokenizer


def round_rope_frequencies(model: Any) -> None:
    """Round rotary frequencies to bfloat16, as the released 8B weights were trained with (spec section 8)."""
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.bfloat16().float()


def transformers_config(
    folder: Path, config: dict[str, Any], gguf_file: str | None = None, *, trusted: bool = False
) -> Any:
    """The transformers config of a model folder, its sizes checked.

    Args:
        folder: The folder.
        config: What its config.json, or its GGUF file, says.
        gguf_file: The GGUF file that is the backbone.
        trusted: Whether code in the folder may run.

    Raises:
        CheckpointError: A size is absurd, the type is not known, or transformers refuses the settings.
        UnsupportedModelError: Rotary positions of an unknown kind.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    known = dict(config)
    model_type = known.pop("model_type", None)
    if model_type is None:
        raise CheckpointError(f"{folder}: config.json has no model_type; expected a transformers config.")
    path = folder / (gguf_file or "config.json")
    weights = folder.glob("*.safetensors") if gguf_file is None else [path]
    check_config(path, config)
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
    except Exception as error:  # each version of transformers raises others
        raise CheckpointError(f"{path}: transformers refuses it ({error!r:.300}).") from error
    text = found.get_text_config(decoder=True)
    described = {**text.to_dict(), **{name: getattr(text, name, None) for name in LIMITS}}
    check_weights(path, described, sum(file.stat().st_size for file in weights))
    _check_rope(path, found)
    return found


def _check_rope(path: Path, config: Any) -> None:
    """Refuse rotary positions that transformers does not know or would divide by zero for; it only logs a line."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(rope, dict):
        return
    known = sorted({"default", *ROPE_INIT_FUNCTIONS})
    settings = cast("dict[str, Any]", rope)
    # There may be settings for each type of layer.
    for one in (settings, *(part for part in settings.values() if isinstance(part, dict))):
        kind = one.get("rope_type", one.get("type", "default"))
        if kind not in known:
            raise UnsupportedModelError(
                f"{path}: rotary positions of the kind {kind!r:.40}; this version of transformers knows "
                f"{', '.join(known)}. Update transformers, or take another checkpoint."
            )
        for name in ROPE_ABOVE_ZERO & one.keys():
            value = one[name]
            if value is not None and (type(value) not in (int, float) or not value > 0):
                raise CheckpointError(f"{path}: {name}={value!r:.40} of rotary positions; expected a number above 0.")


def load_backbone(
    folder: Path,
    config: dict[str, Any],
    state_dict: dict[str, Tensor] | None,
    device: str | Mapping[str, Any],
    dtype: str,
    attention: str,
    options: dict[str, Any],
) -> Any:
    """The causal language model of a folder, by transformers.

    Args:
        folder: The folder.
        config: Its config.
        state_dict: Its weights, where the files have another layout; None: transformers reads them.
        device: "auto", a torch device, or an accelerate device map.
        dtype: "auto" or a torch dtype by name.
        attention: "auto", "sdpa", "eager" or "flash_attention_2".
        options: Passed on to transformers.

    Raises:
        CheckpointError: Weights are missing, of the wrong shape, or would be dropped; a package is missing.
        UnsupportedModelError: Rotary positions of an unknown kind.
        ValueError: A bad device or dtype.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    register_attention()
    register_own_attention()
    implementation = GROUPED_ATTENTION if attention in ("auto", "sdpa") else attention
    trusted = bool(options.get("trust_remote_code"))
    UnknownNameError.check(options.keys() & INSTEAD.keys(), (), of="from_pretrained", instead=INSTEAD)
    backbone = transformers_config(folder, config, options.get("gguf_file"), trusted=trusted)
    _check_quantiser(folder, config)
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
            **(taken_out() if "gguf_file" in options else {}),
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
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            unknown = UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
            if unknown is not None and unknown[1] in options:
                raise UnknownNameError(
                    f"from_pretrained does not take {unknown[1]!r}, nor do models of {type(backbone).__name__}. "
                    "Leave it out."
                ) from error
            if isinstance(error, ValueError) and not _quantisation(config | options):
                raise  # of the caller's, such as a device map
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


def _check_quantiser(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are quantised in a way that transformers would pass over with a line in the log."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    found: Any = config.get("quantization_config")
    if not isinstance(found, dict):
        return
    method, settings = _quantisation(config), cast("dict[str, Any]", found)
    bits = [number for number in ("4bit", "8bit") if settings.get(f"load_in_{number}")]
    if (f"bitsandbytes_{bits[0]}" if bits else method) not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = ", ".join(sorted(map(str, AUTO_QUANTIZATION_CONFIG_MAPPING)))
        raise CheckpointError(
            f"{folder}: its weights are quantised with {method!r:.40}; this version of transformers knows {known}. "
            "Update transformers, or take another checkpoint."
        )


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
