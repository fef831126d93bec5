"""Texts that wait to be written: few passes through the model, and nobody can tell that they waited."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mplus import Memory, MemoryConfig, MemoryStore, MPlus
from mplus.testing import tiny_model
from mplus.write import absorb
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
TEXTS = {f"note-{n}": f"Thing {n} is kept in drawer {n % 3} of the old cupboard." for n in range(6)}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of every pass through the model."""
    found: list[int] = []
    real = absorb.encode_states

    def encode(*args: Any, **kwargs: Any) -> Any:
        found.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(absorb, "encode_states", encode)
    return found


def told_later(model: MPlus = MODEL, config: MemoryConfig | None = None) -> Memory:
    memory = model.new_memory(config=config)
    for name, text in TEXTS.items():
        report = model.write(memory, text, source=name, metadata={"n": 1}, keep_text=True, later=True)
        assert report.text_tokens == len(text)
    return memory


def told_at_once() -> Memory:
    memory = MODEL.new_memory()
    MODEL.write(memory, list(TEXTS.values()), source=list(TEXTS), metadata={"n": 1}, keep_text=True)
    return memory


def test_texts_that_wait_cost_what_one_write_of_all_costs(passes: list[int]) -> None:
    told_at_once()
    at_once = len(passes)
    passes.clear()
    memory = told_later()
    assert passes == []
    assert memory.state and len(passes) == at_once


@pytest.mark.parametrize(
    "asked",
    [
        lambda memory: memory.sources(),
        lambda memory: memory.fingerprint,
        lambda memory: memory.stats(),
        lambda memory: memory.fork(),
        lambda memory: memory.snapshots,
        lambda memory: MODEL.generate(memory, "Where is thing 3?", max_new_tokens=1),
        lambda memory: MODEL.search(memory, "thing 3"),
        lambda memory: MODEL.write(memory, "More.", source="more"),
        lambda memory: memory.pin("note-3"),
    ],
)
def test_they_are_written_before_anything_is_asked_for(asked: Callable[[Memory], Any], passes: list[int]) -> None:
    memory = told_later()
    asked(memory)
    assert passes
    assert [source.name for source in memory.sources()][:6] == list(TEXTS)


def test_what_waited_is_read_as_if_it_had_been_written_at_once() -> None:
    later, at_once = told_later(), told_at_once()
    answers = [MODEL.generate(one, "Where is thing 3?", max_new_tokens=4) for one in (later, at_once)]
    assert answers[0].text == answers[1].text
    assert [r[:2] for r in answers[0].recalled] == [r[:2] for r in answers[1].recalled]
    assert later.fingerprint == at_once.fingerprint


def test_a_save_a_snapshot_and_a_deletion_have_it(tmp_path: Path) -> None:
    told_later().save(tmp_path / "saved")
    assert len(Memory.load(tmp_path / "saved", MODEL).sources()) == 6
    memory = told_later()
    before = memory.snapshot()
    assert memory.forget("note-2") > 0 and len(memory.sources()) == 5
    memory.rollback(before)
    assert [source.name for source in memory.sources()] == [name for name in TEXTS if name != "note-2"]
    memory = told_later()
    memory.reset()
    assert memory.sources() == []


