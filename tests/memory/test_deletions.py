"""Destroyed keys and deletions: nothing that was erased is served, written again or left half deleted."""

import json
import os
import threading
from collections.abc import Generator
from pathlib import Path

import fsspec
import pytest

from mplus import (
    KeyVault,
    MemoryConflictError,
    MemoryKey,
    MemoryKeyError,
    MemoryNotFoundError,
    MemoryReadError,
    MemorySaveError,
    MemoryStore,
    UrlStore,
)
from mplus.memory.deletions import MARK, Deletions
from mplus.model import MPlus
from mplus.storage.folder import Folder


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def vault(tmp_path: Path) -> KeyVault:
    return KeyVault(tmp_path / "keys")


def stored(tmp_path: Path, vault: KeyVault | None, model: MPlus, *names: str) -> MemoryStore:
    store = MemoryStore(tmp_path / "s", vault=vault)
    for name in names:
        with store.open(name, model) as memory:
            model.write(memory, f"The secret of {name} is quite long.", source=name)
    return store


def test_a_destroyed_key_ends_what_a_running_process_holds_of_the_memory(
    tmp_path: Path, vault: KeyVault, model: MPlus
) -> None:
    store = stored(tmp_path, vault, model, "alice")
    assert store.load("alice", model).sources()
    KeyVault(tmp_path / "keys").destroy("alice")  # another process, say
    with pytest.raises(MemoryKeyError, match="destroyed"):
        store.load("alice", model)
    assert not store._recent._held


def test_the_open_after_a_destroy_makes_no_new_key_and_writes_nothing_back(
    tmp_path: Path, vault: KeyVault, model: MPlus
) -> None:
    store = stored(tmp_path, vault, model, "alice")
    before = {path.name: path.read_bytes() for path in store.path("alice").iterdir()}
    vault.destroy("alice")
    with pytest.raises(MemoryKeyError, match="destroyed"), store.open("alice", model):
        pytest.fail("it was opened")
    assert not list((tmp_path / "keys").glob("alice*"))
    assert {path.name: path.read_bytes() for path in store.path("alice").iterdir()} == before
    store.delete("alice")
    with store.open("alice", model) as memory:
        assert memory.sources() == []


def test_a_key_made_anew_opens_nothing_that_a_process_held_under_the_old_one(
    tmp_path: Path, vault: KeyVault, model: MPlus
) -> None:
    store = stored(tmp_path, vault, model, "alice")
    vault.destroy("alice")
    vault.key_for_saving("alice")
    with pytest.raises(MemoryKeyError, match="encrypted with key"):
        store.load("alice", model)


@pytest.mark.parametrize("autosaved", [False, True])
def test_what_is_open_when_its_key_is_destroyed_is_not_saved_under_another(
    tmp_path: Path, vault: KeyVault, model: MPlus, autosaved: bool
) -> None:
    store = stored(tmp_path, vault, model, "alice")
    with pytest.raises(MemoryKeyError), store.open("alice", model) as memory:
        model.write(memory, "Something to add to it.", source="b")
        vault.destroy("alice")
        if autosaved:  # somebody else made a key of that name
            vault.key_for_saving("alice")
    assert len(list((tmp_path / "keys").glob("alice*"))) == autosaved


def test_a_deletion_destroys_the_key_first(
    tmp_path: Path, vault: KeyVault, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, vault, model, "alice")

    def kill(*_: object) -> None:
        assert not list((tmp_path / "keys").glob("alice*"))
        raise Killed

    monkeypatch.setattr(Path, "rename", kill)
    with pytest.raises(Killed):
        store.delete("alice")


@pytest.mark.parametrize("where", ["the key", "the folder", "the mark"])
@pytest.mark.parametrize("then", ["a new process", "the same one"])
def test_a_killed_deletion_is_finished_and_a_new_memory_of_that_name_has_a_new_key(
    tmp_path: Path, vault: KeyVault, model: MPlus, monkeypatch: pytest.MonkeyPatch, where: str, then: str
) -> None:
    store = stored(tmp_path, vault, model, "alice", "bob")
    old = vault.key("alice")

    def kill(*_: object, **__: object) -> None:
        raise Killed

    target, method = {
        "the key": (KeyVault, "destroy"),
        "the folder": (Path, "rename"),
        "the mark": (Folder, "remove"),
    }[where]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(target, method, kill)
        store.delete("alice")
    assert [m.name for m in store.list()] == ["bob"]
    if then == "a new process":
        store = MemoryStore(tmp_path / "s", vault=vault)
        assert not list((tmp_path / "keys").glob("alice*"))
        assert {path.name for path in (tmp_path / "s").iterdir() if path.is_dir()} == {"bob"}
    with store.open("alice", model) as memory:
        assert memory.sources() == []
        model.write(memory, "Something else about Alice.", source="new")
    assert vault.key("alice") != old
    assert not list((tmp_path / "s").glob(f"{MARK}*"))
    assert [s.name for s in MemoryStore(tmp_path / "s", vault=vault).load("alice", model).sources()] == ["new"]


