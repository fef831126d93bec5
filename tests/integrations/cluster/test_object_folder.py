"""The object store that stands in for S3 on one machine: what the benchmark of a cluster relies on."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mplus import MemoryConflictError, UrlStore
from mplus.model import MPlus

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "object_folder.py"
EXCHANGE = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
from object_folder import ObjectFolder
files, path, mine = ObjectFolder(), sys.argv[1], sys.argv[2]
won = 0
for number in range(200):
    tag = files.info(path)["ETag"]
    try:
        files.pipe_file(path, f"{{mine}} {{number}}".encode(), IfMatch=tag)
        won += 1
    except OSError:
        pass
print(won)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    spec = importlib.util.spec_from_file_location("object_folder", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
    return f"objects://{tmp_path}/bucket"


def test_an_exchange_compares_and_an_object_is_made_once(url: str) -> None:
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/a", b"1", IfNoneMatch="*")
    before = files.info(f"{root}/a")["ETag"]
    files.pipe_file(f"{root}/a", b"2", IfMatch=before)
    for conditions in ({"IfMatch": before}, {"IfNoneMatch": "*"}, {"mode": "create"}):
        with pytest.raises(OSError, match="PreconditionFailed"):
            files.pipe_file(f"{root}/a", b"3", **conditions)
    assert files.cat_file(f"{root}/a") == b"2" and [one["name"] for one in files.ls(root)] == [f"{root}/a"]


def test_of_processes_that_exchange_at_once_one_wins_each_time(url: str) -> None:
    files, root = fsspec.core.url_to_fs(url)
    files.pipe_file(f"{root}/a", b"")
    names = ("one", "two")
    running = [
        subprocess.Popen([sys.executable, "-c", EXCHANGE, f"{root}/a", name], stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    won = [int(process.communicate(timeout=100)[0]) for process in running]
    assert all(process.returncode == 0 for process in running) and max(won) > 0 and sum(won) <= 400
    assert files.cat_file(f"{root}/a").split()[0].decode() in names


def test_two_machines_share_a_store_in_it(url: str, model: MPlus, tmp_path: Path) -> None:
    here, there = (UrlStore(f"{url}/memories", tmp_path / name) for name in ("here", "there"))
    for source, store in (("a", here), ("b", there), ("c", here)):
        with store.open("alice", model) as memory:
            model.write(memory, f"This is what {source} says.", source=source)
    with pytest.raises(MemoryConflictError), here.open("alice", model) as memory:
        model.write(memory, "Mine.", source="mine")
        with there.open("alice", model) as theirs:
            model.write(theirs, "Theirs.", source="theirs")
    assert [source.name for source in here.load("alice", model).sources()] == ["a", "b", "c", "theirs"]
    assert [memory.name for memory in there.list()] == ["alice"]
    here.delete("alice")
    assert there.list() == []
