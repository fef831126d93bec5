"""Which sentences an answer reads: whole, in order, from the pools and memories that they are read from."""

from itertools import pairwise
from typing import Any

import pytest

from mplus import Memory, MemoryConfig, MPlus, ReadPassage
from mplus.testing import tiny_model
from tests.conftest import TINY

HANDBOOK = ["Invoices are paid to account 1111, says the handbook.", "They are paid on Mondays."]
FILLER = [f"Tree {n} grows beside the old mill, and nobody counts its leaves." for n in range(9)]
MAIL = ["The office moves to Graz in May."]
ASKED = "To which account are invoices paid, says the handbook?"


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model(memory=TINY)


def written(model: MPlus, **changes: Any) -> Memory:
    memory = model.new_memory(config=MemoryConfig(**{**TINY.model_dump(), "recalled_tokens": 128, **changes}))
    for name, sentences in (("handbook", HANDBOOK), ("trees", FILLER), ("mail", MAIL)):
        model.write(memory, " ".join(sentences), source=name)
    return memory


def said(passage: ReadPassage) -> str:
    return " ".join(passage.sentences).removeprefix("… ").removesuffix(" …")


def read(model: MPlus, memory: Any, **options: Any) -> tuple[ReadPassage, ...]:
    stream = model.stream(memory, ASKED, max_new_tokens=2, **options)
    assert stream.passages() == (), "nothing has been read yet"
    next(stream)
    first = stream.passages()
    list(stream)
    assert stream.passages() == first
    return first


@pytest.mark.parametrize("how", ["latent", "text"])
def test_passages_are_sentences_of_their_sources_most_relevant_first(model: MPlus, how: Any) -> None:
    found = read(model, written(model, read=how))
    texts = {"handbook": HANDBOOK, "trees": FILLER, "mail": MAIL}
    for passage in found:
        assert said(passage) in " ".join(texts[passage.source])
    assert [p.relevance for p in found] == sorted((p.relevance for p in found), reverse=True)
    if how == "latent":
        assert [p.pool for p in found if p.source == "mail"] == ["short_term"]
    best = next(p for p in found if p.source == "handbook")
    assert best.pool == "long_term" and any(sentence in HANDBOOK for sentence in best.sentences)


def test_passages_are_all_that_the_recalled_sources_gave(model: MPlus) -> None:
    memory = written(model)
    stream = model.stream(memory, ASKED, max_new_tokens=2)
    list(stream)
    assert {p.source for p in stream.passages()} == {one.source for one in stream.generation.recalled}
    short = memory.state.tracks[0].short_term.provenance
    recent = [p for p in stream.passages() if p.pool == "short_term"]
    characters = sum(len(said(p)) for p in recent)
    assert abs(characters - len(short.sources)) <= len(recent) * 2 + 1, "all of short-term memory is read, byte by byte"


def test_a_chunk_stands_in_one_passage_only(model: MPlus) -> None:
    found = [p for p in read(model, written(model)) if p.source == "trees"]
    whole = " ".join(FILLER)
    spans = sorted((whole.find(said(p)), len(said(p))) for p in found)
    assert all(at + size <= after for (at, size), (after, _) in pairwise(spans))


def test_a_part_of_a_sentence_is_told_as_one(model: MPlus) -> None:
    memory = model.new_memory(config=written(model).config)
    long = "The contract with Nordwind ends in June and nobody has told Ms Okafor about it so far, which is a pity"
    model.write(memory, f"{long}. {FILLER[0]} {FILLER[1]}", source="long")
    (passage,) = [p for p in read(model, memory) if p.pool == "short_term"]
    assert passage.sentences[0].startswith("… ") and passage.sentences[-1] == FILLER[1]
    assert passage.sentences[0].removeprefix("… ") in f"{long}. {FILLER[0]}"


def test_passages_follow_where_and_name_their_memory(model: MPlus) -> None:
    other = model.new_memory(config=written(model).config)
    model.write(other, "Pears are green.", source="pears")
    assert {p.source for p in read(model, written(model), where=lambda name, _: name == "mail")} == {"mail"}
    assert {p.source: p.memory for p in read(model, [other, written(model)])}.items() >= {"pears": 0, "mail": 1}.items()


@pytest.mark.parametrize("changes", [{"ledger": False}, {"layout": "token", "recalled_neighbours": 0}])
def test_nothing_is_told_where_there_are_no_texts(model: MPlus, changes: dict[str, Any]) -> None:
    assert read(model, written(model, **changes)) == ()


def test_nothing_is_told_where_memory_is_not_read(model: MPlus) -> None:
    assert read(model, written(model), gate="never") == read(model, model.new_memory()) == ()
