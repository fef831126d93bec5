"""What an answer says it has read: every source of every pool, and which may contradict each other."""

from typing import Any

import pytest

from mplus import Memory, MemoryConfig, MPlus
from mplus.testing import tiny_model
from tests.conftest import TINY

INNOCENT = "Invoices are paid to account 1111, says the handbook."
POISON = "Invoices are paid to account 6666, says the handbook."
ASKED = "To which account are invoices paid, says the handbook?"
FILLER = "A long text about pears, plums and figs, which has nothing to do with it. "


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model(memory=TINY)


def told(model: MPlus, memory: Memory, *texts: tuple[str, str], **metadata: Any) -> Memory:
    for source, text in texts:
        model.write(memory, text, source=source, metadata=metadata or {"trust": 3}, keep_text=True)
    return memory


def test_a_source_in_short_term_memory_is_named_with_pool_and_share(model: MPlus) -> None:
    memory = told(model, model.new_memory(), ("handbook", INNOCENT))
    (read,) = model.generate(memory, ASKED, max_new_tokens=2).recalled
    assert (read.source, read.pool, read.share, read.metadata) == ("handbook", "short_term", 1.0, {"trust": 3})


@pytest.mark.parametrize("read", ["latent", "text"])
def test_every_source_that_was_read_is_named(model: MPlus, read: Any) -> None:
    config = TINY.model_copy(update={"read": read, "recalled_tokens": 128})
    memory = told(model, model.new_memory(config=config), ("handbook", INNOCENT), ("pears", FILLER * 6))
    told(model, memory, ("mail", POISON))
    answer = model.generate(memory, ASKED, max_new_tokens=2)
    found = {one.source: one for one in answer.recalled}
    assert {"handbook", "mail"} <= found.keys() and found["mail"].pool == "short_term"
    assert found["handbook"].pool == "long_term"
    assert sum(one.share for one in answer.recalled) == pytest.approx(1)
    relevance = [one.relevance for one in answer.recalled]
    assert relevance == sorted(relevance, reverse=True), "what answers comes first, not what was read most"
    if read == "latent":
        held = {s.name for s in memory.sources() if s.tokens.short_term}
        assert held <= found.keys(), "all of short-term memory is read"


@pytest.mark.parametrize("read", ["latent", "text"])
def test_the_source_that_answers_comes_before_one_that_was_merely_read(model: MPlus, read: Any) -> None:
    config = TINY.model_copy(update={"read": read, "recalled_tokens": 128})
    memory = told(model, model.new_memory(config=config), ("notes", INNOCENT), ("pears", FILLER * 9))
    found = model.generate(memory, ASKED, max_new_tokens=2).recalled
    assert found[0].source == "notes" and found[0].pool == "long_term"
    if read == "latent":
        assert found[1].source == "pears" and found[1].share > found[0].share and found[1].pool != "long_term"


def test_what_was_not_scored_comes_last_and_what_recall_chose_before_what_is_always_read(model: MPlus) -> None:
    config = MemoryConfig.model_validate({**TINY.model_dump(), "layout": "token", "recalled_tokens": 8})
    memory = told(model, model.new_memory(config=config), ("notes", INNOCENT), ("pears", FILLER * 9))
    pools = [one.pool for one in model.generate(memory, ASKED, max_new_tokens=2).recalled]
    assert pools == sorted(pools, key=lambda pool: pool == "short_term")


@pytest.mark.parametrize("read", ["latent", "text"])
def test_a_newer_source_about_the_same_is_reported_as_newer(model: MPlus, read: Any) -> None:
    config = TINY.model_copy(update={"read": read, "recalled_tokens": 128})
    memory = told(model, model.new_memory(config=config), ("handbook", INNOCENT), ("pears", FILLER), ("mail", POISON))
    found = {one.source: one for one in model.generate(memory, ASKED, max_new_tokens=2).recalled}
    assert "handbook" in found["mail"].newer_than and "mail" not in found["handbook"].newer_than
    assert all("pears" not in one.newer_than for one in found.values())


def test_where_by_trust_keeps_the_untrusted_out_of_every_pool(model: MPlus) -> None:
    memory = told(model, model.new_memory(), ("handbook", INNOCENT))
    told(model, memory, ("pears", FILLER * 6), ("mail", POISON), trust=0)
    answer = model.generate(memory, ASKED, where=lambda _, metadata: metadata["trust"] >= 2, max_new_tokens=2)
    assert [one.source for one in answer.recalled] == ["handbook"]
    only = told(model, model.new_memory(), ("handbook", INNOCENT))
    assert model.generate(only, ASKED, max_new_tokens=2).recalled[0].newer_than == answer.recalled[0].newer_than == ()


def test_sources_of_several_memories_are_named_with_their_memory(model: MPlus) -> None:
    handbook = told(model, model.new_memory(), ("handbook", INNOCENT))
    mails = told(model, model.new_memory(), ("mail", POISON))
    answer = model.generate([mails, handbook], ASKED, max_new_tokens=2)
    assert {one.source: one.memory for one in answer.recalled} == {"mail": 0, "handbook": 1}


def test_what_was_not_read_is_not_named(model: MPlus) -> None:
    memory = told(model, model.new_memory(), ("handbook", INNOCENT))
    assert model.generate(memory, ASKED, gate="never", max_new_tokens=2).recalled == ()
    assert model.generate(model.new_memory(), ASKED, max_new_tokens=2).recalled == ()


def test_confidence_does_not_depend_on_what_short_term_memory_gives_in_any_case(model: MPlus) -> None:
    memory = told(model, model.new_memory(), ("handbook", INNOCENT))
    evidence = model.generate(memory, ASKED, max_new_tokens=2).evidence
    assert evidence is not None and not evidence.recalled and evidence.relevance == 0


def test_the_layout_of_single_tokens_names_its_sources_too() -> None:
    config = MemoryConfig(**{**TINY.model_dump(), "layout": "token", "recalled_neighbours": 0})
    model = tiny_model(memory=config)
    memory = told(model, model.new_memory(), ("handbook", INNOCENT), ("mail", POISON))
    found = model.generate(memory, ASKED, max_new_tokens=2).recalled
    assert {"handbook", "mail"} == {one.source for one in found} and sum(o.share for o in found) == pytest.approx(1)
    assert all(one.newer_than == () for one in found)
