"""Large biases of keys, as Qwen2 and Qwen2.5 have them: memory keeps keys without them, and loses nothing by it."""

from typing import Any

import pytest
import torch

from mplus import MemoryConfig
from mplus.backbone.attention import KeysValues
from mplus.backbone.llama_layers import LlamaLayers
from mplus.checkpoint import trial
from mplus.checkpoint.loading import assemble
from mplus.checkpoint.parts import TrainedParts
from mplus.config import StorageDtype
from mplus.encode import Chunk
from mplus.memory.memory import Memory
from mplus.memory.precision import Plane
from mplus.read.prefill import ReadRequest, prefill
from mplus.testing import byte_tokenizer, tiny_backbone, tiny_model
from mplus.weights import Weights
from mplus.write.absorb import write_chunks
from tests.backbone.tiny_models import tiny_of

BIAS = 150.0
TEXT = b"the quick brown fox jumps over the lazy dog"
CONFIG = MemoryConfig(
    chunk_tokens=64, tokens_per_write=64, short_term_tokens=64, recalled_tokens=128, minimum_chunk_tokens=1
)


def biased(model: Any) -> Any:
    """A model whose keys have biases as large as Qwen2.5's."""
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in model.model.layers:
            bias = layer.self_attn.k_proj.bias
            bias.copy_(torch.randn(bias.shape, generator=drawn) * BIAS)
            layer.self_attn.q_proj.bias.zero_()
    return model


def biased_weights() -> Weights:
    return assemble(biased(tiny_backbone("qwen2")), byte_tokenizer(), TrainedParts())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_whose_keys_have_large_biases_is_not_refused(dtype: torch.dtype) -> None:
    _, found = trial.tried(biased(tiny_of("qwen2", seed=5)).to(dtype), 257)
    assert found.refused == ""
    assert found.way == "llama"


@pytest.mark.parametrize("mistake", ["lost", "turned"])
def test_the_trial_still_refuses_a_wrong_calculation(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Weights.whole

    def wrong(self: Weights, layers: Any, latents: KeysValues) -> KeysValues:
        return latents if mistake == "lost" else KeysValues(right(self, layers, latents).keys.flip(1), latents.values)

    monkeypatch.setattr(Weights, "whole", wrong)
    model = biased(tiny_of("qwen2", seed=5)).to(torch.bfloat16)
    found = trial._compared(LlamaLayers.wrap(model, bos_token_id=257), 257, "llama", "full")
    assert "differ from the plain model's" in found.refused


def test_only_models_with_such_biases_have_offsets() -> None:
    assert list(tiny_model().weights.backbone.key_offsets) == [None] * tiny_model().weights.backbone.num_layers
    backbone, _ = trial.tried(biased(tiny_of("qwen2")), 257)
    for layer, offset in zip(backbone.decoder_layers, backbone.key_offsets, strict=True):
        assert offset is not None
        torch.testing.assert_close(offset.flatten(), layer.self_attn.k_proj.bias)


def test_offsets_are_found_of_models_that_are_called_as_they_are() -> None:
    model = tiny_of("stablelm", use_qkv_bias=True)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.normal_(std=BIAS)
    backbone, found = trial.tried(model, 257)
    assert found.way == "own"
    assert all(offset is not None for offset in backbone.key_offsets)


def test_what_is_kept_tells_tokens_apart_in_eight_bits() -> None:
    weights = biased_weights()
    state = weights.empty_state(CONFIG)
    memory = Memory(CONFIG, state, model_fingerprint="")
    state, _ = write_chunks(weights, memory, state, [Chunk(list(TEXT), [0] * len(TEXT), False)])
    for keys in state.tracks[0].short_term.content.keys:
        kept = Plane.store(keys, "int8").rows(slice(None), torch.float32, torch.device("cpu"))
        spread = (keys - keys.mean(dim=0)).norm()
        assert (kept - keys).norm() < 0.02 * spread, "with its bias the error would be a third of the spread and more"


def test_long_term_memory_in_eight_bits_reads_as_in_thirty_two() -> None:
    weights, asked, logits = biased_weights(), list(b"who jumps over it?"), list[torch.Tensor]()
    kinds: tuple[StorageDtype, ...] = ("float32", "int8")
    for kind in kinds:
        config = CONFIG.model_copy(update={"long_term_dtype": kind})
        state = weights.empty_state(config)
        memory = Memory(config, state, model_fingerprint="")
        for number in range(6):
            text = [Chunk([*TEXT[number:], *TEXT[:number]], [number] * len(TEXT), False)]
            state, _ = write_chunks(weights, memory, state, text)
        assert len(state.tracks[0].long_term) or len(state.tracks[0].pending)
        with torch.no_grad():
            request = ReadRequest(state, config, asked, (0, len(asked)))
            logits.append(prefill(weights, [request], all_logits=True).logits[0])
    torch.testing.assert_close(logits[1], logits[0], atol=2e-2, rtol=0)
