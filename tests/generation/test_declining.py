"""An answer from memory declines where that is likely enough, and only there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mplus import MPlus, MPlusError
from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.generation.declining import DECLINED, DeclineThreshold
from mplus.recall.gate import Gate
from mplus.testing import tiny_model

ASKED = [{"role": "user", "content": "Who calls?"}]


def first_token(model: MPlus) -> int:
    return model.tokenizer(DECLINED, add_special_tokens=False)["input_ids"][0]


def test_the_first_token_of_declining_needs_its_probability(model: MPlus) -> None:
    declines = first_token(model)
    scores = torch.zeros(model.weights.backbone.config.vocab_size)
    scores[declines] = 8.0
    probability = float(scores.softmax(dim=-1)[declines])
    taken = DeclineThreshold(model.tokenizer, probability - 0.01)([], scores)
    assert taken[declines] == 8.0 and taken.isfinite().sum() == 1
    assert torch.equal(DeclineThreshold(model.tokenizer, probability - 0.01, forces=False)([], scores), scores)
    barred = DeclineThreshold(model.tokenizer, probability + 0.01)([], scores)
    assert barred.argmax() != declines
    assert scores[declines] == 8.0  # the caller's stay as they are
    assert torch.equal(DeclineThreshold(model.tokenizer, 1.0)([5], scores), scores)  # later tokens are free


def declining(model: MPlus, score: float = 12.0) -> MPlus:
    """The model with a head that gives one score to beginning to decline: most of the probability, or a little."""
    head = model.weights.backbone.model.lm_head
    declines = first_token(model)
    head.register_forward_hook(lambda _m, _i, logits: logits.index_fill(-1, torch.tensor([declines]), score))
    return model


def test_from_its_threshold_on_declining_wins_over_what_is_likelier_but_not_beside_tools() -> None:
    model = declining(tiny_model(decline_threshold=1e-6), score=0.0)
    begins = model.tokenizer.decode([first_token(model)])
    memory = model.new_memory()
    model.write(memory, "The ferryman calls at six.", source="a")
    likeliest = model.generate(memory, ASKED, max_new_tokens=1, decline_threshold=0.0).text
    assert likeliest != begins
    assert model.generate(memory, ASKED, max_new_tokens=1).text == begins
    assert "".join(model.stream(memory, ASKED, max_new_tokens=1)) == begins
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
    beside = model.generate(memory, ASKED, max_new_tokens=1, tools=[tool], decline_threshold=0.0).text
    assert model.generate(memory, ASKED, max_new_tokens=1, tools=[tool]).text == beside != begins


def test_a_model_s_own_threshold_counts_where_a_call_gives_none_and_only_for_chat_from_memory() -> None:
    model = declining(tiny_model(decline_threshold=1.0))
    begins = model.tokenizer.decode([first_token(model)])
    memory, empty = model.new_memory(), model.new_memory()
    model.write(memory, "The ferryman calls at six.", source="a")
    assert model.decline_threshold == 1.0
    assert not model.generate(memory, ASKED, max_new_tokens=1).text.startswith(begins)
    assert model.generate(memory, ASKED, max_new_tokens=1, decline_threshold=0.0).text == begins
    assert model.generate(empty, ASKED, max_new_tokens=1).text == begins
    assert model.generate(memory, "Who calls?", max_new_tokens=1).text == begins
    batch = model.generate_batch([memory, empty], [ASKED, ASKED], max_new_tokens=1)
    assert [answer.text == begins for answer in batch] == [False, True]


def test_nothing_is_forced_where_a_gate_could_not_look() -> None:
    model = declining(tiny_model(decline_threshold=1e-6), score=0.0)
    size = model.weights.backbone.hidden_size
    gated = replace(model.weights, gate=Gate(torch.zeros(size), torch.ones(size), 4))
    model = MPlus(gated, model.tokenizer, model.memory_config, parts=model.trained_parts)
    begins = model.tokenizer.decode([first_token(model)])
    memory = model.new_memory(config=model.memory_config.model_copy(update={"recall": "attention"}))
    model.write(memory, "The ferryman calls at six.", source="a")
    assert model.generate(memory, ASKED, max_new_tokens=1, gate="auto").text != begins
    assert model.generate(memory, ASKED, max_new_tokens=1, gate="always").text == begins


def test_it_is_kept_with_the_trained_parts(tmp_path: Path) -> None:
    write_parts(tmp_path, TrainedParts(decline_threshold=0.75))
    assert read_parts(tmp_path).decline_threshold == 0.75
    (tmp_path / "mplus.json").write_text((tmp_path / "mplus.json").read_text().replace("0.75", "1.5"))
    with pytest.raises(MPlusError, match=r"decline_threshold=1\.5; expected a probability"):
        read_parts(tmp_path)


def test_values_that_are_no_probability_are_refused(model: MPlus) -> None:
    with pytest.raises(ValueError, match="decline_threshold"):
        model.generate(model.new_memory(), ASKED, decline_threshold=1.5)
