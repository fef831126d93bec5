"""A GGUF file as a model: transformers reads tensors, sizes and tokenizer; rope scaling and the pad token are ours.

GGUF names a rope scaling in fields of its own and keeps frequency factors as tensors, which transformers leaves out.
A model would load and be wrong beyond its first thousand tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mplus.errors import CheckpointError

LLAMA3_ORIGINAL = 8192
"""Positions that Llama 3 was trained for before its frequencies were scaled; GGUF does not say."""


def named(model: str, gguf_file: str | None) -> tuple[str, str | None]:
    """A model's folder or repository, and the GGUF file in it; a path to a file names both.

    Args:
        model: As the user gave it.
        gguf_file: As the user gave it.

    Raises:
        ValueError: ``model`` is a file, and another file is named too.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() != ".gguf" or not path.is_file():
        return model, gguf_file
    if gguf_file not in (None, path.name):
        raise ValueError(f"model={model!r} is a file already; gguf_file={gguf_file!r} names another. Leave one out.")
    return str(path.parent), path.name


def gguf_config(file: Path) -> dict[str, Any]:
    """The transformers config of a GGUF file, rope scaling included.

    Raises:
        CheckpointError: The file is missing or damaged, of an architecture that transformers does not know, or has a
            rope scaling that cannot be said in a config.
    """
    from gguf import GGUFReader
    from transformers import AutoConfig

    if not file.is_file():
        there = ", ".join(sorted(path.name for path in file.parent.glob("*.gguf"))) or "none"
        raise CheckpointError(f"gguf_file={file.name!r}: not in {file.parent}; GGUF files there: {there}.")
    try:
        reader = GGUFReader(str(file))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config: dict[str, Any] = AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict()
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise CheckpointError(f"{file}: transformers cannot read it as GGUF ({error}).") from error
    factors = {
        tensor.name: torch.from_numpy(tensor.data.copy()).float().flatten()
        for tensor in reader.tensors
        if tensor.name.startswith(("rope_freqs", "rope_factors"))
    }
    scaling = rope_scaling(fields, factors, file)
    if scaling:
        rope: dict[str, Any] = config.get("rope_parameters") or {}
        # Two bases: the scaling is that of layers with full attention.
        inner: dict[str, Any] = rope.get("full_attention", rope)
        inner.update(scaling)
        config["rope_parameters"] = rope
    return config


def rope_scaling(fields: Mapping[str, Any], factors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """Rope scaling in transformers' words; empty if there is none.

    Args:
        fields: Fields of the file.
        factors: Its tensors of frequency factors, by name.
        file: Named in errors.

    Raises:
        CheckpointError: It cannot be said in a config.
    """
    kind = fields.get("general.architecture", "")
    said = {
        name.removeprefix(f"{kind}.rope.scaling."): value
        for name, value in fields.items()
        if name.startswith(f"{kind}.rope.scaling.")
    }
    original = said.get("original_context_length")
    if "rope_factors_long.weight" in factors:
        found = {
            "rope_type": "longrope",
            "long_factor": factors["rope_factors_long.weight"].tolist(),
            "short_factor": factors["rope_factors_short.weight"].tolist(),
            "original_max_position_embeddings": original,
        }
        return found | ({"attention_factor": said["attn_factor"]} if "attn_factor" in said else {})
    if "rope_freqs.weight" in factors:
        return _llama3(fields, factors["rope_freqs.weight"], file)
    name = said.get("type", "none")
    if name == "none":
        return {}
    if name == "linear":
        return {"rope_type": "linear", "factor": said["factor"]}
    if name == "yarn":
        about = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        more = {ours: said[theirs] for ours, theirs in about.items() if theirs in said}
        return {
            "rope_type": "yarn", "factor": said["factor"], "original_max_position_embeddings": original, **more,
        }  # fmt: skip
    raise CheckpointError(f"{file}: rope scaling {name!r} is not known; expected none, linear, yarn or factors.")


def _llama3(fields: Mapping[str, Any], factors: Tensor, file: Path) -> dict[str, Any]:
    """Llama 3's scaling, of which the file has only the resulting factors."""
    kind = fields["general.architecture"]
    base, most = float(fields.get(f"{kind}.rope.freq_base", 10_000.0)), float(factors.max())
    if torch.allclose(factors, torch.ones_like(factors)):
        return {}
    pairs = torch.arange(len(factors), dtype=torch.float64) / len(factors)
    waves = 2 * torch.pi * base**pairs
    smooth = ((LLAMA3_ORIGINAL / waves - 1) / 3).clamp(0, 1)
    expected = 1 / ((1 - smooth) / most + smooth)
    if not torch.allclose(expected.float(), factors, rtol=1e-3):
        raise CheckpointError(
            f"{file}: its rope factors, up to {most:g}, are not those of Llama 3's scaling over {LLAMA3_ORIGINAL} "
            "positions, and a config cannot hold others. Use the model's own repository."
        )
    return {
        "rope_type": "llama3",
        "factor": most,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LLAMA3_ORIGINAL,
    }


def taken_out() -> dict[str, Any]:
    """Options with which transformers takes weights out of their quantisation, without a word about it.

    Since 5.24 it keeps them packed where it has kernels for that, and else says that it does not, or that float32
    would be faster. Earlier ones always take them out.
    """
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def plain_weights(model: Any) -> None:
    """Let a model forget that its file was quantised: its weights no longer are, and it can be saved."""
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None:
        quantiser.remove_quantization_config(model)


def gguf_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file with its chat template, and a pad token in any case.

    Raises:
        CheckpointError: transformers cannot make it.
    """
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, OSError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise CheckpointError(f"{file}: transformers cannot make its tokenizer ({error}).") from error
    if tokenizer.chat_template is None:
        template = GGUFReader(str(file)).fields.get("tokenizer.chat_template")
        tokenizer.chat_template = None if template is None else template.contents()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer
