"""What is in a store's folder that no store made, such as pipes and links: nothing waits for it, and nobody follows it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mplus import MemorySaveError, MemoryStore
from mplus.memory.deletions import DELETED, MARK
from mplus.memory.forgettings import NOTE
from mplus.memory.leftovers import COPYING
from mplus.model import MPlus
from mplus.storage.folder import UNFINISHED

LONG_ID = "x" * 200
LONG = MemoryStore.name_for(LONG_ID)
ENTRIES = (NOTE, f"{COPYING}alice-1", f"{DELETED}alice-1", f"{MARK}alice", f"{UNFINISHED}0", f".{LONG}.id", "carl")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    (target := path.parent.parent / "target").write_text("as it was")
    path.symlink_to(target)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "a file").write_text("")


KINDS: dict[str, Callable[[Path], None]] = {"pipe": _pipe, "link": _link, "folder": _folder}


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_store_works_beside_an_entry_that_is_no_file_of_its(
    model: MPlus, tmp_path: Path, entry: str, kind: str
) -> None:
    store = MemoryStore(tmp_path / "s")
    for name in ("alice", "bob", LONG):
        with store.open(name, model) as memory:
            model.write(memory, f"This is what {name} says.", source="a")
    KINDS[kind](path := store.root / entry)
    os.utime(path, (0, 0), follow_symlinks=False)
    store = MemoryStore(store.root)
    assert [memory.name for memory in store.list()] == sorted(["alice", "bob", LONG])
    for name in ("alice", "bob"):
        with store.open(name, model) as memory:
            model.write(memory, "And more.", source="b")
        assert len(store.load(name, model).sources()) == 2
    store.delete("bob")
    store.delete(LONG)
    if entry == f"{MARK}alice" and kind == "folder":
        with pytest.raises(MemorySaveError, match=rf"{MARK}alice is no file.*Remove it"):
            store.delete("alice")
        path.rename(tmp_path / "away")
    store.delete("alice")
    assert store.list() == MemoryStore(store.root).list() == []
    if kind == "link":
        assert (tmp_path / "target").read_text() == "as it was"
