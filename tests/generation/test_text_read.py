"""What a read as text takes besides what is relevant, and what it leaves out."""

from dataclasses import replace

import pytest
import torch

from mplus import MPlus
from mplus.decline_head import DeclineHead
from mplus.generation import engine
from mplus.generation.sampling import SamplingParams
from mplus.memory.memory import Memory
from mplus.recall.texts import drop_least
from tests.generation.test_told import ASKED, TEXT, TOLD, adapted, prompt_of

ANOTHER = [{"role": "user", "content": "Another one, please."}]
SAID = [("user", "User: Suggest a name for my boat."), ("assistant", "Assistant: Call it Petrel.")]


def with_notes(model: MPlus, turns: list[tuple[str, str]]) -> Memory:
    """A memory of many notes that share words with the question, and of what was said after them."""
    memory = model.new_memory(config=TEXT.model_copy(update={"recalled_tokens": 400}))
    model.write(memory, [f"Another tree, number {number}, please note it." for number in range(40)])
    for number, (role, text) in enumerate(turns):
        model.write(memory, text, source=f"turn-{number}", metadata={"role": role})
    return memory


def test_what_was_said_last_is_read_whatever_is_asked() -> None:
    model = adapted("text")
    memory = with_notes(model, SAID)
    prompt = prompt_of(model, memory, ANOTHER)
    assert prompt.index(SAID[0][1]) < prompt.index(SAID[1][1]), "in the order of writing"
    assert "Another tree" in prompt, "what is relevant is read as well"
    cited = {source.source: source for source in model.generate(memory, ANOTHER, max_new_tokens=2).recalled}
    assert {"turn-0", "turn-1"} <= cited.keys()
    elsewhere = prompt_of(model, memory, ANOTHER, where=lambda name, _: not name.startswith("turn"))
    assert "Petrel" not in elsewhere


def test_texts_that_nobody_said_are_read_by_relevance_alone() -> None:
    model = adapted("text")
    memory = with_notes(model, [])
    before = prompt_of(model, memory, ANOTHER)
    model.write(memory, "A boat that is called Petrel.", source="a document")
    assert prompt_of(model, memory, ANOTHER) == before


def test_turns_under_one_name_are_read_too() -> None:
    model = adapted("text")
    memory = with_notes(model, [])
    for role, text in SAID:
        model.write(memory, text, source="chat", metadata={"role": role})
    prompt = prompt_of(model, memory, ANOTHER)
    assert SAID[0][1] in prompt and SAID[1][1] in prompt


def test_what_was_said_last_never_displaces_what_answers_best() -> None:
    model = adapted("text")
    memory = model.new_memory(config=TEXT.model_copy(update={"recalled_tokens": 60}))
    model.write(memory, "Another one, please: that is box number seven.")  # 46 tokens
    model.write(memory, "User: Thanks.", metadata={"role": "user"})
    model.write(memory, "Assistant: Yes.", metadata={"role": "assistant"})
    assert "that is box number seven" in prompt_of(model, memory, ANOTHER)


def test_a_role_that_nobody_speaks_in_makes_no_turn() -> None:
    model = adapted("text")
    memory = with_notes(model, [])
    before = prompt_of(model, memory, ANOTHER)
    model.write(memory, "Carla Meyer mends the boats.", metadata={"role": "engineer"})
    model.write(memory, "Paul Weber paints them.", metadata={"role": ["user", "painter"]})
    assert prompt_of(model, memory, ANOTHER) == before


def test_in_a_small_window_the_least_relevant_is_left_out_first() -> None:
    model = adapted("text")
    request = model.read_request(with_notes(model, SAID), ANOTHER)
    pieces = list(request.pieces)
    assert sum(piece.is_latest for piece in pieces) == 2
    best, latest = pieces[0], [piece for piece in pieces if piece.is_latest]
    while len(pieces) > 3:
        drop_least(pieces)
    assert pieces == [best, *latest]
    drop_least(pieces)
    assert pieces == [best, latest[0]], "of what was said last the later is kept"


def test_where_everything_fits_turns_change_nothing() -> None:
    model = adapted("text")
    prompts: list[str] = []
    for about in ({}, {"role": "user"}):
        memory = model.new_memory()
        for number in range(4):
            model.write(memory, f"User: Tree {number} grows here.", metadata=about)
        prompts.append(prompt_of(model, memory, ANOTHER))
    assert prompts[0] == prompts[1]


def test_of_nothing_that_may_be_read_the_backbone_answers() -> None:
    model = adapted("text")
    size = model.weights.backbone.hidden_size
    head = DeclineHead(size, 1, "text").requires_grad_(False)
    head.state.bias.fill_(9.0)
    parts = replace(model.trained_parts, decline_threshold=0.5)
    model = MPlus(replace(model.weights, decline_head=head), model.tokenizer, TEXT, parts=parts)
    memory = model.new_memory()
    model.write(memory, TOLD, metadata={"team": "blue"})
    spared = model.generate(memory, ASKED, where={"team": "red"}, max_new_tokens=6)
    empty = model.generate(model.new_memory(), ASKED, max_new_tokens=6)
    assert not spared.used_memory
    assert (spared.token_ids, spared.confidence) == (empty.token_ids, empty.confidence)


def test_a_penalty_for_repeating_spares_what_was_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[list[int]] = []
    sampler = engine.Sampler

    def counting(params: SamplingParams, ids: list[int], device: torch.device) -> engine.Sampler:
        counted.append(ids)
        return sampler(params, ids, device)

    monkeypatch.setattr(engine, "Sampler", counting)
    model = adapted("text")
    memory = model.new_memory()
    model.write(memory, TOLD)
    model.generate(memory, ASKED, max_new_tokens=2, repetition_penalty=1.1)
    model.generate(model.new_memory(), ASKED, max_new_tokens=2, repetition_penalty=1.1)
    assert counted[0] == counted[1], "the same question"
