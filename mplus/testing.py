"""A tiny random M+ model for tests without downloads, for use in other projects too.

model = mplus.testing.tiny_model()
memory = model.new_memory()
"""

import re
import zlib
from collections.abc import Callable
from typing import Any

import torch

from mplus.backbone.attention import GROUPED_ATTENTION, register_attention
from mplus.checkpoint.loading import assemble
from mplus.checkpoint.parts import TrainedParts
from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.self_check import HowRead

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer() -> Any:
    """A tokenizer with one token per byte, a few control tokens and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_backbone(model_type: str = "llama", *, seed: int = 0, **changes: Any) -> Any:
    """A tiny random transformers model of a type, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    register_attention()
    settings: dict[str, Any] = {
        "vocab_size": 261,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "pad_token_id": 256,
        "bos_token_id": 257,
        "eos_token_id": 260,
        "tie_word_embeddings": False,
        "attn_implementation": GROUPED_ATTENTION,
    }
    if model_type == "mistral":
        settings["sliding_window"] = None
    config = AutoConfig.for_model(model_type, **(settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # With the default initialisation attention hardly affects outputs; tests need it to.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.15)
    return model


def toy_embedder(size: int = 256) -> Callable[[list[str]], list[list[float]]]:
    """An embedder without a model, for ``embedder=``: texts that share words have similar vectors.

    Args:
        size: Numbers of a vector.
    """

    def embed(texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for text in texts:
            vector = [1e-3] * size
            for word in re.findall(r"\w+", text.lower()):
                vector[zlib.crc32(word.encode()) % size] += 1.0
            vectors.append(vector)
        return vectors

    return embed


def tiny_model(
    seed: int = 0,
    *,
    memory: MemoryConfig | None = None,
    embedder: Any = None,
    model_type: str = "llama",
    prompt_turns: int | None = None,
    decline_threshold: float | None = None,
    yes_odds: float | None = None,
    **changes: Any,
) -> MPlus:
    """A tiny random M+ model with a byte tokenizer. It works like any other, but its answers are random text.

    Args:
        seed: Seed of the weights.
        memory: Layout of new memories.
        embedder: Your own embedder, as ``MPlus.from_pretrained`` takes it.
        model_type: A type of transformers, such as "llama", "qwen3" or "gemma2"; all are given the same few sizes.
        prompt_turns: How many turns stand in the prompt before the question; None: as many as fit.
        decline_threshold: Probability from which on an answer from memory declines; None: if that is likeliest.
        yes_odds: What the odds of yes to no are multiplied with where an answer from memory begins; None: nothing.
        changes: Other settings of the transformers config.
    """
    tokenizer = byte_tokenizer()
    model = tiny_backbone(model_type, seed=seed, **changes)
    parts = TrainedParts(prompt_turns=prompt_turns, decline_threshold=decline_threshold, yes_odds=yes_odds)
    weights = assemble(model, tokenizer, parts)
    own = MemoryConfig.for_window(weights.backbone.window)
    reads = HowRead("latent", "random weights read nothing")
    tiny = MPlus(weights, tokenizer, own, name=f"tiny-{model_type}", parts=parts, reads=reads)
    if embedder is not None:
        return tiny.with_embedder(embedder, memory=memory)
    return MPlus(weights, tokenizer, memory or own, name=tiny.name, parts=parts, reads=reads)