def test_a_store_without_the_vault_leaves_the_key_to_one_that_has_it(
    tmp_path: Path, vault: KeyVault, model: MPlus
) -> None:
    stored(tmp_path, vault, model, "alice")
    plain = MemoryStore(tmp_path / "s")
    plain.delete("alice")
    with plain.open("alice", model) as memory:
        model.write(memory, "A memory that is not encrypted.", source="plain")
    assert vault.key("alice")
    store = MemoryStore(tmp_path / "s", vault=vault)
    with pytest.raises(MemoryKeyError):
        vault.key("alice")
    assert [s.name for s in store.load("alice", model).sources()] == ["plain"]


def test_a_key_that_a_killed_destroy_had_overwritten_is_gone(tmp_path: Path, vault: KeyVault) -> None:
    vault.key_for_saving("alice")
    path = tmp_path / "keys" / "alice.key"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(MemoryKeyError, match="destroyed"):
        vault.key("alice")
    assert not vault.destroy("alice")
    assert not path.exists()
    assert vault.key_for_saving("alice") == vault.key("alice")


def test_a_deletion_that_fails_is_a_clear_error_and_goes_on_later(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path, None, model, "alice")

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch, pytest.raises(MemorySaveError, match="alice.*Read-only"):
        patch.setattr(Path, "rename", fail)
        store.delete("alice")
    assert store.list() == []
    with store.open("alice", model) as memory:
        assert memory.sources() == []
    store.delete("alice")
    with pytest.raises(MemoryNotFoundError):
        store.delete("alice")
    assert not Deletions(store.root, None).is_begun("alice")


# --- behind a url, where another machine may come between -------------------------------------------------------------


@pytest.fixture
def machines(tmp_path: Path, vault: KeyVault) -> Generator[tuple[UrlStore, UrlStore]]:
    yield tuple(UrlStore("memory://erased/s", tmp_path / name, vault=vault) for name in ("here", "there"))
    fsspec.filesystem("memory").store.clear()


def told(store: MemoryStore, model: MPlus, source: str) -> None:
    with store.open("alice", model) as memory:
        model.write(memory, f"This is what {source} says.", source=source)