def test_a_store_has_it_on_disk_when_it_is_closed(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    with store.open("anna", MODEL) as memory:
        MODEL.write(memory, "I live in Graz.", source="note", later=True)
    assert [source.name for source in MemoryStore(tmp_path).load("anna", MODEL).sources()] == ["note"]


def test_told_names_what_waits_without_writing_it(passes: list[int]) -> None:
    memory = told_later()
    assert memory.told()["note-3"] == ({"n": 1}, (TEXTS["note-3"],), None) and memory.told().keys() == TEXTS.keys()
    assert passes == []


def test_texts_without_a_name_wait_too_and_are_named_as_if_they_had_been_written_at_once(passes: list[int]) -> None:
    later, at_once = MODEL.new_memory(), MODEL.new_memory()
    for memory, waits in ((later, True), (at_once, False)):
        MODEL.write(memory, "This one goes.", source="gone")
        memory.forget("gone")
        passes.clear()
        for name, text in (("text-4", "First."), (None, "Second."), (None, "Third."), ("text-4", "Fourth.")):
            MODEL.write(memory, text, source=name, keep_text=True, later=waits)
        MODEL.write(memory, ["Fifth.", "Sixth."], source=[None, "six"], keep_text=True, later=waits)
        assert bool(passes) is not waits
    names = list(later.told())
    assert names == [source.name for source in at_once.sources()] == [source.name for source in later.sources()]
    assert names == ["text-4", "text-3", "text-5", "text-6", "six"]


def test_forgetting_what_is_not_there_writes_nothing(passes: list[int]) -> None:
    memory = told_later()
    assert memory.forget("nothing") == 0 and passes == []
    assert len(memory.sources()) == 6


def test_what_only_a_snapshot_or_what_waits_has_is_forgotten() -> None:
    memory = MODEL.new_memory()
    empty = memory.snapshot()
    MODEL.write(memory, "A thing.", source="a")
    full = memory.snapshot()
    memory.rollback(empty)
    MODEL.write(memory, "It waits.", source="b", later=True)
    memory.forget("a")
    assert memory.forget("b") > 0
    memory.rollback(full)
    assert memory.sources() == []


def test_what_cannot_be_written_is_refused_when_it_is_given() -> None:
    memory = MODEL.new_memory()
    for text, source, metadata in (("", "a", {}), ("x", " ", {}), ("x", "a", {"f": object()})):
        with pytest.raises(ValueError):  # noqa: PT011
            MODEL.write(memory, text, source=source, metadata=metadata, later=True)
    assert memory.told() == {} and memory.sources() == []


@pytest.mark.parametrize("wanted", [{"layout": "token"}, {"age_limit_tokens": 1000}])
def test_a_memory_whose_content_depends_on_when_it_is_written_is_written_at_once(wanted: dict[str, Any]) -> None:
    config = MemoryConfig.model_validate({**TINY.model_dump(), **wanted})
    memory = MODEL.new_memory(config=config)
    report = MODEL.write(memory, "Thing 1 is kept in drawer 2 of the cupboard.", source="a", later=True)
    assert report.memory_tokens or memory._waiting is None


def test_enough_texts_do_not_wait(passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.write.writer.batch_tokens", lambda _: 100)
    told_later()
    assert passes


def test_after_an_error_they_still_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = told_later()
    with monkeypatch.context() as broken:
        broken.setattr(absorb, "encode_states", lambda *_, **__: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                memory.sources()
    assert len(memory.sources()) == 6


def test_an_error_while_texts_are_added_adds_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = told_later()
    with pytest.raises(OSError, match="full"), memory.adding():
        MODEL.write(memory, "One more.", source="more", later=True)
        raise OSError("full")
    assert memory.told().keys() == TEXTS.keys() == {source.name for source in memory.sources()}
    monkeypatch.setattr("mplus.write.writer.batch_tokens", lambda _: 1)
    with pytest.raises(OSError, match="full"), memory.adding():
        MODEL.write(memory, "One more.", source="more", later=True)
        raise OSError("full")
    assert memory.told().keys() == TEXTS.keys()


def test_a_reader_in_another_thread_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, begun, go_on = told_later(), threading.Event(), threading.Event()
    real = absorb.encode_states

    def slow(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(absorb, "encode_states", slow)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(memory.sources()))) for _ in range(2)]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == [6, 6]


def test_a_write_that_fails_leaves_nothing_of_its_own_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MODEL.new_memory()
    MODEL.write(memory, "The key is blue.", source="key", later=True)

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no room on the device")

    with monkeypatch.context() as patched:
        patched.setattr("mplus.write.writer.write_together", failing)
        patched.setattr("mplus.write.writer.batch_tokens", lambda _: 1)
        with pytest.raises(RuntimeError, match="no room"):
            MODEL.write(memory, "The door is red.", source="door", later=True)
    assert [source.name for source in memory.sources()] == ["key"]
