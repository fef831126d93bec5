"""Searching sources, and reading only those that match."""

import pytest
import torch

from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.read.prefill import prefill

NOTES = [f"Box {n} is in the {place}, as it was before." for n, place in enumerate(["hall", "cellar", "attic", "barn"])]


@pytest.fixture
def memory(model: MPlus) -> Memory:
    memory = model.new_memory()
    for n, note in enumerate(NOTES):
        model.write(memory, note, source=f"note-{n}", metadata={"even": n % 2 == 0, "n": n}, keep_text=True)
    return memory


def test_the_same_words_are_found_in_any_pool(model: MPlus, memory: Memory) -> None:
    for n, note in enumerate(NOTES):
        found = model.search(memory, note, limit=2)
        assert found[0].source == f"note-{n}" and found[0].texts == (note,)
        assert found[0].relevance > found[1].relevance and len(found) == 2
    assert len(model.search(memory, NOTES[0], limit=None)) == len(NOTES)


def test_only_sources_that_match_are_found(model: MPlus, memory: Memory) -> None:
    found = model.search(memory, NOTES[1], where={"even": True}, limit=None)
    assert {f.source for f in found} == {"note-0", "note-2"}
    found = model.search(memory, NOTES[1], where=lambda name, metadata: metadata["n"] > 2)
    assert [f.source for f in found] == ["note-3"]
    assert model.search(memory, NOTES[1], where={"missing": None}) == []


def test_a_read_with_where_equals_a_memory_of_what_matches(model: MPlus, memory: Memory) -> None:
    only = model.new_memory()
    for n, note in enumerate(NOTES):
        if n % 2 == 0:
            model.write(only, note, source=f"note-{n}", metadata={"even": True})
    question = "Where is box 2?"
    expected = prefill(model.weights, [model.read_request(only, question)]).logits
    request = model.read_request(memory, question, where={"even": True})
    torch.testing.assert_close(prefill(model.weights, [request]).logits, expected, atol=1e-4, rtol=1e-4)
    answer = model.generate(memory, question, where={"even": True}, max_new_tokens=4)
    assert {r.source for r in answer.recalled} <= {"note-0", "note-2"}


def test_bad_searches_are_refused(model: MPlus, memory: Memory) -> None:
    with pytest.raises(ValueError, match="query"):
        model.search(memory, "  ")
    with pytest.raises(ValueError, match="limit"):
        model.search(memory, "box", limit=0)
    assert model.search(model.new_memory(), "box") == []


def test_kept_texts_survive_save_fork_and_forget(model: MPlus, memory: Memory, tmp_path) -> None:
    memory.save(tmp_path / "m")
    again = Memory.load(tmp_path / "m", model)
    assert [s.texts for s in again.sources()] == [(note,) for note in NOTES]
    fork = again.fork()
    fork.forget("note-1")
    assert NOTES[1] not in (tmp_path / "m" / "memory.json").read_text() or len(fork.sources()) == 3
    fork.save(tmp_path / "m")
    assert NOTES[1] not in (tmp_path / "m" / "memory.json").read_text()
