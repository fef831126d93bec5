import pytest
import torch

from mplus.backbone.own_layers import OwnLayers
from mplus.checkpoint import trial
from mplus.checkpoint.loading import assemble
from mplus.checkpoint.parts import TrainedParts
from mplus.config import MemoryConfig
from mplus.errors import UnsupportedModelError
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.self_check import HowRead
from mplus.testing import byte_tokenizer
from tests.backbone.tiny_models import tiny_of
from tests.conftest import TINY

EXACT = 2e-3
TEXT = "Ann keeps the garage key under the third flowerpot, and the code of the door is 4417. "


def loaded(kind: str, **changes) -> MPlus:
    tokenizer = byte_tokenizer()
    weights = assemble(tiny_of(kind, **changes), tokenizer, TrainedParts())
    assert isinstance(weights.backbone, OwnLayers)
    return MPlus(weights, tokenizer, TINY, reads=HowRead("latent", "random weights read nothing"))


@pytest.mark.parametrize("kind", ["gemma3_text", "mistral"])
def test_a_window_shorter_than_memory_sees_what_lies_within_it(kind: str) -> None:
    _, found = trial.tried(tiny_of(kind, sliding_window=6), 257)
    assert found.kind == "windows"
    assert found.empty < EXACT
    assert found.chunk < EXACT


@pytest.mark.parametrize("kind", ["gemma3_text", "qwen3_next"])
def test_two_writes_are_one_write(kind: str) -> None:
    model = loaded(kind)
    ids = model.tokenizer(TEXT)["input_ids"][:64]
    once, twice = model.new_memory(), model.new_memory()
    model.write(once, ids, source="a")
    model.write(twice, ids[:32], source="a")
    model.write(twice, ids[32:], source="a")
    for one, other in zip(once.state.tracks, twice.state.tracks, strict=True):
        for mine, theirs in zip(one.short_term.content.keys, other.short_term.content.keys, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_rows_of_a_batch_are_read_as_they_are_alone() -> None:
    model = loaded("gemma3_text")
    memories = [model.new_memory() for _ in range(2)]
    model.write(memories[0], TEXT * 2, source="a")
    model.write(memories[1], TEXT[::-1], source="b")
    prompts = ("Where is the key?", "The code?")
    requests = [model.read_request(memory, prompt) for memory, prompt in zip(memories, prompts, strict=True)]
    together = prefill(model.weights, requests)
    alone = [prefill(model.weights, [request]) for request in requests]
    for row, one in enumerate(alone):
        torch.testing.assert_close(together.logits[row], one.logits[0], atol=1e-3, rtol=1e-3)
    after = together.reading.decode([65, 66])
    for row, one in enumerate(alone):
        torch.testing.assert_close(after[row], one.reading.decode([65 + row])[0], atol=1e-3, rtol=1e-3)


def test_single_tokens_are_refused_where_layers_are_called_as_they_are() -> None:
    model = loaded("gemma3_text")
    with pytest.raises(ValueError, match='layout="chunk"'):
        model.new_memory(config=MemoryConfig(layout="token", recall="attention"))


def test_frequencies_that_change_with_length_end_the_window_and_an_empty_memory_works() -> None:
    scaling = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    backbone, found = trial.tried(tiny_of("llama", max_position_embeddings=256, rope_parameters=scaling), 257)
    assert found.empty < EXACT
    assert backbone.window == 256
    long = {
        "rope_type": "longrope",
        "factor": 8.0,
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 64,
    }
    backbone, found = trial.tried(tiny_of("llama", rope_parameters=long), 257)
    assert found.chunk < EXACT
    assert backbone.window == 64, "positions beyond the switch would need other keys"


def test_a_refusal_is_kept_and_names_the_difference() -> None:
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"'gpt2'.*differ.*by 0\.\d+ of their size"):
            trial.tried(tiny_of("gpt2"), 257)
