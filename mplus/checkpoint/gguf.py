"""A model in one GGUF file becomes a folder that transformers loads: done once, then never again.

A Llama with byte-level BPE is converted here, without torch's reading of files; others through transformers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mplus.errors import DownloadError

CONTROL_TOKEN = 3
"""GGUF's token type of control tokens."""

TENSOR_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Step = Callable[[int, int], None]


def convert(file: Path, folder: Path, *, dtype: str = "float32", step: Step | None = None) -> None:
    """Write config, tokenizer and safetensors of a GGUF model into ``folder``.

    Args:
        file: The GGUF file.
        folder: An existing folder.
        dtype: Of the weights that are written: "float32", or "bfloat16" where the architecture is not Llama's.
        step: Shown what is done and how much there is.

    Raises:
        DownloadError: The file is not in GGUF.
        CheckpointError: transformers cannot read it.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(file))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError) as error:
        raise DownloadError(f"{file.name}: not a readable GGUF file ({error}). Fetch it again.") from error
    if fields.get("general.architecture") != "llama":
        del reader
        _convert_through_transformers(file, folder, dtype, step)
        return
    tied = _write_weights(reader, fields, folder, step)
    _write_config(fields, folder, tied=tied)
    _write_tokenizer(fields, folder)


def _convert_through_transformers(file: Path, folder: Path, dtype: str, step: Step | None) -> None:
    from mplus.checkpoint.backbone_files import load_backbone
    from mplus.checkpoint.gguf_model import gguf_config, gguf_tokenizer

    done = step or (lambda number, total: None)
    done(0, 3)
    tokenizer = gguf_tokenizer(file)
    done(1, 3)
    options = {"gguf_file": file.name}
    model = load_backbone(file.parent, gguf_config(file), None, "cpu", dtype, "eager", options)
    done(2, 3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done(3, 3)


def _write_weights(reader: Any, fields: dict[str, Any], folder: Path, step: Step | None) -> bool:
    import numpy as np
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {
        "attn_q": fields["llama.attention.head_count"],
        "attn_k": fields["llama.attention.head_count_kv"],
    }
    tensors: dict[str, torch.Tensor] = {}
    for number, tensor in enumerate(reader.tensors):
        numbers = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name = TENSOR_NAMES.get(tensor.name)
        if name is None:
            _, layer, kind, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{LAYER_TENSOR_NAMES[kind]}.weight"
            if kind in heads:
                numbers = _unpermuted(numbers, heads[kind])
        tensors[name] = torch.from_numpy(np.ascontiguousarray(numbers))
        if step is not None:
            step(number + 1, len(reader.tensors))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return "lm_head.weight" not in tensors


def _unpermuted(weight: Any, num_heads: int) -> Any:
    """Undo llama.cpp's order of query and key rows, in which rotary pairs are neighbours."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_config(fields: dict[str, Any], folder: Path, *, tied: bool) -> None:
    hidden, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": fields["llama.rope.freq_base"],
        "max_position_embeddings": fields["llama.context_length"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "dtype": "float32",
    }
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """The byte-level BPE tokenizer in the file; digits one by one, as SmolLM splits them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    splits: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if fields.get("tokenizer.ggml.pre") == "smollm":
        splits.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    types: list[int] = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    backend.save(str(folder / "tokenizer.json"))
    named = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    config = {
        **named,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
