import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mplus import MemoryLimitError, MemoryLockedError, MemoryNotFoundError, MemorySaveError, MemoryStore
from mplus.memory import saved_memories
from mplus.model import MPlus
from mplus.storage.folder import Folder


def test_memories_are_kept_by_name(tmp_path: Path, model: MPlus, text: str) -> None:
    store = MemoryStore(tmp_path / "s")
    with store.open("alice", model) as memory:
        model.write(memory, text, source="a")
        fingerprint = memory.fingerprint
    with MemoryStore(tmp_path / "s").open("alice", model) as memory:
        assert memory.fingerprint == fingerprint
    with store.open("bob@example.org", model) as memory:
        assert memory.sources() == []
    assert [m.name for m in store.list()] == ["alice", "bob@example.org"]
    store.copy("alice", "carol")
    with store.open("carol", model) as memory:
        assert memory.fingerprint == fingerprint
    store.delete("alice")
    assert [m.name for m in store.list()] == ["bob@example.org", "carol"]
    assert (tmp_path / "s").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "a/b",
        "/etc",
        ".hidden",
        "a" * 129,
        "a\0b",
        "a b",
        "x..y",
        "-rf",
        "a.",
        "con",
        "LPT1.txt",
        "e\u0301",
    ],
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, model: MPlus, name: str) -> None:
    store = MemoryStore(tmp_path / "s")
    with pytest.raises(ValueError, match="Memory name"), store.open(name, model):
        pass
    assert list((tmp_path / "s").iterdir()) == []


def test_quotas_refuse_the_save_and_keep_the_old_state(tmp_path: Path, model: MPlus, text: str) -> None:
    store = MemoryStore(tmp_path)
    with store.open("alice", model) as memory:
        model.write(memory, text[:100], source="a")
        saved = memory.fingerprint
    for limits in ({"max_memory_bytes": 100_000}, {"max_total_bytes": 100_000}):
        limited = MemoryStore(tmp_path, **limits)
        with pytest.raises(MemoryLimitError, match="100,000"), limited.open("alice", model) as memory:
            model.write(memory, text * 2, source="b")
    with store.open("alice", model) as memory:
        assert memory.fingerprint == saved


def test_an_error_while_a_memory_is_open_saves_nothing(tmp_path: Path, model: MPlus, text: str) -> None:
    store = MemoryStore(tmp_path)
    with pytest.raises(RuntimeError), store.open("alice", model) as memory:
        model.write(memory, text, source="a")
        raise RuntimeError
    assert store.list() == []


def test_unknown_memories_are_named(tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFoundError, match="nobody"):
        MemoryStore(tmp_path).delete("nobody")


def test_writers_take_turns(tmp_path: Path, model: MPlus) -> None:
    store = MemoryStore(tmp_path)

    def write(number: int) -> None:
        with store.open("alice", model) as memory:
            model.write(memory, f"This is what writer {number} wrote.", source=f"w{number}")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with store.open("alice", model) as memory:
        assert sorted(s.name for s in memory.sources()) == [f"w{n}" for n in range(6)]


