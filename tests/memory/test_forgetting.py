"""What a memory and its files keep of sources that it forgot: nothing, and no table that only grows."""

from pathlib import Path

import pytest

import mplus
from mplus.memory import forgetting
from mplus.model import MPlus
from mplus.testing import tiny_model
from tests.conftest import TINY


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "BLANK_ROWS", 4)


def _answer(model: MPlus, memory: mplus.Memory) -> str:
    return model.generate(memory, "Which box is blue?", max_new_tokens=6).text


@pytest.mark.parametrize("kept", ["latents", "ids"])
def test_empty_rows_go_when_they_are_the_most_and_reads_stay(kept: str, tmp_path: Path) -> None:
    model = tiny_model(memory=TINY.model_copy(update={"long_term_keep": kept, "chunk_context": "none"}))
    memory, never = model.new_memory(), model.new_memory()
    for number in range(16):
        text = f"Box {number} is blue and stands in room {number}, where it always stood."
        if number in (3, 7, 15):
            model.write(never, text, source=f"s{number}", metadata={"n": number}, keep_text=True)
        model.write(memory, text, source=f"s{number}", metadata={"n": number}, keep_text=True)
    taken = memory.snapshot()
    for number in range(16):
        if number not in (3, 7, 15):
            memory.forget(f"s{number}")
    assert len(memory.state.sources) <= 3 + 4
    assert [(s.name, s.metadata, s.texts) for s in memory.sources()] == [
        (s.name, s.metadata, s.texts) for s in never.sources()
    ]
    assert [s.memory_tokens + s.tail_tokens for s in memory.sources()] == [
        s.memory_tokens + s.tail_tokens for s in never.sources()
    ]
    assert _answer(model, memory) == _answer(model, never)
    memory.save(tmp_path)
    loaded = mplus.Memory.load(tmp_path, model)
    assert _answer(model, loaded) == _answer(model, never)
    model.write(loaded, "The last box is red.", source="new")
    loaded.forget("s7")
    assert [s.name for s in loaded.sources()] == ["s3", "s15", "new"]
    loaded.rollback(taken)
    assert [s.name for s in loaded.sources()] == ["s3", "s15"]


def test_a_source_that_is_rewritten_often_has_few_rows() -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    for number in range(30):
        memory.forget("note")
        model.write(memory, f"Today is day {number}.", source="note")
    assert len(memory.state.sources) <= 1 + 5 and [s.name for s in memory.sources()] == ["note"]


def test_names_that_were_made_do_not_come_back_when_rows_go(tmp_path: Path) -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    for number in range(12):
        model.write(memory, f"Box {number} is blue and stands in room {number}.")
    made = {source.name for source in memory.sources()}
    for name in sorted(made)[1:]:
        memory.forget(name)
    assert len(memory.state.sources) < 12
    memory.save(tmp_path)
    for one in (memory, mplus.Memory.load(tmp_path, model)):
        model.write(one, "The last box is red, and stands in the hall.")
        assert not {source.name for source in one.sources()} & (made - {sorted(made)[0]})


def test_empty_rows_of_texts_past_an_age_limit_go_too() -> None:
    model = tiny_model(memory=TINY.model_copy(update={"age_limit_tokens": 96, "long_term_capacity": 64}))
    memory = model.new_memory()
    for number in range(24):
        model.write(memory, f"Box {number} is blue and stands in room {number}.", source=f"s{number}")
    assert len(memory.state.sources) <= 2 * len(memory.sources()) + 5


def test_no_file_has_a_name_or_metadata_of_a_forgotten_source(tmp_path: Path) -> None:
    model = tiny_model(memory=TINY)
    store = mplus.MemoryStore(tmp_path)
    for number in range(12):
        with store.open("anna", model) as memory:
            about = {"author": f"countess-{number}"}
            model.write(memory, "It is here.", source=f"secret-{number}", metadata=about, keep_text=True)
            memory.pin(f"secret-{number}") if number % 2 else memory.snapshot(f"after {number}")
    for number in range(12):
        with store.open("anna", model) as memory:
            memory.forget(f"secret-{number}")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"countess" in path.read_bytes() or b"secret-" in path.read_bytes()]
    store.load("anna", model).export(tmp_path / "copy.mplus")
    assert b"countess" not in (tmp_path / "copy.mplus").read_bytes()