def test_behind_a_url_the_key_is_destroyed_before_anything_is_removed(
    machines: tuple[UrlStore, UrlStore], vault: KeyVault, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines
    told(here, model, "a")
    old = vault.key("alice")

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("mplus.storage.url.Url.remove", kill)
        here.delete("alice")
    with pytest.raises(MemoryKeyError):
        vault.key("alice")
    with pytest.raises(MemoryKeyError, match="destroyed"), there.open("alice", model):
        pytest.fail("it was opened")
    there.delete("alice")
    told(there, model, "new")
    assert vault.key("alice") != old


def test_a_deletion_that_is_finished_late_destroys_no_key_that_was_made_since(
    machines: tuple[UrlStore, UrlStore],
    vault: KeyVault,
    model: MPlus,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    here, there = machines
    told(here, model, "a")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Deletions, "finish", raise_killed)
        here.delete("alice")
    there.delete("alice")
    told(there, model, "new")
    back = UrlStore(here.url, tmp_path / "here", vault=vault)
    assert [s.name for s in back.load("alice", model).sources()] == ["new"]
    assert not list((tmp_path / "here").glob(f"{MARK}*"))


def raise_killed(*_: object) -> None:
    raise Killed


def test_a_memory_that_another_machine_saved_meanwhile_is_not_deleted_and_keeps_its_key(
    machines: tuple[UrlStore, UrlStore], vault: KeyVault, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = machines
    told(here, model, "a")
    real = Deletions.finish

    def finish(deletions: Deletions, name: str) -> bool:
        monkeypatch.setattr(Deletions, "finish", real)
        told(there, model, "b")
        return real(deletions, name)

    with here._held("alice", 1.0):
        monkeypatch.setattr(Deletions, "finish", finish)
        with pytest.raises(MemoryConflictError, match="another writer"):
            here._erase("alice")
    assert [s.name for s in here.load("alice", model).sources()] == ["a", "b"]


# --- the vault --------------------------------------------------------------------------------------------------------


def test_only_the_key_that_is_meant_is_destroyed(vault: KeyVault, tmp_path: Path) -> None:
    key = vault.key_for_saving("alice")
    assert not vault.destroy("alice", key_id=MemoryKey.new().id)
    assert vault.key("alice") == key
    path = tmp_path / "keys" / "alice.key"
    known = json.loads(path.read_bytes())
    del known["id"]  # as an earlier version wrote it
    path.write_text(json.dumps(known))
    assert not vault.destroy("alice", key_id=MemoryKey.new().id)
    assert vault.destroy("alice", key_id=key.id)
    assert not path.exists()


def test_a_vault_whose_salt_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    vault = KeyVault.with_passphrase(tmp_path / "keys", "words")
    key = vault.key_for_saving("alice")
    salt = tmp_path / "keys" / "vault.json"
    saved = salt.read_bytes()
    salt.unlink()
    with pytest.raises(MemoryKeyError, match=r"vault.json is missing.*Restore"):
        KeyVault.with_passphrase(tmp_path / "keys", "words")
    salt.write_text('{"format": 1}')
    with pytest.raises(MemoryKeyError, match="holds no key"):
        KeyVault.with_passphrase(tmp_path / "keys", "words")
    salt.write_bytes(saved)
    assert KeyVault.with_passphrase(tmp_path / "keys", "words").key("alice") == key


def test_a_key_copied_to_another_name_or_put_back_opens_nothing_of_another(
    tmp_path: Path, vault: KeyVault, model: MPlus
) -> None:
    store, keys = stored(tmp_path, vault, model, "alice", "bob"), tmp_path / "keys"
    old = (keys / "alice.key").read_bytes()
    (keys / "bob.key").write_bytes(old)
    with pytest.raises(MemoryKeyError, match="encrypted with key"):
        store.load("bob", model)
    store.delete("alice")
    told(store, model, "new")
    (keys / "alice.key").write_bytes(old)
    with pytest.raises(MemoryKeyError, match="encrypted with key"), store.open("alice", model):
        pytest.fail("it was opened")


def test_a_backup_of_what_was_destroyed_stays_closed_and_what_is_new_stays(
    tmp_path: Path, vault: KeyVault, model: MPlus
) -> None:
    store = stored(tmp_path, vault, model, "alice")
    store.backup(tmp_path / "backup")
    store.delete("alice")
    with pytest.raises(MemoryKeyError, match="no key"):
        store.restore(tmp_path / "backup", "alice")
    told(store, model, "new")
    with pytest.raises(MemoryKeyError, match="encrypted with key"):
        store.restore(tmp_path / "backup", "alice", overwrite=True)
    assert [s.name for s in store.load("alice", model).sources()] == ["new"]


def test_a_fork_under_another_name_has_its_own_key(tmp_path: Path, vault: KeyVault, model: MPlus) -> None:
    store = stored(tmp_path, vault, model, "alice")
    store.put("bob", store.load("alice", model).fork())
    vault.destroy("alice")
    assert [s.name for s in store.load("bob", model).sources()] == ["alice"]
    with pytest.raises(MemoryKeyError):
        store.load("alice", model)


def test_what_a_thread_writes_while_its_key_is_destroyed_is_never_read(
    tmp_path: Path, vault: KeyVault, model: MPlus
) -> None:
    store, ended, errors = stored(tmp_path, vault, model, "alice"), threading.Event(), list[BaseException]()

    def write() -> None:
        while not ended.is_set():
            try:
                told(store, model, "more")
            except MemoryKeyError as error:
                errors.append(error)
                return

    thread = threading.Thread(target=write)
    thread.start()
    vault.destroy("alice")
    thread.join(60)
    ended.set()
    assert errors
    for opened in (store, MemoryStore(tmp_path / "s", vault=vault)):
        with pytest.raises(MemoryKeyError):
            opened.load("alice", model)
    assert not list((tmp_path / "keys").glob("alice*"))


def test_what_another_process_deleted_is_not_kept_in_host_memory(tmp_path: Path, vault: KeyVault, model: MPlus) -> None:
    store = stored(tmp_path, vault, model, "alice")
    assert store._recent._held
    MemoryStore(tmp_path / "s", vault=vault).delete("alice")
    with pytest.raises(MemoryNotFoundError):
        store.load("alice", model)
    assert not store._recent._held


@pytest.mark.parametrize("use", ["destroy", "key_for_saving", "key", "delete"])
def test_a_disk_that_cannot_be_read_now_is_not_taken_for_a_vault_without_the_key(
    tmp_path: Path, vault: KeyVault, model: MPlus, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """Else a deletion would leave the key, and a save would write a new one over it."""
    store, path = stored(tmp_path, vault, model, "alice"), tmp_path / "keys" / "alice.key"
    before, real, failed = path.read_bytes(), Path.lstat, list[bool]()

    def lstat(given: Path) -> os.stat_result:
        if given == path and not failed:
            failed.append(True)
            raise OSError(5, "Input/output error")
        return real(given)

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises((MemoryReadError, MemorySaveError), match="Input/output error"):
        store.delete("alice") if use == "delete" else getattr(vault, use)("alice")
    assert failed and path.read_bytes() == before
    if use == "delete":  # the next use finishes it
        with store.open("alice", model) as memory:
            assert memory.sources() == []
        assert path.read_bytes() != before  # the key of the new memory


def test_too_many_open_files_do_not_make_a_memory_look_damaged(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real = stored(tmp_path, None, model, "alice"), os.open
    store._recent.drop("alice")

    def limited(path: object, *given: int, **options: int) -> int:
        if "tokens-" in str(path):
            raise OSError(24, "Too many open files")
        return real(path, *given, **options)

    with monkeypatch.context() as patch, pytest.raises(MemoryReadError, match="Too many open files.*may be intact"):
        patch.setattr(os, "open", limited)
        store.load("alice", model)
    assert store.load("alice", model).sources()
