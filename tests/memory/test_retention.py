import time
from pathlib import Path

import pytest
import torch

import mplus
from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.testing import tiny_model
from tests.comparisons import logits, pools
from tests.conftest import TINY


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def made(**changes: object) -> MPlus:
    return tiny_model(memory=MemoryConfig(**(TINY.model_dump() | changes)))


def names(memory: mplus.Memory) -> list[str]:
    return [source.name for source in memory.sources()]


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_text_past_its_age_limit_is_gone_from_every_read_and_from_disk(
    tmp_path: Path, clock: Clock, text: str, layout: str
) -> None:
    model = made(age_limit_seconds=100.0, layout=layout)
    memory = model.new_memory()
    model.write(memory, text.upper(), source="old", keep_text=True)
    memory.snapshot()
    memory.save(tmp_path)
    clock.now += 60
    model.write(memory, text[:300], source="new")
    assert names(memory) == ["old", "new"]
    before = memory.fingerprint
    clock.now += 41
    assert memory.fingerprint != before
    assert names(memory) == ["new"]
    assert {int(n) for p in pools(memory) for n in p.sources} == {1}
    assert [e.texts[0].source for e in memory.state.ledger or ()] == ["new"]
    assert memory.snapshots[0].state.source_number("old") is None
    answer = model.generate(memory, "SENTENCE 1 SAYS", max_new_tokens=2)
    assert {r.source for r in answer.recalled} <= {"new"}
    memory.save(tmp_path)
    assert not any(b"SENTENCE" in p.read_bytes() for p in tmp_path.iterdir())
    clock.now += 1000
    loaded = mplus.Memory.load(tmp_path, model)
    assert names(loaded) == []
    assert torch.equal(logits(model, loaded), logits(model, model.new_memory()))


def test_in_the_chunk_layout_what_is_left_reads_as_if_the_rest_had_never_been(clock: Clock, text: str) -> None:
    model = made(age_limit_seconds=100.0)
    memory, never = model.new_memory(), model.new_memory()
    model.write(memory, text.upper(), source="old")
    clock.now += 90
    for each in (memory, never):
        model.write(each, text, source="new")
    clock.now += 20
    torch.testing.assert_close(logits(model, memory), logits(model, never), atol=1e-5, rtol=1e-5)


def test_a_continued_source_loses_its_old_chunks(clock: Clock, text: str) -> None:
    model = made(age_limit_seconds=100.0)
    memory = model.new_memory()
    for _ in range(5):
        model.write(memory, text[:96], source="chat")
        clock.now += 40
    (source,) = memory.sources()
    assert source.memory_tokens + source.tail_tokens <= 3 * 97
    assert len(memory.state.ledger or ()) == 2


def test_a_waiting_tail_is_as_old_as_its_first_word(clock: Clock) -> None:
    model = made(age_limit_seconds=100.0)
    memory = model.new_memory()
    model.write(memory, "Hi!", source="a")
    clock.now += 60
    model.write(memory, "Ho!", source="a")
    assert memory.stats().tail_tokens == 7
    clock.now += 41
    assert memory.stats().tail_tokens == 0
    model.write(memory, "Something to keep for long.", source="b")
    assert names(memory) == ["b"]


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_age_in_tokens(text: str, layout: str) -> None:
    model = made(age_limit_tokens=300, layout=layout)
    memory = model.new_memory()
    for number in range(8):
        model.write(memory, text[:160], source=f"{number}")
    assert names(memory) == ["6", "7"]
    assert memory.stats().oldest_age < 300 + 32
    assert [e.texts[0].source for e in memory.state.ledger or ()] == ["6", "7"]


def test_a_pinned_source_is_kept_regardless_of_age_capacity_and_disuse(tmp_path: Path, clock: Clock, text: str) -> None:
    model = made(age_limit_seconds=100.0, long_term_capacity=150, recall_frequency_decay=20.0, recalled_tokens=32)
    memory = model.new_memory()
    model.write(memory, text[:200].upper(), source="rule")
    memory.pin("rule")
    for _ in range(4):
        clock.now += 60
        model.write(memory, text, source="chat")
    assert names(memory) == ["rule", "chat"]
    rule = memory.sources()[0]
    assert rule.pinned and rule.tokens.long_term == 200 and rule.memory_tokens == 200
    memory.save(tmp_path)
    loaded = mplus.Memory.load(tmp_path, model)
    assert loaded.sources() == memory.sources()
    loaded.unpin("rule")
    assert names(loaded) == ["chat"]
    assert memory.forget("rule") == 200
    assert names(memory) == ["chat"]


def test_pins_need_a_source_and_somewhere_to_keep_it(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "Something to keep for long.", source="a")
    with pytest.raises(ValueError, match="'b'.*'a'"):
        memory.pin("b")
    short = made(long_term_capacity=0)
    memory = short.new_memory()
    short.write(memory, "Something to keep for long.", source="a")
    with pytest.raises(ValueError, match="long_term_capacity=0"):
        memory.pin("a")
    memory.unpin("a")


def test_a_rebuild_keeps_age_limits_and_pins(clock: Clock, text: str) -> None:
    model = made(age_limit_seconds=100.0, layout="token", long_term_capacity=150)
    memory, never = model.new_memory(), model.new_memory()
    for source, part in (("rule", text[:200]), ("x", text.upper()), ("a", text[:300]), ("b", text[300:600])):
        for each in (memory, never) if source != "x" else (memory,):
            model.write(each, part, source=source)
            if source == "rule":
                each.pin("rule")
        clock.now += 60 if source == "rule" else 20
    assert names(memory) == ["rule", "x", "a", "b"]
    memory.forget("x", rebuild=model)
    assert names(memory) == names(never) == ["rule", "a", "b"]
    assert memory.sources()[0].pinned
    assert torch.equal(logits(model, memory), logits(model, never))


@pytest.mark.parametrize(
    "changes", [{"age_limit_seconds": 0}, {"age_limit_seconds": float("inf")}, {"age_limit_tokens": 0}]
)
def test_limits_are_checked(changes: dict) -> None:
    with pytest.raises(ValueError, match="age_limit"):
        MemoryConfig(**changes)
