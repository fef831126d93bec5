import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mplus import MemoryLimitError, MemoryLockedError, MemoryNotFoundError, MemoryStore
from mplus.model import MPlus


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


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc", ".hidden", "a" * 129, "a\0b", "a b", "x..y", "-rf"])
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
