"""A clock that is set wrong neither deletes what is young nor keeps what is old."""

import time
from pathlib import Path

import pytest

import mplus
from mplus import MemoryStore
from mplus.memory.clock import YEAR, MemoryClock
from mplus.model import MPlus
from tests.conftest import TINY

LIMIT = 30 * 86_400.0
TEN_YEARS = 10 * YEAR


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000.0
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def forgetful(model: MPlus) -> mplus.MemoryConfig:
    return TINY.model_copy(update={"age_limit_seconds": LIMIT})


def names(memory: mplus.Memory) -> list[str]:
    return [source.name for source in memory.sources()]


def test_a_clock_that_jumps_ten_years_ahead_deletes_nothing_young(
    clock: Clock, model: MPlus, forgetful: mplus.MemoryConfig
) -> None:
    memory = model.new_memory(config=forgetful)
    model.write(memory, "Written before the jump of the clock.", source="a")
    clock.now += TEN_YEARS
    assert names(memory) == ["a"]
    model.write(memory, "Written after the jump of the clock.", source="b")
    clock.now -= TEN_YEARS
    assert names(memory) == ["a", "b"]


@pytest.mark.parametrize("jump", [TEN_YEARS, -TEN_YEARS, YEAR * 54, -3600.0])
def test_nothing_escapes_its_limit_wherever_the_clock_was_set_to(
    clock: Clock, model: MPlus, forgetful: mplus.MemoryConfig, jump: float
) -> None:
    memory = model.new_memory(config=forgetful)
    model.write(memory, "Written before the jump of the clock.", source="a")
    clock.now += jump
    model.write(memory, "Written while the clock was wrong.", source="b")
    clock.now += LIMIT / 2
    model.write(memory, "Written half a limit later than that.", source="c")
    clock.now -= jump
    assert names(memory) == ["a", "b", "c"]
    clock.now += LIMIT / 2 + max(-jump if abs(jump) < YEAR else 0.0, 0.0) + 2
    assert names(memory) == ["c"]
    clock.now += LIMIT
    assert names(memory) == []


@pytest.mark.parametrize("days", [1, 29, 180, 364])
def test_a_clock_that_was_set_back_and_is_put_right_deletes_nothing_young(
    clock: Clock, model: MPlus, forgetful: mplus.MemoryConfig, days: int
) -> None:
    memory = model.new_memory(config=forgetful)
    model.write(memory, "Written before the clock was set back.", source="a")
    clock.now -= days * 86_400
    model.write(memory, "Written while the clock was behind.", source="b")
    clock.now += 3600
    assert names(memory) == ["a", "b"]
    clock.now += days * 86_400
    model.write(memory, "Written once the clock was put right.", source="c")
    assert names(memory) == ["a", "b", "c"]
    clock.now += LIMIT - 7200
    assert names(memory) == ["a", "b", "c"]
    clock.now += 3700
    assert names(memory) == ["c"]
    clock.now += 3600
    assert names(memory) == []


def test_a_jump_while_nothing_ran_deletes_nothing_and_time_goes_on(
    tmp_path: Path, clock: Clock, model: MPlus, forgetful: mplus.MemoryConfig
) -> None:
    memory = model.new_memory(config=forgetful)
    model.write(memory, "Written before the jump of the clock.", source="a")
    store = MemoryStore(tmp_path, max_resident_bytes=0)
    store.put("alice", memory)
    clock.now += TEN_YEARS
    with store.open("alice", model) as opened:
        assert names(opened) == ["a"]
    clock.now += LIMIT + 1  # had the jump not been saved, this would be part of it
    with store.open("alice", model) as opened:
        assert names(opened) == []


def test_a_memory_that_was_left_alone_for_less_than_a_year_forgets_what_is_past(
    tmp_path: Path, clock: Clock, model: MPlus, forgetful: mplus.MemoryConfig
) -> None:
    memory = model.new_memory(config=forgetful)
    model.write(memory, "Written before the holidays.", source="a")
    memory.save(tmp_path)
    clock.now += LIMIT + YEAR
    assert names(mplus.Memory.load(tmp_path, model)) == []


def test_a_save_of_an_earlier_version_goes_by_when_it_was_saved() -> None:
    assert MemoryClock.after(100.0, 90.0) == MemoryClock(100.0)
    ahead = MemoryClock.after(100.0, 100.0 + TEN_YEARS)  # its texts were written while the clock was wrong
    assert ahead.time == 100.0 + TEN_YEARS
    assert ahead.at(160.0, LIMIT).time == 160.0 + TEN_YEARS
