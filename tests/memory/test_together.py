"""Several memories read as one: as if one memory held the texts of all, and each keeps its own."""

import pytest
import torch

from mplus import Memory, MemoryMismatchError, MPlus
from mplus.config import MemoryConfig
from mplus.memory.together import together
from mplus.read.prefill import prefill
from mplus.recall.coarse import coarse_index
from mplus.testing import tiny_model
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
QUESTION = "Where is box 3?"
ROOMS = ["hall", "attic", "cellar", "barn", "tower"]


def facts(first: int, count: int = 5) -> list[str]:
    return [f"Box {n} is in the {ROOMS[n % 5]}, as it always was." for n in range(first, first + count)]


def written(texts: list[str], model: MPlus = MODEL, config: MemoryConfig | None = None, *, name: str = "s") -> Memory:
    memory = model.new_memory(config=config)
    for number, text in enumerate(texts):
        model.write(memory, text, source=f"{name}{number}", keep_text=True)
    return memory


def logits(memory: Memory | list[Memory], **options: object) -> torch.Tensor:
    return prefill(MODEL.weights, [MODEL.read_request(memory, QUESTION, **options)]).logits  # type: ignore[arg-type]


@pytest.mark.parametrize("short_term", [0, 96, 4096])
def test_two_memories_are_read_as_one_with_the_texts_of_both(short_term: int) -> None:
    config = TINY.model_copy(update={"short_term_tokens": short_term, "consolidate_every": 1})
    if short_term == 96:  # each has a short-term memory of its own, which one memory of twice the size would not split
        config = config.model_copy(update={"short_term_tokens": 512})
    shared, own = written(facts(0), config=config), written(facts(5, 3), config=config)
    both = written([*facts(0), *facts(5, 3)], config=config)
    torch.testing.assert_close(logits([own, shared]), logits(both), atol=1e-4, rtol=1e-4)
    found = MODEL.search([own, shared], QUESTION, limit=None)
    alone = MODEL.search(both, QUESTION, limit=None)
    assert [(f.texts, round(f.relevance, 4)) for f in found] == [(f.texts, round(f.relevance, 4)) for f in alone]
    assert {(f.source, f.memory) for f in found} == {(f"s{n}", 1) for n in range(5)} | {(f"s{n}", 0) for n in range(3)}


def test_both_short_term_pools_are_read_and_what_is_recalled_says_from_where() -> None:
    shared, own = written(facts(0, 12), name="doc"), written(facts(30, 12), name="note")
    before = own.fingerprint, shared.fingerprint
    answer = MODEL.generate([own, shared], QUESTION, max_new_tokens=4)
    pools = [len(memory.state.tracks[0].short_term) for memory in (own, shared)]
    assert answer.prefix_tokens > 1 + sum(pools) and sum(pools) > TINY.short_term_tokens
    assert {r.source[:3]: r.memory for r in answer.recalled}.items() <= {"not": 0, "doc": 1}.items()
    assert answer.recalled and abs(sum(r.share for r in answer.recalled) - 1) < 1e-6
    assert (own.fingerprint, shared.fingerprint) == before


def test_chunks_that_get_other_numbers_are_not_sought_in_an_index_of_the_old_ones() -> None:
    config = TINY.model_copy(update={"consolidate_every": 1})
    large, small = written(facts(0, 12), config=config), written(facts(20, 2), config=config)
    stored = large.state.tracks[0].long_term
    assert len(stored) and not len(small.state.tracks[0].long_term)
    index = coarse_index(stored)
    for states in ([large.state, small.state], [small.state, large.state]):
        store = together(states).state.tracks[0].long_term
        assert torch.equal(coarse_index(store).chunks, store.provenance.chunks.unique())
    assert coarse_index(store) is index, "the last memory keeps its numbers"


def test_an_empty_memory_beside_another_changes_nothing() -> None:
    shared = written(facts(0, 12))
    assert torch.equal(logits([MODEL.new_memory(), shared]), logits(shared))
    assert torch.equal(logits([shared, MODEL.new_memory()]), logits(shared))
    empty = MODEL.generate([MODEL.new_memory(), MODEL.new_memory()], QUESTION, max_new_tokens=4)
    assert empty.prefix_tokens == 0
    assert empty.text == MODEL.generate(MODEL.new_memory(), QUESTION, max_new_tokens=4).text


def test_sources_are_chosen_in_each_memory_apart_even_of_one_name() -> None:
    shared, own = written(facts(0, 12)), written(facts(30, 12))
    only = {"s1", "s2"}
    torch.testing.assert_close(
        logits([own, shared], where=[None, lambda name, _: False]), logits(own), atol=1e-4, rtol=1e-4
    )
    limited = MODEL.search([own, shared], QUESTION, limit=None, where=[lambda name, _: name in only, {"kind": "none"}])
    assert {(f.source, f.memory) for f in limited} == {("s1", 0), ("s2", 0)}
    assert {f.source for f in MODEL.search([own, shared], QUESTION, limit=None, where=lambda n, _: n in only)} == only
    with pytest.raises(ValueError, match="3 conditions in where for 2 memories"):
        MODEL.search([own, shared], QUESTION, where=[None, None, None])


