"""Files of every release open as they were: ``make_saved`` made them, and they are never made again."""

import json
import shutil
from pathlib import Path

import pytest

from mplus import KeyVault, Memory, MemoryStore, MPlus
from mplus.testing import tiny_model
from tests.memory.make_saved import CONFIG, MASTER

RELEASES = sorted(path.parent for path in (Path(__file__).parent / "saved").glob("*/facts.json"))


@pytest.fixture(scope="module")
def model() -> MPlus:
    return tiny_model(memory=CONFIG, num_hidden_layers=2)


@pytest.fixture
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.param, tmp_path / "release"))


def store_of(release: Path, kind: str) -> MemoryStore:
    if kind == "restored":
        store = MemoryStore(release / "restored")
        for name in json.loads((release / "facts.json").read_text()):
            store.restore(release / "backup", name)
        return store
    vault = KeyVault(release / "keys", master=MASTER) if kind == "sealed" else None
    return MemoryStore(release / kind, vault=vault)


def check(memory: Memory, fingerprint: str) -> None:
    assert memory.fingerprint == fingerprint
    assert [(s.name, dict(s.metadata)) for s in memory.sources()] == [("a", {"page": 3}), ("b", {})]
    assert [s.label for s in memory.snapshots] == ["before b"]


@pytest.mark.parametrize("release", RELEASES, indirect=True, ids=lambda path: path.name)
@pytest.mark.parametrize("kind", ["plain", "sealed", "restored"])
def test_stores_of_every_release_open_and_go_on(release: Path, model: MPlus, kind: str) -> None:
    store = store_of(release, kind)
    for name, fingerprint in json.loads((release / "facts.json").read_text()).items():
        assert store.verify(name) is None
        check(store.load(name, model), fingerprint)
        with store.open(name, model) as memory:
            model.write(memory, "Written by a later version of it.", source="later")
        assert [s.name for s in MemoryStore(store.root, vault=store.vault).load(name, model).sources()] == [
            "a",
            "b",
            "later",
        ]


@pytest.mark.parametrize("release", RELEASES, indirect=True, ids=lambda path: path.name)
def test_portable_files_of_every_release_open(release: Path, model: MPlus) -> None:
    for name, fingerprint in json.loads((release / "facts.json").read_text()).items():
        check(Memory.load(release / f"{name}.mplus", model), fingerprint)


def test_there_is_a_release() -> None:
    assert RELEASES
