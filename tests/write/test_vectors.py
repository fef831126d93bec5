"""Vectors of chunks: made when text is written, and kept, saved, rolled back and forgotten with it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mplus
from mplus.errors import CorruptMemoryError
from mplus.memory.memory import Memory
from mplus.memory.vectors import ChunkVectors
from mplus.model import MPlus
from mplus.testing import tiny_model, toy_embedder
from tests.conftest import TINY

TEXT = "Anna keeps bees behind her house. They fly to the limes in June, and she sells the honey. " * 4
OTHER = "The ferry to the island leaves at noon. It does not run on Sundays, when the crew is at home."
QUESTION = "When does the ferry leave?"


class Counting:
    """A toy embedder that remembers what it was given, and fails when it is told to."""

    model_name = "counting"

    def __init__(self, size: int = 64) -> None:
        self.calls: list[list[str]] = []
        self.size = size
        self.spoil: Callable[[list[list[float]]], Any] = lambda found: found

    def __call__(self, texts: list[str]) -> Any:
        self.calls.append(list(texts))
        return self.spoil(toy_embedder(self.size)(texts))


@pytest.fixture
def embedder() -> Counting:
    return Counting()


def model_with(embedder: Any, **changes: object) -> MPlus:
    config = mplus.MemoryConfig.model_validate(TINY.model_dump() | {"recall": "embedding+late"} | changes)
    return tiny_model(embedder=embedder, memory=config)


@pytest.fixture
def model(embedder: Counting) -> MPlus:
    return model_with(embedder)


def vectors(memory: Memory) -> ChunkVectors:
    (track,) = memory.state.tracks
    return track.vectors


def found(model: MPlus, memory: Memory, query: str = QUESTION) -> list[tuple[str, float]]:
    return [(source.source, source.relevance) for source in model.search(memory, query)]


def test_the_text_of_each_chunk_is_embedded_in_one_call(model: MPlus, embedder: Counting) -> None:
    memory = model.new_memory()
    model.write(memory, [TEXT, OTHER])
    (texts,) = embedder.calls
    assert len(texts) == len(vectors(memory)) == memory.state.num_chunks
    assert all(text in TEXT or text in OTHER for text in texts)
    assert "".join(texts).replace(" ", "") == (TEXT + OTHER).replace(" ", "")[: len("".join(texts).replace(" ", ""))]


def test_text_written_in_pieces_is_embedded_as_if_at_once(model: MPlus, embedder: Counting) -> None:
    whole, pieces = model.new_memory(), model.new_memory()
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    model.write(whole, ids, source="a")
    (together,) = embedder.calls
    for start in range(0, len(ids), 50):
        model.write(pieces, ids[start : start + 50], source="a")
    apart = [text for call in embedder.calls[1:] for text in call]
    assert [text for text in apart if text in together]
    assert len(vectors(pieces)) == pieces.state.num_chunks


def test_several_memories_are_embedded_in_one_call(model: MPlus, embedder: Counting) -> None:
    memories = [model.new_memory(), model.new_memory()]
    model.write_batch(memories, [TEXT, OTHER])
    assert len(embedder.calls) == 1
    alone = model.new_memory()
    model.write(alone, OTHER)
    assert torch.equal(vectors(alone).blocks[0].vectors.data, vectors(memories[1]).blocks[0].vectors.data)


def test_a_waiting_tail_is_embedded_when_it_is_read(model: MPlus, embedder: Counting) -> None:
    memory = model.new_memory()
    model.write(memory, "Hi!", source="tail")
    assert embedder.calls == [] and len(vectors(memory)) == 0
    assert [name for name, _ in found(model, memory)] == ["tail"]
    assert embedder.calls[0] == ["Hi!"]


@pytest.mark.parametrize("key", [None, "key"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "int4"])
def test_they_are_saved_and_loaded(embedder: Counting, tmp_path: Path, key: str | None, dtype: str) -> None:
    model = model_with(embedder, long_term_dtype=dtype)
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    model.write(memory, OTHER, source="b")
    secret = None if key is None else mplus.MemoryKey(b"0" * 32)
    memory.save(tmp_path / "saved", key=secret)
    memory.export(tmp_path / "one.mplus", key=secret)
    for place in ("saved", "one.mplus"):
        loaded = mplus.Memory.load(tmp_path / place, model, key=secret)
        assert found(model, loaded) == found(model, memory)
        assert vectors(loaded).embedder == "counting"
        model.write(loaded, OTHER, source="c")
        assert len(vectors(loaded)) == loaded.state.num_chunks
    kinds = {path.name.partition("-")[0] for path in (tmp_path / "saved").iterdir()}
    assert "vectors" in kinds


def test_a_save_writes_full_blocks_once(model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.memory.vectors.BLOCK_CHUNKS", 4)
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    memory.save(tmp_path)
    before = {path.name for path in tmp_path.glob("vectors-*")}
    model.write(memory, OTHER, source="b")
    memory.save(tmp_path)
    assert len(before & {path.name for path in tmp_path.glob("vectors-*")}) >= len(before) - 1 >= 1


def test_a_damaged_save_is_named(model: MPlus, tmp_path: Path) -> None:
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    (track,) = memory.state.tracks
    fewer = replace(track, vectors=track.vectors.keeping(track.vectors.chunks[1:]))
    memory.commit(replace(memory.state, tracks=(fewer,)))
    memory.save(tmp_path)
    with pytest.raises(CorruptMemoryError, match="a chunk has no vector"):
        mplus.Memory.load(tmp_path, model)


def test_a_fork_and_a_rollback_have_their_own(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    then, snapshot = found(model, memory), memory.snapshot()
    fork = memory.fork()
    model.write(fork, OTHER, source="b")
    assert len(vectors(fork)) > len(vectors(memory))
    model.write(memory, OTHER, source="c")
    memory.rollback(snapshot)
    assert found(model, memory) == then


@pytest.mark.parametrize("rebuild", [False, True])
def test_forgetting_leaves_the_memory_that_never_had_the_source(model: MPlus, rebuild: bool) -> None:
    memory, never = model.new_memory(), model.new_memory()
    for source, text in (("a", TEXT), ("b", OTHER), ("c", TEXT[40:])):
        model.write(memory, text, source=source)
        if source != "b":
            model.write(never, text, source=source)
    memory.forget("b", rebuild=model if rebuild else None)
    assert len(vectors(memory)) == len(vectors(never))
    for ours, theirs in zip(vectors(memory).blocks, vectors(never).blocks, strict=True):
        assert torch.equal(ours.vectors.data, theirs.vectors.data)
    assert [r for _, r in found(model, memory)] == pytest.approx([r for _, r in found(model, never)], abs=1e-4)


def test_what_capacity_drops_has_no_vector_any_more(embedder: Counting) -> None:
    for capacity in (64, 0):
        model = model_with(embedder, long_term_capacity=capacity, recalled_tokens=32)
        memory = model.new_memory()
        model.write(memory, TEXT * 3, source="a")
        (track,) = memory.state.tracks
        assert track.vectors.chunks.tolist() == track.chunks.tolist()
        assert len(track.vectors) < memory.state.num_chunks


def test_bytes_are_counted(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, TEXT)
    stats = memory.stats()
    pools = stats.short_term.nbytes + stats.pending.nbytes + stats.long_term.nbytes
    assert memory.nbytes == pools + vectors(memory).nbytes > pools


# --- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v[:-1],
        lambda v: [[float("nan")] * len(v[0])] * len(v),
        lambda v: [row[:9] for row in v],
        lambda v: 1 / 0,
    ],
)
def test_after_an_error_of_the_embedder_the_memory_is_as_it_was(
    model: MPlus, embedder: Counting, spoil: Callable[[Any], Any]
) -> None:
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    before = memory.state
    embedder.spoil = spoil
    with pytest.raises(mplus.EmbedderError, match="counting"):
        model.write(memory, OTHER, source="b")
    assert memory.state is before
    embedder.spoil = lambda found: found
    model.write(memory, OTHER, source="b")
    assert found(model, memory)[0][0] == "b"


def test_a_question_of_another_size_is_an_error(model: MPlus, embedder: Counting) -> None:
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    embedder.spoil = lambda rows: [row[:9] for row in rows]
    with pytest.raises(mplus.EmbedderError, match=r"9 numbers: expected 64"):
        model.generate(memory, QUESTION, max_new_tokens=2)
    with pytest.raises(mplus.EmbedderError, match=r"9 numbers: expected 64"):
        model.search(memory, QUESTION)


def test_another_embedder_or_none_is_refused_and_the_way_out_works(model: MPlus, tmp_path: Path) -> None:
    memory = model.new_memory()
    model.write(memory, TEXT, source="a")
    memory.save(tmp_path)
    plain = tiny_model(memory=TINY)
    other = model.with_embedder(mplus.Embedder(toy_embedder(), name="other"))
    for wrong in (plain, other):
        loaded = mplus.Memory.load(tmp_path, wrong)
        for use in (
            lambda m=wrong, x=loaded: m.search(x, QUESTION),
            lambda m=wrong, x=loaded: m.generate(x, QUESTION),
            lambda m=wrong, x=loaded: m.write(x, OTHER),
        ):
            with pytest.raises(mplus.MemoryMismatchError, match="embedder 'counting'"):
                use()
        late = wrong.with_recall(loaded, "late")
        assert found(wrong, late) and vectors(late).blocks == ()
    again = other.with_recall(mplus.Memory.load(tmp_path, other), "embedding+late")
    assert vectors(again).embedder == "other"
    assert found(other, again)


def test_a_model_for_embeddings_needs_one() -> None:
    with pytest.raises(ValueError, match="recall='embedding' needs an embedder"):
        tiny_model(memory=TINY.model_copy(update={"recall": "embedding"}))
    with pytest.raises(ValueError, match="needs an embedder"):
        tiny_model().with_recall(tiny_model().new_memory(), "embedding")


def test_an_embedder_is_used_unless_the_layout_says_otherwise(embedder: Counting) -> None:
    assert tiny_model(embedder=embedder).memory_config.recall == "embedding+late"
    assert tiny_model(embedder=embedder, memory=mplus.MemoryConfig()).memory_config.recall == "embedding+late"
    assert tiny_model(embedder=embedder, memory=mplus.MemoryConfig(recall="late")).memory_config.recall == "late"


# --- another way of recall ------------------------------------------------------------------------------


def test_a_memory_without_vectors_gets_them_from_its_ledger(model: MPlus, embedder: Counting) -> None:
    direct = model.new_memory()
    late = tiny_model(memory=TINY)
    memory = late.new_memory()
    snapshot = ""
    for source, text in (("a", TEXT), ("b", OTHER), ("a", TEXT[10:90]), ("c", "Hi!")):
        model.write(direct, text, source=source)
        late.write(memory, text, source=source)
        snapshot = snapshot or memory.snapshot()
    embedder.calls.clear()
    changed = model.with_recall(memory, "embedding+late")
    assert len(embedder.calls) == 1
    assert changed.config.recall == "embedding+late" and memory.config.recall == "late"
    assert found(model, changed) == found(model, direct)
    changed.rollback(snapshot)
    assert [name for name, _ in found(model, changed)] == ["a"]
    assert changed.fingerprint != memory.fingerprint


def test_it_works_after_sources_were_forgotten(model: MPlus) -> None:
    late = tiny_model(memory=TINY)
    memory = late.new_memory()
    for source, text in (("a", TEXT), ("b", OTHER), ("c", TEXT[20:] + OTHER)):
        late.write(memory, text, source=source)
    memory.forget("b")
    changed = model.with_recall(memory, "embedding")
    assert sorted(name for name, _ in found(model, changed)) == ["a", "c"]


def test_without_a_ledger_it_is_an_error(model: MPlus) -> None:
    late = tiny_model(memory=TINY.model_copy(update={"ledger": False}))
    memory = late.new_memory()
    late.write(memory, TEXT, source="a")
    with pytest.raises(mplus.LedgerMissingError, match="cannot be embedded"):
        model.with_recall(memory, "embedding")


def test_retrieval_keys_of_another_scorer_cannot_be_made(model: MPlus) -> None:
    with pytest.raises(ValueError, match="retrieval keys of 'late'"):
        model.with_recall(model.new_memory(), "attention")


def test_a_memory_takes_over_another_way_of_recall(model: MPlus, tmp_path: Path) -> None:
    store = mplus.MemoryStore(tmp_path)
    late = tiny_model(memory=TINY)
    with store.open("anna", late) as memory:
        late.write(memory, TEXT + OTHER, source="a")
    with store.open("anna", model) as memory:
        memory.adopt(model.with_recall(memory, "embedding+late"))
    with store.open("anna", model) as memory:
        assert memory.config.recall == "embedding+late"
        assert found(model, memory)
