"""The gate: what it lets pass is answered as with an empty memory, and it travels with the trained parts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mplus import CheckpointError, MemoryConfig, MPlus
from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.recall.gate import BestUnit, Gate
from mplus.testing import tiny_model

ASKED = [{"role": "user", "content": "What is the capital of France?"}]


def gate_that(needs_memory: bool, size: int) -> Gate:
    gate = Gate(torch.zeros(size), torch.ones(size), hidden=4)
    with torch.no_grad():
        gate.last.weight.zero_()
        gate.last.bias.fill_(9.0 if needs_memory else -9.0)
    return gate.requires_grad_(False)


def gated(needs_memory: bool) -> MPlus:
    model = tiny_model()
    gate = gate_that(needs_memory, model.weights.backbone.hidden_size)
    weights = replace(model.weights, gate=gate)
    return MPlus(weights, model.tokenizer, model.memory_config, name=model.name, reads=model.reads)


def test_an_ordinary_question_is_answered_as_with_an_empty_memory() -> None:
    model = gated(needs_memory=False)
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    spared = model.generate(memory, ASKED, max_new_tokens=8)
    empty = model.generate(model.new_memory(), ASKED, max_new_tokens=8)
    assert spared.token_ids == empty.token_ids
    assert spared.confidence == empty.confidence
    assert not spared.used_memory
    assert not spared.recalled
    assert model.generate(memory, ASKED, max_new_tokens=8, gate="always").used_memory


def test_a_question_that_needs_memory_reads_it() -> None:
    model = gated(needs_memory=True)
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    assert model.generate(memory, ASKED, max_new_tokens=2).used_memory
    assert not model.generate(memory, ASKED, max_new_tokens=2, gate="never").used_memory
    assert not model.generate(model.new_memory(), ASKED, max_new_tokens=2, gate="always").used_memory


def test_a_completion_is_never_gated() -> None:
    model = gated(needs_memory=False)
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    assert model.generate(memory, "The dog is called", max_new_tokens=2).used_memory


def test_a_model_without_a_gate_always_reads() -> None:
    model = tiny_model()
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    assert model.generate(memory, ASKED, max_new_tokens=2).used_memory


def test_an_unknown_choice_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="gate"):
        model.generate(model.new_memory(), ASKED, gate="sometimes")  # pyright: ignore[reportArgumentType]


def test_a_batch_is_gated_row_by_row() -> None:
    model = gated(needs_memory=False)
    memory = model.new_memory(config=MemoryConfig(short_term_tokens=64, recalled_tokens=64))
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    chat, text = model.generate_batch([memory, memory], [ASKED, "The dog is called"], max_new_tokens=3)
    assert (chat.used_memory, text.used_memory) == (False, True)


def test_it_is_saved_with_the_trained_parts(tmp_path: Path) -> None:
    gate = Gate(torch.randn(6), torch.rand(6) + 0.5, hidden=5)
    write_parts(tmp_path, TrainedParts(gate=gate))
    again = read_parts(tmp_path).gate
    assert again is not None
    normed = torch.randn(3, 6)
    assert again.probability(normed, BestUnit(0.2, 0.4, 0.5, 7)) == gate.probability(normed, BestUnit(0.2, 0.4, 0.5, 7))


def test_a_gate_of_other_inputs_is_a_clear_error(tmp_path: Path) -> None:
    gate = Gate(torch.zeros(8), torch.ones(8))
    gate.first = torch.nn.Linear(8 + 1, 32)
    write_parts(tmp_path, TrainedParts(gate=gate))
    with pytest.raises(CheckpointError, match="another version"):
        read_parts(tmp_path)
