"""Counts and sizes in a manifest are limited before anything is allocated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mplus import CorruptMemoryError, Memory, MemoryConfig, MemoryLimitError
from mplus.memory import history as history_module
from mplus.memory import state_files
from mplus.model import MPlus
from mplus.storage import manifest as manifest_module
from mplus.storage.names import MANIFEST
from tests.memory.saves import written
from tests.reliability.mutations import manifest_of, seal

Forge = Callable[[dict[str, Any]], None]


@pytest.fixture
def saved(tmp_path: Path, model: MPlus, text: str) -> Path:
    memory = written(model, text)
    memory.snapshot("then")
    memory.save(tmp_path / "m")
    return tmp_path / "m"


def track(found: dict[str, Any]) -> dict[str, Any]:
    return found["state"]["tracks"][0]


def many_snapshots(found: dict[str, Any]) -> None:
    """Many snapshots, each with its own list of the same few files."""
    names = track(found)["short_term"]
    first = found["snapshots"][0]
    found["snapshots"] = []
    for number in range(300):
        twin = json.loads(json.dumps(first))
        twin["id"] = f"{number}"
        twin["state"]["tracks"][0]["short_term"] = names * 20 + [names[0]] * number
        found["snapshots"].append(twin)


def too_many_snapshots(found: dict[str, Any]) -> None:
    found["snapshots"] = found["snapshots"] * 5000


def repeated(kind: str) -> Forge:
    def forge(found: dict[str, Any]) -> None:
        track(found)[kind] = track(found)[kind] * 5000

    return forge


def repeated_records(found: dict[str, Any]) -> None:
    found["state"]["records"]["ledger"] = found["state"]["records"]["ledger"] * 40_000


def many_tokens(found: dict[str, Any]) -> None:
    track(found)["long_term"] *= 1000
    track(found)["num_long_term"] = 2**40


def many_tracks(found: dict[str, Any]) -> None:
    found["state"]["tracks"] = found["state"]["tracks"] * 3000


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (many_snapshots, "would take"),
        (too_many_snapshots, "snapshots, at most"),
        (repeated("short_term"), "would take"),
        (repeated_records, "would take"),
        (many_tokens, "would take"),
        (many_tracks, "at most 1024"),
    ],
)
def test_counts_are_limited_before_anything_is_allocated(
    saved: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch, forge: Forge, message: str
) -> None:
    found = manifest_of(saved)
    forge(found)
    seal(saved, found)

    def fail(*_: object) -> None:
        pytest.fail("something was read")

    monkeypatch.setattr(state_files.StateReader, "_read", fail)
    with pytest.raises(CorruptMemoryError, match=message):
        Memory.load(saved, model)


def test_a_file_that_is_only_listed_gives_no_room(saved: Path, model: MPlus) -> None:
    found = manifest_of(saved)
    found["files"][f"tokens-{'0' * 32}.safetensors"] = {"nbytes": 2**45, "sha256": "0" * 64}
    many_snapshots(found)
    seal(saved, found)
    with pytest.raises(CorruptMemoryError, match="no bytes, expected"):
        Memory.load(saved, model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recall_frequency_gain", float("nan")),
        ("age_limit_seconds", float("inf")),
        ("initial_recall_frequency", 1e300),
        ("short_term_tokens", 2**40),
        ("chunk_tokens", 2**30),
        ("best_sentence_times", 10**9),
        ("long_term_capacity", 10**30),
        ("recall_layer", -1),
    ],
)
def test_nan_and_absurd_settings_in_files_are_refused(saved: Path, model: MPlus, name: str, value: Any) -> None:
    found = manifest_of(saved)
    found["config"][name] = value
    seal(saved, found)
    with pytest.raises(CorruptMemoryError):
        Memory.load(saved, model)


@pytest.mark.parametrize("name", ["written_tokens", "text_tokens", "num_chunks"])
def test_counters_that_no_memory_reaches_are_refused(saved: Path, model: MPlus, name: str) -> None:
    found = manifest_of(saved)
    found["state"]["values"][name] = 10**30
    seal(saved, found)
    with pytest.raises(CorruptMemoryError):
        Memory.load(saved, model)


def test_what_could_not_be_opened_again_is_not_saved(
    tmp_path: Path, model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = written(model, text)
    memory.save(tmp_path)
    before = (tmp_path / MANIFEST).read_bytes()
    monkeypatch.setattr(manifest_module, "FREE_BYTES", 0)
    monkeypatch.setattr(manifest_module, "MOST_BYTES_PER_BYTE", 0)
    with pytest.raises(MemoryLimitError, match="could not be opened again"):
        memory.save(tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == before


def test_snapshots_are_limited_where_they_are_made(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MAX_SNAPSHOTS", 2)
    memory = model.new_memory()
    memory.snapshot()
    memory.snapshot()
    with pytest.raises(MemoryLimitError, match="Discard"):
        memory.snapshot()


def test_equal_states_are_one_when_they_are_loaded(saved: Path, model: MPlus) -> None:
    loaded = Memory.load(saved, model)
    assert loaded.snapshots[0].state is loaded.state


def test_metadata_with_nan_loads_as_it_was_given(tmp_path: Path, model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "Something with a strange score.", source="a", metadata={"score": float("nan")})
    memory.save(tmp_path)
    score = Memory.load(tmp_path, model).sources()[0].metadata["score"]
    assert score != score


def test_settings_have_limits() -> None:
    with pytest.raises(ValueError, match="short_term_tokens"):
        MemoryConfig(short_term_tokens=2**30)
