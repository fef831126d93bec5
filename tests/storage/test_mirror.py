"""A copy of a memory behind a url: no race, lost file or damage of the copy keeps what is intact there from being read."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mplus import CorruptMemoryError, KeyVault, MemoryNotFoundError, MemoryReadError, MemorySaveError, UrlStore
from mplus.model import MPlus
from mplus.storage.folder import Folder
from mplus.storage.names import MANIFEST
from mplus.storage.url import Url

URL = "memory://bucket/memories"
Stores = tuple[UrlStore, UrlStore]


@pytest.fixture(autouse=True)
def _clear() -> Generator[None]:
    fsspec.filesystem("memory").store.clear()
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["plain", "sealed"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    """The stores of two machines."""
    vault = KeyVault(tmp_path / "vault") if request.param == "sealed" else None
    return UrlStore(URL, tmp_path / "here", vault=vault), UrlStore(URL, tmp_path / "there", vault=vault)


def write(store: UrlStore, model: MPlus, *names: str) -> None:
    for source in names:
        with store.open("alice", model) as memory:
            model.write(memory, f"This is what {source} says.", source=source)


def sources(store: UrlStore, model: MPlus, name: str = "alice") -> list[str]:
    return [source.name for source in store.load(name, model).sources()]


def again(store: UrlStore) -> UrlStore:
    """The store of another process, which holds nothing in host memory."""
    return UrlStore(URL, store.root, vault=store.vault)


def files(store: UrlStore) -> list[Path]:
    own = [path for path in (store.root / "alice").iterdir() if path.suffix in (".safetensors", ".sealed", ".jsonl")]
    return sorted(own)


def damage(path: Path, how: str) -> None:
    if how == "lost":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"\0" * path.stat().st_size)


def test_a_memory_that_is_saved_while_it_is_fetched_is_read(
    model: MPlus, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = stores
    write(here, model, *"abcdef")
    saved: list[str] = []
    real = Folder.exchange

    def exchange(place: Folder, name: str, content: bytes) -> None:
        real(place, name, content)
        if place.path == there.root / "alice" and not saved:
            saved.append(name)
            write(here, model, *"ghijkl")

    monkeypatch.setattr(Folder, "exchange", exchange)
    assert sources(there, model)[:6] == list("abcdef") and saved == [MANIFEST]
    assert sources(there, model) == list("abcdefghijkl")


@pytest.mark.parametrize("how", ["lost", "cut", "zeros"])
@pytest.mark.parametrize("use", ["load", "open", "verify", "backup", "copy"])
def test_a_damaged_copy_is_fetched_anew(model: MPlus, stores: Stores, tmp_path: Path, how: str, use: str) -> None:
    here, there = stores
    write(here, model, *"abc")
    assert sources(there, model) == list("abc")
    for path in files(there):
        damage(path, how)
    there = again(there)
    if use == "open":
        write(there, model, "d")
        assert sources(here, model) == list("abcd")
    elif use == "verify":
        assert there.verify("alice") is None
    elif use == "backup":
        assert there.backup(tmp_path / "backup") == ("alice",)
    elif use == "copy":
        there.copy("alice", "bob")
        assert sources(here, model, "bob") == list("abc") and here.verify("bob") is None
    assert sources(there, model)[:3] == list("abc") and again(there).verify("alice") is None


def test_a_copy_is_not_published_with_damage_that_only_a_whole_read_finds(model: MPlus, stores: Stores) -> None:
    here, there = stores
    write(here, model, *"abc")
    assert sources(there, model) == list("abc")
    for path in files(there):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again(there).copy("alice", "bob")
    assert here.verify("bob") is None and sources(here, model, "bob") == list("abc")


def test_damage_behind_the_url_is_told_and_a_whole_copy_stays(model: MPlus, stores: Stores, tmp_path: Path) -> None:
    here, there = stores
    write(here, model, *"abc")
    assert sources(there, model) == list("abc")
    lost = files(there)[0].name
    fsspec.filesystem("memory").rm_file(f"/bucket/memories/alice/{lost}")
    new = UrlStore(URL, tmp_path / "new", vault=here.vault)
    with pytest.raises(CorruptMemoryError, match=lost):
        new.load("alice", model)
    assert lost in str(new.verify("alice"))
    assert sources(again(there), model) == list("abc")
    write(again(there), model, "d")
    assert sources(new, model) == list("abcd")


def test_damage_behind_the_url_does_not_keep_it_from_being_deleted(model: MPlus, stores: Stores) -> None:
    here, there = stores
    write(here, model, *"abc")
    files_there = fsspec.filesystem("memory")
    for path in [path for path in files_there.store if not path.endswith(MANIFEST)]:
        files_there.rm_file(path)
    there.delete("alice")
    with pytest.raises(MemoryNotFoundError):
        here.load("alice", model)


@pytest.mark.parametrize("has_key", [True, False])
def test_a_listing_that_is_behind_removes_nothing(
    model: MPlus, stores: Stores, monkeypatch: pytest.MonkeyPatch, has_key: bool
) -> None:
    here, there = stores
    write(here, model, "a")
    assert sources(there, model) == ["a"]
    write(here, model, "b")
    kept = {path.name for path in files(there)}
    reader = there if has_key else UrlStore(URL, there.root)
    with monkeypatch.context() as patched:
        patched.setattr(Url, "sizes", lambda _: {})
        if has_key or here.vault is None:
            assert sources(reader, model) == ["a", "b"]
        else:
            with pytest.raises(MemoryReadError, match="not listed"):
                reader.verify("alice")
            assert kept == {path.name for path in files(there)}
    assert sources(again(there), model) == ["a", "b"]


def test_a_delete_with_a_listing_that_is_behind_leaves_no_file_for_good(
    model: MPlus, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = stores
    write(here, model, "a")
    real = MemoryFileSystem.ls

    def ls(files: MemoryFileSystem, path: str, **options: Any) -> Any:
        if path.endswith("alice"):
            raise FileNotFoundError(path)
        return real(files, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "ls", ls)
        with pytest.raises(MemorySaveError, match="not deleted whole"):
            here.delete("alice")
    again(here)
    assert not [path for path in fsspec.filesystem("memory").store if "alice" in path]