def test_a_memory_held_by_another_process_is_locked_until_it_dies(tmp_path: Path, model: MPlus) -> None:
    script = (
        "import sys,time; from mplus import MemoryStore; from mplus.testing import tiny_model\n"
        f"with MemoryStore({str(tmp_path)!r}).open('alice', tiny_model()): print('held', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "held"
        store = MemoryStore(tmp_path)
        with pytest.raises(MemoryLockedError, match="in use"), store.open("alice", model, timeout=0.2):
            pass
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with store.open("alice", model, timeout=5):
        pass


def test_recent_memories_stay_in_host_memory_and_others_are_dropped(tmp_path: Path, model: MPlus, text: str) -> None:
    loads: list[str] = []
    original = saved_memories.load

    def load(place: Folder, *arguments, **options):
        loads.append(place.name)
        return original(place, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_memories, "load", load)
        store = MemoryStore(tmp_path, max_resident_bytes=150_000)  # room for two
        for name in "abc":
            with store.open(name, model) as memory:
                model.write(memory, text[:100], source=name)
        kept = list(store._recent._held)
        assert 1 <= len(kept) < 3 and kept[-1] == "c"
        for name in ("c", "a", "a"):
            with store.open(name, model) as memory:
                assert [s.name for s in memory.sources()] == [name]
        assert loads == ["a"]
        # Another process saved it meanwhile.
        with MemoryStore(tmp_path).open("a", model) as memory:
            model.write(memory, text[:100], source="later")
        with store.open("a", model) as memory:
            assert [s.name for s in memory.sources()] == ["a", "later"]


def test_changes_after_closing_do_not_reach_the_store(tmp_path: Path, model: MPlus) -> None:
    store = MemoryStore(tmp_path)
    with store.open("alice", model) as memory:
        model.write(memory, "Something to keep.", source="a")
    model.write(memory, "Written after the end of it.", source="late")
    with store.open("alice", model) as again:
        assert [s.name for s in again.sources()] == ["a"]
        loaded = store.load("alice", model)
        model.write(loaded, "Written into a reader's copy.", source="reader")
    assert [s.name for s in store.load("alice", model).sources()] == ["a"]


def test_autosave_brings_changes_to_disk_while_a_memory_is_open(tmp_path: Path, model: MPlus) -> None:
    store = MemoryStore(tmp_path)
    with store.open("alice", model, autosave_seconds=0.02) as memory:
        model.write(memory, "Something to keep for long.", source="a")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(MemoryNotFoundError):
                if [s.name for s in store.load("alice", model).sources()] == ["a"]:
                    break
            time.sleep(0.01)
        else:
            pytest.fail("nothing was saved while the memory was open")
    with pytest.raises(ValueError, match="autosave_seconds"), store.open("alice", model, autosave_seconds=0):
        pass


def test_opening_what_is_open_in_the_same_thread_is_an_error_at_once(tmp_path: Path, model: MPlus) -> None:
    store = MemoryStore(tmp_path)
    with store.open("alice", model), pytest.raises(MemoryLockedError, match="this very thread"):
        store.delete("alice")


def test_how_often_tokens_were_recalled_is_saved_too(tmp_path: Path, model: MPlus, text: str) -> None:
    store = MemoryStore(tmp_path, max_resident_bytes=0)
    with store.open("alice", model) as memory:
        model.write(memory, text, source="a")
    with store.open("alice", model) as memory:
        model.generate(memory, "Which box is blue?", max_new_tokens=1)
        recalled = memory.state.tracks[0].long_term.provenance.recall_frequencies
    with store.open("alice", model) as memory:
        assert torch.equal(memory.state.tracks[0].long_term.provenance.recall_frequencies, recalled)
        assert recalled.max() > recalled.min()


def test_snapshots_are_saved_and_survive(tmp_path: Path, model: MPlus, text: str) -> None:
    store = MemoryStore(tmp_path, max_resident_bytes=0)
    with store.open("alice", model) as memory:
        model.write(memory, text, source="a")
    with store.open("alice", model) as memory:
        number = memory.snapshot("before b")  # changes nothing but the history
    with store.open("alice", model) as memory:
        model.write(memory, text[:200], source="b")
    with store.open("alice", model) as memory:
        memory.rollback(number)
        assert [s.name for s in memory.sources()] == ["a"]
    assert [s.name for s in store.load("alice", model).sources()] == ["a"]


def test_who_reads_a_memory_uses_it(tmp_path: Path, model: MPlus, text: str) -> None:
    store = MemoryStore(tmp_path)
    with store.open("alice", model) as memory:
        model.write(memory, text[:200], source="a")
    (lock,) = tmp_path.glob(".alice.lock")
    os.utime(lock, (0, time.time() + 1000))
    store.load("alice", model)
    (alice,) = store.list()
    assert abs(alice.used - time.time()) < 600
    lock.unlink()
    store.load("alice", model)  # such as one that was copied here
    assert not lock.exists()


def test_a_memory_can_be_put_listed_and_copied_cheaply(tmp_path: Path, model: MPlus, text: str) -> None:
    store = MemoryStore(tmp_path)
    memory = model.new_memory()
    model.write(memory, text, source="a")
    store.put("alice", memory)
    with pytest.raises(ValueError, match="exists already"):
        store.put("alice", memory)
    store.copy("alice", "bob")
    with pytest.raises(ValueError, match="exists already"):
        store.copy("alice", "bob")
    (alice, bob) = store.list()
    assert alice.nbytes > memory.nbytes and abs(alice.nbytes - bob.nbytes) < 100
    assert time.time() - 600 < alice.saved <= alice.used <= time.time() + 1
    shared = {p.stat().st_ino for p in (tmp_path / "alice").glob("tokens-*")}
    assert shared == {p.stat().st_ino for p in (tmp_path / "bob").glob("tokens-*")}
    with store.open("bob", model) as copy:
        copy.forget("a")
    assert [s.name for s in store.load("alice", model).sources()] == ["a"]
    limited = MemoryStore(tmp_path, max_total_bytes=alice.nbytes + bob.nbytes // 2)
    with pytest.raises(MemoryLimitError, match="max_total_bytes"):
        limited.copy("alice", "carol")
    assert not (tmp_path / "carol").exists()


def test_a_link_in_place_of_a_memory_is_refused(tmp_path: Path, model: MPlus) -> None:
    store = MemoryStore(tmp_path / "s")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s" / "alice").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"), store.open("alice", model):
        pass
    assert store.list() == []
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_what_killed_deletes_and_copies_left_is_swept(tmp_path: Path) -> None:
    for name in (".deleted-alice-17", ".copying-bob-18"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokens").write_text("left")
    MemoryStore(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


def test_list_never_misses_a_memory_that_is_being_saved(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a memory go while its folder is looked at: the memory is listed, with the bytes of the others."""
    store = MemoryStore(tmp_path)
    for name in ("alice", "bob"):
        with store.open(name, model) as memory:
            model.write(memory, "Something to keep for long.", source="a")
    real, removed = os.scandir, list[Path]()
    going = list((tmp_path / "alice").glob("tokens-*"))

    @contextlib.contextmanager
    def scandir(path: Path):
        with real(path) as entries:
            found = list(entries)
        if Path(path).name == "alice" and not removed:
            removed.extend(going)
            for one in going:
                one.unlink()
        yield iter(found)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [m.name for m in store.list()] == ["alice", "bob"]
    assert removed


def test_list_holds_what_cannot_be_read_and_passes_over_what_is_no_memory(tmp_path: Path, model: MPlus) -> None:
    store = MemoryStore(tmp_path)
    store.put("alice", model.new_memory())
    store.put("bob", model.new_memory())
    (tmp_path / "alice" / "memory.json").write_text("not a manifest")
    (tmp_path / "bob" / "memory.json").unlink()
    os.mkfifo(tmp_path / "bob" / "memory.json")  # a reader would wait for ever
    (tmp_path / "notes.txt").write_text("not a memory")
    (tmp_path / "empty").mkdir()
    assert [m.name for m in store.list()] == ["alice", "bob"]


@pytest.mark.parametrize("foreign", [True, False])
def test_a_folder_that_may_not_be_read_hides_no_other(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch, foreign: bool
) -> None:
    store = MemoryStore(tmp_path, max_total_bytes=10**9)
    store.put("alice", model.new_memory())
    closed = tmp_path / "lost+found"  # as it is at the top of a disk
    closed.mkdir()
    real_lstat, real_scandir = Path.lstat, os.scandir

    def lstat(path: Path) -> os.stat_result:
        if path.parent == closed:
            raise PermissionError(13, "Permission denied")
        return real_lstat(path)

    def scandir(path: Path) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(os, "scandir", scandir)
    owner = closed.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + foreign, raising=False)
    assert [m.name for m in store.list()] == (["alice"] if foreign else ["alice", "lost+found"])
    if foreign:
        store.put("bob", model.new_memory())
    else:
        with pytest.raises(MemorySaveError, match="Permission denied"):  # its bytes cannot be counted
            store.put("bob", model.new_memory())


def test_quotas_never_miss_a_memory(tmp_path: Path, model: MPlus, text: str) -> None:
    """Neither one whose first save has not ended nor the bytes of a manifest."""
    store = MemoryStore(tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "tokens-x").write_bytes(b"\0" * 500_000)
    limited = MemoryStore(tmp_path, max_total_bytes=500_000)
    with pytest.raises(MemoryLimitError, match="max_total_bytes"):
        limited.put("alice", model.new_memory())
    store.put("bob", model.new_memory())
    nbytes = {m.name: m.nbytes for m in store.list()}["bob"]
    MemoryStore(tmp_path / "b", max_memory_bytes=nbytes + 2).put("bob", model.new_memory())
    with pytest.raises(MemoryLimitError, match="max_memory_bytes"):
        MemoryStore(tmp_path / "c", max_memory_bytes=nbytes - 2).put("bob", model.new_memory())


def test_a_new_memory_is_kept_empty_only_if_that_is_wanted(tmp_path: Path, model: MPlus) -> None:
    store = MemoryStore(tmp_path)
    with store.open("asked", model, keep_empty=False):
        pass
    with store.open("made", model):
        pass
    with store.open("written", model, keep_empty=False) as memory:
        model.write(memory, "Something to keep.", source="a")
    assert [memory.name for memory in store.list()] == ["made", "written"]
