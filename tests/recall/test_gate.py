"""The gate: what it lets pass is answered as with an empty memory, and it travels with the trained parts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mplus import CheckpointError, MemoryConfig, MPlus
from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.generation.declining import declining_token
from mplus.recall.coarse import CoarseIndex
from mplus.recall.gate import BestUnit, Gate
from mplus.testing import tiny_model, toy_embedder

ASKED = [{"role": "user", "content": "What is the capital of France?"}]


def gate_that_says(probability: float, size: int) -> Gate:
    gate = Gate(torch.zeros(size), torch.ones(size), hidden=4)
    with torch.no_grad():
        gate.last.weight.zero_()
        gate.last.bias.fill_(torch.tensor(probability).logit())
    return gate.requires_grad_(False)


def gated(probability: float, **changes: Any) -> MPlus:
    model = tiny_model(**changes)
    gate = gate_that_says(probability, model.weights.backbone.hidden_size)
    weights = replace(model.weights, gate=gate)
    return MPlus(weights, model.tokenizer, model.memory_config, name=model.name, reads=model.reads)


def test_an_ordinary_question_is_answered_as_with_an_empty_memory() -> None:
    model = gated(0.001)
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    spared = model.generate(memory, ASKED, max_new_tokens=8)
    empty = model.generate(model.new_memory(), ASKED, max_new_tokens=8)
    assert spared.token_ids == empty.token_ids
    assert spared.confidence == empty.confidence
    assert not spared.used_memory
    assert not spared.recalled
    assert model.generate(memory, ASKED, max_new_tokens=8, gate="always").used_memory


@pytest.mark.parametrize("recall", ["embedding", "embedding+late"])
def test_the_gate_decides_beside_an_embedder_too(recall: str) -> None:
    config = MemoryConfig.model_validate({"recall": recall})
    for probability in (0.001, 0.999):
        model = gated(probability, embedder=toy_embedder(), memory=config)
        memory = model.new_memory()
        model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
        assert model.generate(memory, ASKED, max_new_tokens=2).used_memory == (probability > 0.5)


def test_the_gate_makes_the_index_of_shared_documents_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built, build = list[int](), CoarseIndex.build
    monkeypatch.setattr(CoarseIndex, "build", lambda *given: (built.append(1), build(*given))[1])
    sizes = {"chunk_tokens": 32, "minimum_chunk_tokens": 8, "tokens_per_write": 32, "exact_recall_tokens": 200}
    config = MemoryConfig.model_validate(
        {"recall": "embedding", "short_term_tokens": 64, "consolidate_every": 1} | sizes
    )
    model = gated(0.999, embedder=toy_embedder(), memory=config)
    own, documents = model.new_memory(), model.new_memory()
    model.write(documents, [f"Document {number} tells that box {number} is red." for number in range(40)])
    for number in range(3):
        model.write(own, f"User: turn {number} of this talk.")
        model.generate([own, documents], ASKED, max_new_tokens=1)
    assert len(built) == 1


def test_a_question_that_needs_memory_reads_it() -> None:
    model = gated(0.999)
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    assert model.generate(memory, ASKED, max_new_tokens=2).used_memory
    assert not model.generate(memory, ASKED, max_new_tokens=2, gate="never").used_memory
    assert not model.generate(model.new_memory(), ASKED, max_new_tokens=2, gate="always").used_memory


class Declining:
    """A logits processor: every answer begins by declining."""

    def __init__(self, model: MPlus) -> None:
        self._token = declining_token(model.tokenizer)

    def __call__(self, token_ids: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        if token_ids:
            return scores
        only = torch.full_like(scores, float("-inf"))
        only[self._token] = 0.0
        return only


def test_what_memory_declines_is_answered_without_it_where_the_gate_is_in_doubt() -> None:
    for probability, used in ((0.2, False), (0.8, True)):
        model = gated(probability)
        memory = model.new_memory()
        model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
        options: Any = {"max_new_tokens": 6, "processors": [Declining(model)], "seed": 3, "temperature": 1.0}
        answer = model.generate(memory, ASKED, **options)
        empty = model.generate(model.new_memory(), ASKED, **options)
        assert answer.used_memory == used == bool(answer.recalled)
        assert (answer.token_ids == empty.token_ids and answer.confidence == empty.confidence) != used
        with model.serve() as scheduler:
            assert scheduler.generate(memory, ASKED, **options).token_ids == answer.token_ids


def test_rows_that_turn_away_from_memory_leave_the_others_as_they_are() -> None:
    model = gated(0.2)
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    questions = [[{"role": "user", "content": f"Who is number {n}?"}] for n in range(3)]

    class SecondDeclines(Declining):
        calls = 0

        def __call__(self, token_ids: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().__call__(token_ids, scores) if self.calls == 2 else scores

    alone = [model.generate(memory, question, max_new_tokens=5) for question in questions]
    plain = model.generate(model.new_memory(), questions[1], max_new_tokens=5)
    answers = model.generate_batch([memory] * 3, questions, max_new_tokens=5, processors=[SecondDeclines(model)])
    assert [answer.used_memory for answer in answers] == [True, False, True]
    assert answers[0].token_ids == alone[0].token_ids
    assert answers[1].token_ids == plain.token_ids
    assert answers[2].token_ids == alone[2].token_ids


def test_what_declines_is_streamed_once() -> None:
    model = gated(0.2)
    memory = model.new_memory()
    model.write(memory, "My dog is called Rex and he is four years old.", source="chat")
    stream = model.stream(memory, ASKED, max_new_tokens=6, processors=[Declining(model)])
    assert "".join(stream) == stream.generation.text
    assert not stream.generation.used_memory


def test_a_completion_is_never_gated() -> None:
    model = gated(0.001)
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
    model = gated(0.001)
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
