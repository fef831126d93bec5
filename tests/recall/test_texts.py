"""Pieces of text: whole messages, widened from the most relevant chunk, within a budget."""

import pytest

from mplus.config import MemoryConfig
from mplus.memory.memory import Memory
from mplus.memory.together import alone
from mplus.model import MPlus
from mplus.recall.texts import PIECE_TOKENS, Piece, Wanted, recall_pieces
from mplus.testing import tiny_model

SMALL = MemoryConfig(
    chunk_tokens=24, minimum_chunk_tokens=8, tokens_per_write=24, short_term_tokens=48, consolidate_every=1
)
PLENTY = Wanted(1000, 4)


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model(memory=SMALL)


def pieces(model: MPlus, memory: Memory, asked: str, wanted: Wanted = PLENTY) -> list[Piece]:
    question = model.weights.question(model.tokenizer(asked).input_ids, memory.state.tracks[0].recall_layer)
    scorer = model.weights.scorers["late"]
    return recall_pieces(scorer, alone(memory.state), memory.config, question, model.weights.words_of, wanted)


def said(model: MPlus, piece: Piece) -> list[str]:
    return [model.tokenizer.decode(list(ids)) for ids in piece.texts]


def test_a_message_of_several_chunks_is_recalled_whole(model: MPlus) -> None:
    memory = model.new_memory()
    message = "The plumber comes on Monday. He brings the violet pipe. Leave the key with Ida."
    model.write(memory, "Trees grow beside the old mill.", source="a")
    model.write(memory, message, source="b")
    model.write(memory, "Nothing else was said on that day.", source="c")
    best = pieces(model, memory, "violet pipe")[0]
    assert said(model, best) == [message]
    assert len(best) == len(model.tokenizer(message).input_ids)


def test_pieces_are_best_first_and_none_twice(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    model.write(memory, "The plumber comes on Monday.", source="b")
    found = pieces(model, memory, "Which box is red?")
    assert [p.relevance for p in found] == sorted((p.relevance for p in found), reverse=True)
    chunks = [chunk for piece in found for chunk in sorted(set(piece.provenance.chunks.tolist()))]
    assert len(chunks) == len(set(chunks))
    assert all(len(piece) <= PIECE_TOKENS for piece in found)


def test_a_piece_of_a_long_text_has_whole_sentences_around_its_chunk(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    best = pieces(model, memory, "Sentence 13 says that box 0", Wanted(120, 1))[0]
    (only,) = said(model, best)
    assert only in text
    assert len(best) <= 120
    assert "13" in only or "box 0" in only


def test_a_budget_is_kept(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    for number, sentence in enumerate(text.split(". ")):
        model.write(memory, sentence, source=f"s{number}")
    for tokens in (10, 60, 130):
        found = pieces(model, memory, "Which box is red?", Wanted(tokens, 4))
        assert sum(map(len, found)) <= tokens
    assert len(pieces(model, memory, "Which box is red?", Wanted(1000, 2))) == 2


def test_nothing_is_recalled_from_nothing(model: MPlus) -> None:
    memory = model.new_memory()
    assert pieces(model, memory, "Which box is red?") == []
