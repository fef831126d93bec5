"""A folder that others write: whole under its name or not there, and on disk when it is."""

import os
from pathlib import Path
from typing import Any

import pytest

from mplus.model import MPlus
from mplus.storage.whole_folder import sync_tree, whole_folder
from mplus.testing import tiny_model
from tests.conftest import TINY


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, bytes]]:
    """What was forced to disk, with its content, and which folders were renamed, in order."""
    found, real, rename = list[tuple[str, Path, bytes]](), os.fsync, os.rename

    def fsync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        found.append(("force", path, b"" if path.is_dir() else path.read_bytes()))
        real(handle)

    def renamed(old: Any, new: Any, **options: Any) -> None:
        found.append(("rename", Path(new), b""))
        rename(old, new, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    return found


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="says which files are forced")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_model_is_on_disk_before_it_has_its_name(tmp_path: Path, done: list[tuple[str, Path, bytes]]) -> None:
    model, folder = tiny_model(memory=TINY), tmp_path / "new" / "model"
    model.save_pretrained(folder)
    (place,) = [n for n, (what, path, _) in enumerate(done) if what == "rename" and path == folder]
    forced = {path.name: content for what, path, content in done[:place] if what == "force" and content}
    assert forced == files(folder) and {"config.json", "model.safetensors", "mplus.json"} <= forced.keys()
    folders = [path for what, path, _ in done if what == "force" and path.is_dir()]
    assert tmp_path in folders, "the name of the new folder above it"
    assert any(path.name.startswith(".writing-") for _, path, _ in done[:place]), "the names of the files"
    assert ("force", folder.parent, b"") in done[place:], "its own name"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert MPlus.from_pretrained(folder).fingerprint == model.fingerprint


def test_a_model_that_is_saved_over_another_is_on_disk(tmp_path: Path, done: list[tuple[str, Path, bytes]]) -> None:
    tiny_model(memory=TINY).save_pretrained(tmp_path)
    done.clear()
    other = tiny_model(1, memory=TINY)
    other.save_pretrained(tmp_path)
    forced = {path.name: content for what, path, content in done if what == "force" and content}
    assert forced == files(tmp_path) and done[-1] == ("force", tmp_path, b"")
    assert MPlus.from_pretrained(tmp_path).fingerprint == other.fingerprint


@pytest.mark.parametrize("at", ["a write", "forcing", "the rename"])
def test_after_an_error_there_is_no_folder(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no room")

    if at != "a write":
        monkeypatch.setattr(os, {"forcing": "fsync", "the rename": "rename"}[at], fails)
    with pytest.raises(OSError, match="no room"), whole_folder(tmp_path / "model") as writing:
        assert writing.name.startswith(".writing-") and not (tmp_path / "model").exists()
        (writing / "a").write_text("1")
        if at == "a write":
            fails()
    assert list(tmp_path.iterdir()) == []


def test_folders_within_and_what_is_no_file_are_forced_or_passed_over(
    tmp_path: Path, done: list[tuple[str, Path, bytes]]
) -> None:
    with whole_folder(tmp_path / "model") as writing:
        (writing / "inner").mkdir()
        (writing / "inner" / "a").write_text("1")
        (writing / "gone").symlink_to(tmp_path / "nowhere")
        os.mkfifo(writing / "pipe")
    names = [path.name for what, path, _ in done if what == "force"]
    assert {"inner", "a"} <= set(names) and not {"gone", "pipe"} & set(names)
    sync_tree(tmp_path / "model")
