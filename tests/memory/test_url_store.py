"""A store behind a url: two machines see each other's saves, one of two writers is refused, and nobody's death loses any."""

import pickle
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mplus import (
    KeyVault,
    MemoryConflictError,
    MemoryLimitError,
    MemoryNotFoundError,
    MemoryReadError,
    MemorySaveError,
    MemoryStore,
    UrlStore,
)
from mplus.memory.saved_memories import SavedMemories
from mplus.model import MPlus
from mplus.storage.folder import Folder
from mplus.storage.names import MANIFEST
from mplus.storage.url import LEASE, Url
from mplus_integrations.cluster.sizing import Measured

URL = "memory://bucket/memories"


@pytest.fixture(autouse=True)
def _clear() -> Generator[None]:
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def here(tmp_path: Path) -> UrlStore:
    return UrlStore(URL, tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> UrlStore:
    return UrlStore(URL, tmp_path / "there")


def write(store: UrlStore, model: MPlus, source: str, name: str = "alice") -> None:
    with store.open(name, model) as memory:
        model.write(memory, f"This is what {source} says.", source=source)


def sources(store: UrlStore, model: MPlus, name: str = "alice") -> list[str]:
    return [source.name for source in store.load(name, model).sources()]


def remote_files() -> dict[str, bytes]:
    files = fsspec.filesystem("memory")
    return {path: files.cat_file(path) for path in files.store}


def test_each_machine_reads_and_continues_what_the_other_saved(model: MPlus, here: UrlStore, there: UrlStore) -> None:
    for source, store in (("a", here), ("b", there), ("c", here), ("d", here), ("e", there)):
        write(store, model, source)
    assert sources(here, model) == sources(there, model) == ["a", "b", "c", "d", "e"]
    assert here.load("alice", model).fingerprint == there.load("alice", model).fingerprint
    assert here.verify("alice") is None and there.verify("alice") is None


def test_what_is_saved_is_behind_the_url_and_nothing_else(model: MPlus, here: UrlStore, tmp_path: Path) -> None:
    write(here, model, "a")
    write(here, model, "b")
    saved = {path.rpartition("/")[2] for path in remote_files()}
    assert saved == {path.name for path in (tmp_path / "here" / "alice").iterdir() if not path.name.startswith(".")}
    assert sources(UrlStore(URL, tmp_path / "new"), model) == ["a", "b"]


def test_a_warm_memory_is_not_fetched_again(model: MPlus, here: UrlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here, model, "a")
    fetched: list[str] = []
    real = Url.open
    monkeypatch.setattr(Url, "open", lambda place, name: (fetched.append(name), real(place, name))[1])
    sources(here, model)
    write(here, model, "b")
    assert fetched == []


def test_a_warm_save_takes_some_twenty_requests_and_a_warm_read_one(
    model: MPlus, here: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, model, "a")
    write(here, model, "b")
    asked: list[str] = []
    for name in ("cat_file", "pipe_file", "open", "ls", "rm_file"):
        real = getattr(MemoryFileSystem, name)

        def noted(*given: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            asked.append(name)
            return real(*given, **options)

        monkeypatch.setattr(MemoryFileSystem, name, noted)
    here.load("alice", model)
    assert asked == ["cat_file"]
    asked.clear()
    write(here, model, "c")
    assert 10 <= len(asked) <= Measured().requests_per_save + 4, asked


def test_of_two_machines_that_write_at_once_the_second_is_refused(
    model: MPlus, here: UrlStore, there: UrlStore
) -> None:
    write(here, model, "a")
    with pytest.raises(MemoryConflictError, match="another writer"), here.open("alice", model) as memory:
        model.write(memory, "Mine.", source="mine")
        write(there, model, "theirs")
    assert sources(here, model) == sources(there, model) == ["a", "theirs"]
    write(here, model, "mine")
    assert sources(there, model) == ["a", "theirs", "mine"]


@pytest.mark.parametrize("when", ["before the files", "before the manifest"])
def test_a_writer_that_dies_between_leaves_what_was_there(
    model: MPlus, here: UrlStore, there: UrlStore, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    write(here, model, "a")

    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Url, "put" if when == "before the files" else "exchange_if", die)
        patched.setattr("mplus.memory.url_store.remove_folder", lambda _: None)  # nobody cleans up
        with pytest.raises(KilledError):
            write(here, model, "lost")
    assert sources(there, model) == ["a"]
    assert sources(here, model) == ["a"], "the machine's own copy was ahead of the url"
    write(there, model, "b")
    assert sources(here, model) == ["a", "b"] and here.verify("alice") is None


def test_a_save_that_does_not_reach_the_url_is_an_error_and_leaves_no_trace(
    model: MPlus, here: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, model, "a")

    def fail(*_: object) -> None:
        raise OSError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(Url, "exchange_if", fail)
        with pytest.raises(MemorySaveError, match="no network"):
            write(here, model, "lost")
    assert sources(here, model) == ["a"]


def test_a_url_that_cannot_be_reached_is_an_error(
    model: MPlus, here: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, model, "a")

    def fail(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(Url, "content", fail)
    monkeypatch.setattr(Url, "folders", fail)
    for use in (lambda: sources(here, model), lambda: write(here, model, "b"), here.list):
        with pytest.raises(MemoryReadError, match="no network"):
            use()


def test_the_lease_of_a_dead_machine_ends_soon(model: MPlus, here: UrlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mplus.memory.url_store.LEASE_SECONDS", 0.3)
    place = here._remote("alice")
    with pytest.raises(ZeroDivisionError), place.lock(1):
        monkeypatch.setattr("mplus.storage.url.Lease.give_back", lambda _: None)
        raise ZeroDivisionError
    assert fsspec.filesystem("memory").exists(f"/bucket/memories/alice/{LEASE}")
    began = time.monotonic()
    write(here, model, "a")
    assert time.monotonic() - began < 20
    assert sources(here, model) == ["a"]


def test_a_deleted_memory_is_gone_everywhere_and_its_name_is_free(
    model: MPlus, here: UrlStore, there: UrlStore
) -> None:
    write(here, model, "a")
    assert sources(there, model) == ["a"]
    there.delete("alice")
    assert remote_files() == {} and here.list() == []
    with pytest.raises(MemoryNotFoundError):
        here.load("alice", model)
    with pytest.raises(MemoryNotFoundError):
        here.delete("alice")
    write(here, model, "anew")
    assert sources(there, model) == ["anew"]


def test_the_copy_of_a_memory_that_another_machine_deleted_goes_with_the_next_list(
    model: MPlus, here: UrlStore, there: UrlStore
) -> None:
    for name in ("alice", "bob"):
        write(here, model, "a", name)
    there.delete("alice")
    with here.open("carl", model) as memory:  # not behind the url yet
        model.write(memory, "This is written for the first time.", source="a")
        assert [memory.name for memory in here.list()] == ["bob"]
    assert not here.path("alice").exists() and not here._recent._held.keys() & {"alice"}
    assert [memory.name for memory in here.list()] == ["bob", "carl"]


def test_every_memory_is_listed_by_every_machine(model: MPlus, here: UrlStore, there: UrlStore) -> None:
    write(here, model, "a")
    write(there, model, "b", "bob")
    there.put("carl", model.new_memory())
    here.copy("bob", "dora")
    assert [memory.name for memory in here.list()] == ["alice", "bob", "carl", "dora"]
    assert [memory.name for memory in there.list()] == ["alice", "bob", "carl", "dora"]
    assert here.list()[0].nbytes == sum(len(data) for path, data in remote_files().items() if "/alice/" in path)
    assert abs(here.list()[0].saved - time.time()) < 3600
    assert sources(there, model, "dora") == ["b"]
    with pytest.raises(ValueError, match="exists already"):
        here.put("carl", model.new_memory())


def test_encrypted_memories_are_encrypted_behind_the_url(model: MPlus, tmp_path: Path) -> None:
    vault = KeyVault(tmp_path / "vault")
    here, there = (UrlStore(URL, tmp_path / name, vault=vault) for name in ("here", "there"))
    for source, store in (("a", here), ("b", there), ("c", here)):
        write(store, model, source)
    assert sources(there, model) == ["a", "b", "c"] and there.verify("alice") is None
    assert here.list()[0].encrypted
    assert not any(b"what a says" in data for data in remote_files().values())


def test_a_save_beyond_the_limit_is_refused(model: MPlus, tmp_path: Path) -> None:
    store = UrlStore(URL, tmp_path / "here", max_memory_bytes=10)
    with pytest.raises(MemoryLimitError):
        write(store, model, "a")
    assert not any(MANIFEST in path for path in remote_files())


def test_local_copies_that_were_not_used_make_room(model: MPlus, here: UrlStore, tmp_path: Path) -> None:
    for name in ("alice", "bob", "carl"):
        write(here, model, "a", name)
    small = UrlStore(URL, tmp_path / "small", max_local_bytes=1)
    for name in ("alice", "bob", "carl"):
        assert sources(small, model, name) == ["a"]
    assert [path.name for path in (tmp_path / "small").iterdir() if path.is_dir()] == ["carl"]
    assert sources(small, model, "alice") == ["a"]


def test_a_folder_of_other_memories_is_refused_and_they_stay(model: MPlus, here: UrlStore, tmp_path: Path) -> None:
    own = MemoryStore(tmp_path / "own")
    own.put("diary", model.new_memory())
    with pytest.raises(ValueError, match=rf"own'.*not copies.*{URL}.*another folder"):
        UrlStore(URL, own.root)
    assert [memory.name for memory in own.list()] == ["diary"]
    write(here, model, "a")
    with pytest.raises(ValueError, match=rf"copies of '{URL}'.*memory://bucket/others.*another folder"):
        UrlStore("memory://bucket/others", here.root)
    assert sources(UrlStore(f"{URL}/", here.root), model) == ["a"]


def test_a_folder_of_copies_is_not_opened_as_a_store(model: MPlus, here: UrlStore) -> None:
    write(here, model, "a")
    with pytest.raises(ValueError, match=rf"here'.*copies of '{URL}'.*UrlStore"):
        MemoryStore(here.root)
    assert sources(UrlStore(URL, here.root), model) == ["a"]


def test_copies_are_marked_as_such_also_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("exchange", "sync"):
        real = getattr(Folder, name)

        def noted(place: Folder, *given: object, name: str = name, real: Any = real) -> None:
            done.append(name)
            real(place, *given)

        monkeypatch.setattr(Folder, name, noted)
    UrlStore(URL, tmp_path / "here")
    assert done[done.index("exchange") :][:2] == ["exchange", "sync"]


def test_a_backup_has_every_memory_though_few_copies_fit(model: MPlus, here: UrlStore, tmp_path: Path) -> None:
    for name in ("alice", "bob", "carl"):
        write(here, model, "a", name)
    write(here, model, "b", "bob")
    small = UrlStore(URL, tmp_path / "small", max_local_bytes=1)
    assert small.backup(tmp_path / "backup") == ("alice", "bob", "carl")
    new = MemoryStore(tmp_path / "new")
    for name, names in {"alice": ["a"], "bob": ["a", "b"], "carl": ["a"]}.items():
        new.restore(tmp_path / "backup", name)
        assert [source.name for source in new.load(name, model).sources()] == names


def test_a_memory_without_a_copy_is_verified(model: MPlus, here: UrlStore, there: UrlStore) -> None:
    write(here, model, "a")
    assert there.verify("alice") is None
    damaged = next(path for path in (there.root / "alice").iterdir() if path.suffix == ".safetensors")
    damaged.write_bytes(b"x")
    assert there.verify("alice") is None, "the copy was not fetched anew"
    files = fsspec.filesystem("memory")
    files.pipe_file(f"/bucket/memories/alice/{damaged.name}", b"x")
    assert damaged.name in str(UrlStore(URL, there.root.parent / "new").verify("alice"))
    with pytest.raises(MemoryNotFoundError):
        there.verify("bob")


@pytest.mark.parametrize("use", ["load", "verify", "backup"])
def test_a_copy_that_makes_room_while_it_is_read_is_fetched_again(
    model: MPlus, here: UrlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    write(here, model, "a")
    store = UrlStore(URL, here.root)
    evicted: list[Path] = []
    real = SavedMemories.key

    def evict(saves: SavedMemories, name: str) -> object:
        if not evicted:
            evicted.append((saves.root / name).rename(tmp_path / "evicted"))
        return real(saves, name)

    monkeypatch.setattr(SavedMemories, "key", evict)
    if use == "load":
        assert sources(store, model) == ["a"]
    elif use == "verify":
        assert store.verify("alice") is None
    else:
        assert store.backup(tmp_path / "backup") == ("alice",)
    assert evicted and (store.root / "alice" / MANIFEST).exists()


def test_a_pickled_store_is_the_same_store(model: MPlus, here: UrlStore) -> None:
    write(here, model, "a")
    again = pickle.loads(pickle.dumps(here))
    assert again.url == URL and sources(again, model) == ["a"]


def test_a_local_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local folder"):
        UrlStore(str(tmp_path / "memories"), tmp_path / "here")