def test_recall_frequencies_rise_in_the_memory_that_was_recalled_from() -> None:
    config = TINY.model_copy(update={"short_term_tokens": 32, "consolidate_every": 1})
    shared, own = written(facts(0, 12), config=config), written(facts(30, 12), config=config)
    MODEL.generate([own, shared], QUESTION, max_new_tokens=2, where=[lambda name, _: name == "s0", lambda *_: False])
    for memory, raised in ((own, {0}), (shared, set())):
        known = memory.state.tracks[0].long_term.provenance
        risen = known.recall_frequencies > config.initial_recall_frequency
        assert set(known.sources[risen].tolist()) == raised


def test_what_is_forgotten_is_not_held_by_an_earlier_read_of_both() -> None:
    shared, own = written(facts(0, 12)), written(facts(30, 12))
    logits([own, shared])
    joined = MODEL._requests.present._joined
    assert joined.get([own.state, shared.state]) is not None
    known = len(joined._known)
    shared.forget("s3")
    assert len(joined._known) == known - 1
    never = written([text for number, text in enumerate(facts(0, 12)) if number != 3])
    torch.testing.assert_close(logits([own, shared]), logits([own, never]), atol=1e-4, rtol=1e-4)


def test_a_coarse_index_of_the_shared_memory_is_used_again() -> None:
    config = TINY.model_copy(update={"short_term_tokens": 32, "consolidate_every": 1, "exact_recall_tokens": 64})
    shared, own = written(facts(0, 40), config=config), written(facts(50, 3), config=config)
    from mplus.recall.coarse import CoarseIndex

    logits([own, shared])
    read = MODEL._requests.present.of([own, shared]).state.tracks[0].long_term
    assert read.lasting[CoarseIndex] is shared.state.tracks[0].long_term.lasting[CoarseIndex]


def test_they_are_served_and_batched_together() -> None:
    shared, users = written(facts(0, 12)), [written(facts(30 + n, 4)) for n in range(3)]
    expected = [MODEL.generate([user, shared], QUESTION, max_new_tokens=6).text for user in users]
    pairs = [[user, shared] for user in users]
    assert [a.text for a in MODEL.generate_batch(pairs, [QUESTION] * 3, max_new_tokens=6)] == expected
    with MODEL.serve() as scheduler:
        assert [scheduler.generate(pair, QUESTION, max_new_tokens=6).text for pair in pairs] == expected


def test_the_single_token_layout_is_read_together_too() -> None:
    config = TINY.model_copy(update={"layout": "token", "recall": "attention"})
    model = tiny_model(memory=config)
    shared, own = written(facts(0), model), written(facts(5), model)
    answer = model.generate([own, shared], QUESTION, max_new_tokens=4)
    assert {r.memory for r in answer.recalled} <= {0, 1} and answer.prefix_tokens > 1


def test_memories_that_cannot_be_read_together_are_refused() -> None:
    one = written(facts(0))
    for wrong in ([], [one, one]):
        with pytest.raises(ValueError, match="expected a Memory, or several"):
            MODEL.generate(wrong, QUESTION)
    token = MODEL.new_memory(config=TINY.model_copy(update={"layout": "token", "recall": "attention"}))
    with pytest.raises(MemoryMismatchError, match="layout='chunk' and 'token'"):
        MODEL.generate([one, token], QUESTION)
    with pytest.raises(MemoryMismatchError, match="fingerprint"):
        MODEL.generate([one, tiny_model(3, memory=TINY).new_memory()], QUESTION)


def test_texts_of_both_stand_in_the_prompt_where_memory_is_read_as_text() -> None:
    config = TINY.model_copy(update={"read": "text", "chunk_tokens": 64, "recalled_tokens": 200})
    shared, own = MODEL.new_memory(config=config), MODEL.new_memory(config=config)
    MODEL.write(shared, "The spare key of the museum is in the red vase.", source="note")
    MODEL.write(own, "My own spare key is in the blue teapot, as ever.", source="note")
    request = MODEL.read_request([own, shared], "Where is the spare key?")
    told = MODEL.tokenizer.decode(list(request.input_ids))
    assert "red vase" in told and "blue teapot" in told
    answer = MODEL.generate([own, shared], "Where is the spare key?", max_new_tokens=2)
    assert {(found.source, found.memory) for found in answer.recalled} == {("note", 0), ("note", 1)}
