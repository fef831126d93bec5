from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import mplus
from mplus.checkpoint.loading import load
from mplus.config import MemoryConfig
from mplus.memory.tokens import Provenance
from mplus.model import MPlus
from mplus.testing import byte_tokenizer, tiny_model
from tests.comparisons import logits, pools
from tests.conftest import TINY

LAYOUTS = {
    "chunk": {},
    "chunk int8": {"long_term_dtype": "int8"},
    "token": {"layout": "token"},
    "token, ages that stop, small capacity": {
        "layout": "token",
        "ages_stop_in_short_term": True,
        "long_term_capacity": 150,
    },
    "decay": {"recall_frequency_decay": 4.0, "recalled_tokens": 32},
}


def made(changes: dict) -> MPlus:
    return tiny_model(memory=MemoryConfig(**(TINY.model_dump() | changes)))


def tiny_published() -> MPlus:
    """The recorded published model, with a tokenizer to write text with."""
    folder = Path(__file__).parents[1] / "golden" / "tiny_mplus"
    loaded = load(folder, device="cpu", dtype="float32", attention="sdpa")
    return MPlus(loaded.weights, byte_tokenizer(), loaded.memory, parts=loaded.parts)


def write_all(model: MPlus, memory: mplus.Memory, texts: Sequence[tuple[str, str]]) -> None:
    for source, text in texts:
        model.write(memory, text, source=source, metadata={"of": source}, keep_text=True)


def assert_identical(model: MPlus, one: mplus.Memory, other: mplus.Memory) -> None:
    """Bit for bit: reads, and everything that later writes depend on."""
    assert one.fingerprint == other.fingerprint
    for prompt in ("Whichboxisblue?", "SENTENCE1SAYS"):
        assert torch.equal(logits(model, one, prompt), logits(model, other, prompt))
    for a, b in zip(pools(one), pools(other), strict=True):
        assert all(torch.equal(getattr(a, column.name), getattr(b, column.name)) for column in fields(Provenance))


def texts_of(text: str) -> list[tuple[str, str]]:
    return [
        ("a", text[:500]),
        ("x", text[:700].upper()),
        ("b", text[300:620]),
        ("x", "Hm!"),
        ("a", text[700:760]),
        ("c", text[900:960]),
    ]


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS)
def test_a_rebuilt_memory_is_bit_for_bit_one_that_never_had_the_source(text: str, changes: dict) -> None:
    model = made(changes)
    memory, never = model.new_memory(seed=5), model.new_memory(seed=5)
    write_all(model, memory, texts_of(text))
    write_all(model, never, [(s, t) for s, t in texts_of(text) if s != "x"])
    removed = memory.forget("x", rebuild=model)
    assert removed > 0
    assert [(s.name, s.texts, s.metadata) for s in memory.sources()] == [
        (s.name, s.texts, s.metadata) for s in never.sources()
    ]
    assert_identical(model, memory, never)
    for each in (memory, never):
        model.write(each, text[:444], source="later")
    assert_identical(model, memory, never)


def test_the_published_layout_rebuilds_too(text: str) -> None:
    """A write adapter, a memory that came with the checkpoint, random eviction in every layer."""
    model = tiny_published()
    memory, never = model.new_memory(seed=3), model.new_memory(seed=3)
    ids = [ord(character) % 94 for character in text]
    pieces = [("a", ids[:150]), ("x", ids[150:300]), ("b", ids[300:400]), ("x", ids[:3]), ("c", ids[400:520])]
    for source, piece in pieces:
        model.write(memory, piece, source=source)
        if source != "x":
            model.write(never, piece, source=source)
    plain = memory.fork()
    plain.forget("x")
    assert not torch.equal(logits(model, plain, "Which?"), logits(model, never, "Which?"))
    memory.forget("x", rebuild=model)
    assert_identical(model, memory, never)
    plain.forget("x", rebuild=model)
    assert_identical(model, plain, never)


