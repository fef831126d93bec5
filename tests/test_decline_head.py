"""The decline head says for a model that memory does not answer, and is kept with the trained parts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mplus import CheckpointError, MemoryConfig, MPlus
from mplus.checkpoint.parts import TrainedParts, read_parts, write_parts
from mplus.decline_head import DeclineHead, ReadAs
from mplus.generation.declining import DECLINED
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from tests.recall.test_gate import gated

ASKED = [{"role": "user", "content": "Who calls?"}]


def with_head(model: MPlus, bias: float, read: ReadAs = "latent", layer: int = 1) -> MPlus:
    """The model with a head that finds the same of every prompt."""
    head = DeclineHead(model.weights.backbone.hidden_size, layer, read).requires_grad_(False)
    head.state.weight.zero_()
    head.state.bias.fill_(bias)
    weights = replace(model.weights, decline_head=head)
    parts = replace(model.trained_parts, decline_head=head, decline_threshold=0.5)
    return MPlus(weights, model.tokenizer, model.memory_config, parts=parts, reads=model.reads)


def told(model: MPlus, **config: object):
    memory = model.new_memory(config=MemoryConfig.model_validate(model.memory_config.model_dump() | config))
    model.write(memory, "The ferryman calls at six.", source="a")
    return memory


@pytest.mark.parametrize("read", ["latent", "text"])
def test_it_declines_to_the_end_for_a_model_that_never_learnt_to(model: MPlus, read: ReadAs) -> None:
    declines, answers = with_head(model, 9.0, read), with_head(model, -9.0, read)
    memory, plain = told(model, read=read), told(model, read=read)
    said = declines.generate(memory, ASKED, max_new_tokens=40)
    assert said.text == DECLINED and said.finish_reason == "stop"
    assert "".join(declines.stream(memory, ASKED, max_new_tokens=40)) == DECLINED
    assert answers.generate(plain, ASKED, max_new_tokens=8).text == model.generate(plain, ASKED, max_new_tokens=8).text
    assert declines.generate(memory, ASKED, max_new_tokens=8, decline_threshold=1.0).text != DECLINED


@pytest.mark.parametrize("read", ["latent", "text"])
def test_what_it_declines_is_answered_without_memory_where_the_gate_is_in_doubt(read: ReadAs) -> None:
    for bias, gate, used in ((9.0, 0.2, False), (-9.0, 0.2, True), (9.0, 0.8, True)):
        model = with_head(gated(gate), bias, read)
        memory = told(model, read=read)
        answer = model.generate(memory, ASKED, max_new_tokens=40)
        empty = model.generate(model.new_memory(), ASKED, max_new_tokens=40)
        assert answer.used_memory == used == bool(answer.recalled), (bias, gate)
        assert (answer.token_ids == empty.token_ids) != used
        assert (answer.text == DECLINED) == (bias > 0 and used)


def test_an_answer_in_text_that_begins_as_declining_does_is_kept() -> None:
    """A model that reads text may begin with "I" what the head finds answered."""
    model = with_head(gated(0.2), -9.0, "text")
    first = model.tokenizer.encode(DECLINED)[0]

    def begins(token_ids: list[int], scores: torch.Tensor) -> torch.Tensor:
        return scores if token_ids else scores.index_fill(0, torch.tensor([first]), 1e4)

    answer = model.generate(told(model, read="text"), ASKED, max_new_tokens=8, processors=[begins])
    assert answer.used_memory and answer.token_ids[0] == first
    # One that learnt to decline, whose head weighs what it says itself, begins so only to decline.
    head = model.trained_parts.decline_head
    assert head is not None
    head.own.fill_(1e-6)
    answer = model.generate(told(model, read="text"), ASKED, max_new_tokens=8, processors=[begins])
    assert answer.used_memory and answer.token_ids[0] != first


def test_beside_tools_a_model_that_reads_text_says_what_it_would(model: MPlus) -> None:
    tool = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
    memory = told(model, read="text")
    plain = model.generate(memory, ASKED, max_new_tokens=8, tools=[tool]).text
    for bias in (9.0, -9.0):
        assert with_head(model, bias, "text").generate(memory, ASKED, max_new_tokens=8, tools=[tool]).text == plain


def test_it_counts_only_for_the_way_of_reading_that_it_was_fitted_to(model: MPlus) -> None:
    declines = with_head(model, 9.0, "text")
    assert declines.generate(told(model, read="latent"), ASKED, max_new_tokens=16).text != DECLINED
    assert declines.generate(model.new_memory(), ASKED, max_new_tokens=16).text != DECLINED
    latents = with_head(model, 9.0, "latent")
    assert latents.generate(told(model, read="text"), ASKED, max_new_tokens=16).text != DECLINED


def test_each_row_of_a_batch_has_its_own_odds(model: MPlus) -> None:
    """Prompts of unequal length, read together and alone, give the same log-odds."""
    head = DeclineHead(model.weights.backbone.hidden_size, 1, "latent").requires_grad_(False)
    torch.nn.init.normal_(head.state.weight, generator=torch.Generator().manual_seed(0))
    weights = replace(model.weights, decline_head=head)
    memory = told(model)
    prompts = [[{"role": "user", "content": "Who calls?" * times}] for times in (1, 3, 2)]
    requests = [model.read_request(memory, prompt) for prompt in prompts]
    together = prefill(weights, requests).reading.decline_odds
    alone = [prefill(weights, [request]).reading.decline_odds for request in requests]
    assert together is not None and len({round(float(odds), 3) for odds in together}) == 3
    torch.testing.assert_close(together, torch.cat([odds for odds in alone if odds is not None]), atol=1e-4, rtol=1e-4)


def test_models_that_are_read_by_their_own_layers_have_one_too() -> None:
    model = with_head(tiny_model(model_type="gemma2"), 9.0)
    assert model.generate(told(model), ASKED, max_new_tokens=40).text == DECLINED


def test_it_is_kept_with_the_trained_parts(tmp_path: Path) -> None:
    head = DeclineHead(8, 3, "text").requires_grad_(False)
    head.own.fill_(0.25)
    write_parts(tmp_path, TrainedParts(decline_head=head))
    kept = read_parts(tmp_path).decline_head
    assert kept is not None and (kept.layer, kept.read, float(kept.own)) == (3, "text", 0.25)
    assert torch.equal(kept.state.weight, head.state.weight)
    file = tmp_path / "mplus.json"
    for wrong in ({"layer": -1, "read": "text"}, {"layer": 3, "read": "aloud"}, 3, None):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"decline_head": wrong}))
        with pytest.raises(CheckpointError, match="decline_head="):
            read_parts(tmp_path)


def test_one_of_another_model_is_refused(model: MPlus, tmp_path: Path) -> None:
    for head in (DeclineHead(8, 1, "text"), DeclineHead(model.weights.backbone.hidden_size, 99, "text")):
        model.save_pretrained(tmp_path)
        write_parts(tmp_path, TrainedParts(decline_head=head.requires_grad_(False)))
        with pytest.raises(CheckpointError, match="--stages decline"):
            MPlus.from_pretrained(tmp_path)
