from pathlib import Path

import pytest
import torch

from mplus.memory.memory import Memory
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content
from mplus.model import MPlus
from mplus.read.prefill import prefill
from tests.conftest import TINY

SHAPES = {  # layers, hidden size, key-value heads, head size
    "Llama-3.1-8B": (32, 4096, 8, 128),
    "Llama-3.1-70B": (80, 8192, 8, 128),
    "Qwen2.5-7B": (28, 3584, 4, 128),
}


def bytes_per_token(name: str, dtype: str, retriever_size: int = 256) -> float:
    """Of a long-term token in the chunk layout, measured on planes of that shape."""
    layers, _, heads, size = SHAPES[name]
    one = torch.randn(3, heads, size)
    stored = Segment.store(Content((one,), (one,), torch.randn(3, retriever_size)), dtype)
    key_value = sum(plane.nbytes for plane in (*stored.keys, *stored.values))
    return (layers * key_value + stored.retrieval_keys.nbytes) / 3


def published_bytes_per_token(name: str, retriever_size: int = 256) -> int:
    """A hidden state and a retrieval key in bfloat16, in every layer."""
    layers, hidden, _, _ = SHAPES[name]
    return layers * 2 * (hidden + retriever_size)


@pytest.mark.parametrize(
    ("name", "dtype", "share"),
    [
        ("Llama-3.1-8B", "int8", 0.24),
        ("Llama-3.1-8B", "int4", 1 / 8),
        ("Llama-3.1-70B", "int8", 1 / 8),
        ("Llama-3.1-70B", "int4", 1 / 15),
        ("Qwen2.5-7B", "int8", 0.14),
        ("Qwen2.5-7B", "int4", 1 / 12),
    ],
)
def test_a_token_takes_a_fraction_of_the_published_bytes(name: str, dtype: str, share: float) -> None:
    """int8: 2HE numbers against 2 bytes of D, so HE/D of it; an eighth from eight query heads a key head on."""
    assert bytes_per_token(name, dtype) <= share * published_bytes_per_token(name)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_quantised_memories_give_similar_reads_and_load_again(
    model: MPlus, text: str, dtype: str, tmp_path: Path
) -> None:
    everything = TINY.model_copy(update={"recalled_tokens": 4096})  # so that all read the same tokens
    config = everything.model_copy(update={"long_term_dtype": dtype})
    memory, full = model.new_memory(config=config), model.new_memory(config=everything)
    for one in (memory, full):
        model.write(one, text, source="a")
    logits = [prefill(model.weights, [model.read_request(one, "Which box?")]).logits for one in (memory, full)]
    gap = float((logits[0] - logits[1]).norm() / logits[1].norm())
    assert gap < {"bfloat16": 0.02, "int8": 0.02, "int4": 0.25}[dtype]
    assert memory.state.tracks[0].long_term.nbytes < full.state.tracks[0].long_term.nbytes
    memory.save(tmp_path / "saved")
    loaded = Memory.load(tmp_path / "saved", model)
    assert torch.equal(prefill(model.weights, [model.read_request(loaded, "Which box?")]).logits, logits[0])