def test_only_what_came_after_the_last_snapshot_before_the_source_is_written_again(text: str) -> None:
    model = made({"layout": "token"})
    memory, never = model.new_memory(), model.new_memory()
    for each in (memory, never):
        write_all(model, each, [("a", text), ("b", text[:300])])
    before_x = memory.snapshot()
    write_all(model, memory, [("x", text.upper())])
    with_x = memory.snapshot()
    write_all(model, memory, [("c", text[:200])])
    seen: list[tuple[int, int]] = []
    memory.forget("x", rebuild=model, progress=lambda done, total: seen.append((done, total)))
    write_all(model, never, [("c", text[:200])])
    assert seen == [(200, 200)]
    assert_identical(model, memory, never)
    memory.rollback(with_x)
    assert memory.state is next(s for s in memory.snapshots if s.id == before_x).state


def test_texts_of_one_call_are_taken_apart(text: str) -> None:
    model = made({"layout": "token"})
    memory, never = model.new_memory(), model.new_memory()
    model.write(memory, [text[:300], text[300:500], text[500:]])
    model.write(never, [text[:300]], source="text-1")
    # Written in one call with what came before it.
    never.reset()
    model.write(never, [text[:300], text[500:]])
    memory.forget("text-2", rebuild=model)
    assert [s.name for s in memory.sources()] == ["text-1", "text-3"]
    assert torch.equal(logits(model, memory), logits(model, never))
    # Names that are made up do not collide with those that are left.
    model.write(memory, "Something quite different here.")
    assert len({s.name for s in memory.sources()}) == 3


def test_rebuilding_needs_the_model_and_the_ledger(model: MPlus, text: str) -> None:
    without = made({"ledger": False, "layout": "token"})
    memory = without.new_memory()
    write_all(without, memory, texts_of(text))
    before = memory.state
    with pytest.raises(mplus.LedgerMissingError, match=r"'x'.*ledger=True"):
        memory.forget("x", rebuild=without)
    with pytest.raises(ValueError, match="rebuild=model"):
        mplus.Memory.forget.__wrapped__(memory, "x", rebuild=True)  # type: ignore[attr-defined]
    with pytest.raises(mplus.MemoryMismatchError):
        mine = model.new_memory()
        write_all(model, mine, texts_of(text))
        mine.forget("x", rebuild=tiny_model(seed=9))
    assert memory.state is before
    assert memory.forget("x") > 0


def test_rebuilding_without_the_source_changes_nothing(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    write_all(model, memory, texts_of(text))
    before = memory.state
    assert memory.forget("nobody", rebuild=model) == 0
    assert memory.state is before


def test_a_forgotten_source_leaves_the_ledger(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    write_all(model, memory, texts_of(text))
    memory.snapshot()
    memory.forget("x")
    for ledger in (memory.state.ledger, memory.snapshots[0].state.ledger):
        assert {t.source for entry in ledger or () for t in entry.texts} == {"a", "b", "c"}


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_the_ledger_is_saved(tmp_path: Path, text: str, layout: str) -> None:
    model = made({"layout": layout})
    memory, never = model.new_memory(seed=1), model.new_memory(seed=1)
    write_all(model, memory, texts_of(text)[:1])
    memory.snapshot()
    write_all(model, memory, texts_of(text)[1:])
    write_all(model, never, [(s, t) for s, t in texts_of(text) if s != "x"])
    memory.save(tmp_path)
    loaded = mplus.Memory.load(tmp_path, model)
    seen: list[int] = []
    loaded.forget("x", rebuild=model, progress=lambda done, _: seen.append(done))
    assert max(seen) < sum(len(t) for s, t in texts_of(text) if s != "x") - 400
    assert_identical(model, loaded, never)
    loaded.save(tmp_path)
    assert not any("SENTENCE" in p.read_bytes().decode("latin-1") for p in tmp_path.iterdir())
