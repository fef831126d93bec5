"""The text of every chunk, found again in the ledger."""

import pytest
import torch

from mplus.config import MemoryConfig
from mplus.memory.memory import Memory
from mplus.memory.written import SourceTexts, texts_of
from mplus.model import MPlus
from mplus.testing import tiny_model

SMALL = MemoryConfig(
    chunk_tokens=24, minimum_chunk_tokens=8, tokens_per_write=24, short_term_tokens=48, consolidate_every=1
)


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model(memory=SMALL)


def held(model: MPlus, memory: Memory, name: str) -> list[str | None]:
    """What the ledger says of every chunk of a source that is held, in the order of writing."""
    state = memory.state
    (number,) = state.numbers({name}).tolist()
    rows: dict[int, list[int]] = {}
    track = state.tracks[0]
    for pool in (track.long_term, track.pending, track.short_term):
        known = pool.provenance
        for chunk, source, word in zip(
            known.chunks.tolist(), known.sources.tolist(), known.words.tolist(), strict=True
        ):
            if source == number:
                rows.setdefault(chunk, []).append(word)
    words = torch.tensor([word for chunk in sorted(rows) for word in rows[chunk]], dtype=torch.int32)
    sizes = [len(rows[chunk]) for chunk in sorted(rows)]
    assert state.ledger is not None
    texts = SourceTexts(texts_of(state.ledger, name), words, sizes, model.weights.words_of)
    found = [texts.chunk(number) for number in range(len(sizes))]
    return [None if chunk is None else model.tokenizer.decode(chunk.input_ids) for chunk in found]


def test_chunks_of_a_long_text_stand_behind_each_other(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    chunks = held(model, memory, "a")
    assert len(chunks) > 10
    assert text.startswith("".join(chunk or "?" for chunk in chunks))


def test_a_tail_is_joined_only_where_nothing_was_written_between(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, ["Hi.", "Box one is red."], source="a")
    model.write(memory, "Yes.", source="a")
    model.write(memory, "Box two is blue.", source="b")
    model.write(memory, "Box three is green.", source="a")
    assert held(model, memory, "a") == ["Hi.\nBox one is red.", "Yes.", "Box three is green."]
    assert held(model, memory, "b") == ["Box two is blue."]


def test_other_sources_that_were_forgotten_change_nothing(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, "Yes.", source="a")
    model.write(memory, text, source="b")
    model.write(memory, "Box three is green.", source="a")
    memory.forget("b")
    assert held(model, memory, "a") == ["Yes.", "Box three is green."]


@pytest.mark.parametrize("limit", [{"long_term_capacity": 48}, {"age_limit_tokens": 100}])
def test_chunks_are_found_by_their_words_where_earlier_ones_were_dropped(
    model: MPlus, text: str, limit: dict[str, int]
) -> None:
    memory = model.new_memory(config=SMALL.model_copy(update=limit))
    model.write(memory, text, source="a")
    model.write(memory, text[:400], source="b")
    model.write(memory, "Box three is green.", source="a")
    *older, last = held(model, memory, "a")
    assert last == "Box three is green."
    assert all(chunk is not None and chunk in text for chunk in older)
    assert "".join(chunk or "?" for chunk in held(model, memory, "b")) in text


def test_what_the_ledger_does_not_have_is_unknown(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    other = texts_of(memory.state.ledger or (), "a")
    words = model.weights.words_of(model.tokenizer("Something else entirely.").input_ids)
    for texts in (other, []):
        assert SourceTexts(texts, words, [len(words)], model.weights.words_of).chunk(0) is None
