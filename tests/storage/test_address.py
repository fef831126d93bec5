"""Paths and urls: a url where only a path will do is refused, else a folder "s3:" would be written on this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mplus import KeyVault, Memory, MemoryStore, UrlStore
from mplus.model import MPlus


def test_a_url_is_no_folder_of_a_store_its_keys_or_a_model(
    model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://bucket/x"
    with pytest.raises(ValueError, match=rf"root='{url}'.*not a url.*UrlStore\(url, folder\)"):
        MemoryStore(url)
    with pytest.raises(ValueError, match=rf"folder='{url}'.*not a url.*copies"):
        UrlStore("memory://bucket/memories", url)
    with pytest.raises(ValueError, match=rf"folder='{url}'.*not a url.*keys"):
        KeyVault(url)
    with pytest.raises(ValueError, match=rf"folder='{url}'.*not a url"):
        model.save_pretrained(url)
    assert not list(tmp_path.iterdir())


def test_a_path_is_no_url_though_its_first_part_ends_in_a_colon(
    model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, memory = Path("notes:"), model.new_memory()
    store, _ = MemoryStore(folder / "store"), KeyVault(folder / "keys")
    memory.save(folder / "saved")
    memory.export(folder / "me.mplus")
    store.backup(folder / "backup")
    model.save_pretrained(folder / "model")
    assert {path.name for path in folder.iterdir()} == {"store", "keys", "saved", "me.mplus", "backup", "model"}
    assert Memory.load(folder / "me.mplus", model).fingerprint == Memory.load(folder / "saved", model).fingerprint


def test_a_url_that_was_made_a_path_is_refused(model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory, store = model.new_memory(), MemoryStore(tmp_path / "own")
    calls: list[Callable[[str | Path], object]] = [memory.save, memory.export, store.backup]
    for call in (*calls, lambda place: Memory.load(place, model)):
        with pytest.raises(ValueError, match=r"place=.*not a url.*as text"):
            call(Path("s3://bucket/x"))
        with pytest.raises(ValueError, match="null character"):
            call("a\0b")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
