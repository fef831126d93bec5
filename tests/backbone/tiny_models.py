"""Tiny random models of every decoder-only text type of transformers."""

from typing import Any

import torch

MOST_WEIGHTS = 5_000_000
SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 48,
    "n_embd": 48,
    "d_model": 48,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "n_inner": 96,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "num_attention_heads": 6,
    "n_head": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": 260,
    "sliding_window": 64,
    "attention_chunk_size": 64,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "first_k_dense_replace": 1,
    "zero_expert_num": 2,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 12,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 96,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_num_heads": 12,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_mamba_heads": 12,
    "n_groups": 1,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
    "conv_L_cache": 3,
    # other parts
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 261,
    "laurel_rank": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.6,
        "logits_scaling": 2.0,
    },
    "granitemoe": {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "bailing_hybrid": {"layer_group_size": 2},
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "gemma2": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0},
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0], "num_local_experts": 4},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "gemma3n_text": {
        "num_kv_shared_layers": 1,
        "intermediate_size": [96] * 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0] * 4,
    },
}


def tiny_of(model_type: str, *, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model of a type; all its weights differ from their defaults."""
    from transformers import AutoConfig, AutoModelForCausalLM

    known = AutoConfig.for_model(model_type)
    settings = {name: value for name, value in SIZES.items() if getattr(known, name, None) is not None}
    if "qk_rope_head_dim" in settings:  # the rotary embedding of latent attention has this size
        settings["head_dim"] = settings["qk_rope_head_dim"]
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    config = AutoConfig.for_model(model_type, **(settings | SPECIAL.get(model_type, {}) | changes))
    try:
        with torch.device("meta"):
            count = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    except TypeError:  # some build tensors in a way that this does not take
        count = 0
    if count > MOST_WEIGHTS:
        raise ValueError(f"{model_type} with the sizes here has {count:,} weights; it is not tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            with torch.no_grad():
                if parameter.dim() >= 2:
                    parameter.normal_(std=0.15)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
