"""Backups of a store in use, and what comes back from them."""

import json
import threading
from pathlib import Path

import fsspec
import pytest

from mplus import (
    CorruptMemoryError,
    KeyVault,
    MemoryKeyError,
    MemoryLimitError,
    MemoryNotFoundError,
    MemorySaveError,
    MemoryStore,
)
from mplus.memory import backup as backup_module
from mplus.memory.backup import LIST, Backup
from mplus.model import MPlus
from mplus.storage.address import folder_of
from mplus.storage.files import copy
from mplus.storage.folder import Folder


def stored(root: Path, model: MPlus, *names: str, vault: KeyVault | None = None) -> MemoryStore:
    store = MemoryStore(root, vault=vault)
    for name in names:
        with store.open(name, model) as memory:
            model.write(memory, f"What is known of {name} is quite short.", source=name)
    return store


def sources(store: MemoryStore, name: str, model: MPlus) -> list[str]:
    return [source.name for source in store.load(name, model).sources()]


@pytest.mark.parametrize("where", ["folder", "url"])
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_restored_memory_is_as_it_was_at_the_backup(
    tmp_path: Path, model: MPlus, where: str, encrypted: bool
) -> None:
    vault = KeyVault(tmp_path / "keys") if encrypted else None
    store = stored(tmp_path / "s", model, "alice", "bob", vault=vault)
    target = "memory://backups/monday" if where == "url" else tmp_path / "backup"
    try:
        assert store.backup(target) == ("alice", "bob")
        with store.open("alice", model) as memory:
            model.write(memory, "Written after the backup of Monday.", source="later")
        store.delete("bob") if not encrypted else None
        store.restore(target, "alice", overwrite=True)
        assert sources(store, "alice", model) == ["alice"]
        if not encrypted:
            store.restore(target, "bob")
            assert sources(store, "bob", model) == ["bob"]
        with store.open("alice", model) as memory:
            model.write(memory, "Written after it was restored.", source="again")
        assert sources(store, "alice", model) == ["alice", "again"]
        with pytest.raises(ValueError, match="backup already"):
            store.backup(target)
    finally:
        fsspec.filesystem("memory").store.clear()


def test_a_backup_of_a_memory_that_is_saved_meanwhile_is_one_of_its_saves(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, saves = stored(tmp_path / "s", model, "alice"), list[int]()

    def interrupted(source: Folder, target: Folder, **options: object) -> None:
        if len(saves) < 3:
            saves.append(len(saves))
            with store.open("alice", model) as memory:
                memory.reset()
                model.write(memory, f"Written while it is copied, turn {len(saves)}.", source=f"turn {len(saves)}")
            raise CorruptMemoryError("a file went missing", source)  # as it does when a save removes it
        copy(source, target, **options)

    monkeypatch.setattr(backup_module, "copy", interrupted)
    store.backup(tmp_path / "backup")
    other = MemoryStore(tmp_path / "other")
    other.restore(tmp_path / "backup", "alice")
    assert sources(other, "alice", model) == ["turn 3"]


def test_backups_beside_threads_that_write_are_each_some_save_of_every_memory(tmp_path: Path, model: MPlus) -> None:
    store, ended, failed = MemoryStore(tmp_path / "s"), threading.Event(), list[BaseException]()
    stored(tmp_path / "s", model, "alice", "bob")

    def write(name: str) -> None:
        number = 0
        try:
            while not ended.is_set():
                with store.open(name, model) as memory:
                    model.write(memory, f"This is note {number} of {name}.", source=f"{number}")
                number += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("alice", "bob")]
    for thread in threads:
        thread.start()
    try:
        for number in range(3):
            assert store.backup(tmp_path / f"backup-{number}") == ("alice", "bob")
            store.restore(tmp_path / f"backup-{number}", "alice", overwrite=True)  # while it is written to
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failed == []
    for number in range(3):
        other = MemoryStore(tmp_path / f"other-{number}")
        other.restore(tmp_path / f"backup-{number}", "bob")
        assert other.verify("bob") is None
        held = sources(other, "bob", model)
        assert held == ["bob", *map(str, range(len(held) - 1))]  # of one save, and none left out
    assert store.verify("alice") is None and store.verify("bob") is None


def test_a_damaged_memory_is_not_backed_up_and_verify_says_which(tmp_path: Path, model: MPlus) -> None:
    store = stored(tmp_path / "s", model, "alice", "bob")
    path = max((tmp_path / "s" / "bob").glob("tokens-*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert store.verify("alice") is None
    assert "bob" in str(store.verify("bob"))
    with pytest.raises(CorruptMemoryError, match="bob"):
        store.backup(tmp_path / "backup")
    with pytest.raises(MemoryNotFoundError, match="not finished"):
        store.restore(tmp_path / "backup", "alice", overwrite=True)
    with pytest.raises(MemoryNotFoundError, match="nobody"):
        store.verify("nobody")


def test_an_altered_backup_is_refused_and_nothing_is_touched(tmp_path: Path, model: MPlus) -> None:
    store = stored(tmp_path / "s", model, "alice", "bob")
    store.backup(tmp_path / "backup")
    known = json.loads((tmp_path / "backup" / LIST).read_text())
    (tmp_path / "backup" / LIST).write_text(json.dumps(known | {"memories": {"alice": known["memories"]["bob"]}}))
    with pytest.raises(CorruptMemoryError, match="another memory"):
        store.restore(tmp_path / "backup", "alice", overwrite=True)
    (tmp_path / "backup" / LIST).write_text("[]")
    with pytest.raises(CorruptMemoryError, match="list of a backup"):
        store.restore(tmp_path / "backup", "alice", overwrite=True)
    (tmp_path / "backup" / LIST).write_text(json.dumps(known | {"memories": {"../alice": "0"}}))
    with pytest.raises(CorruptMemoryError, match="Memory name"):
        Backup.read(folder_of(tmp_path / "backup"))
    assert sources(store, "alice", model) == ["alice"]


def test_a_restore_replaces_nothing_unasked_and_heeds_quotas_and_keys(tmp_path: Path, model: MPlus) -> None:
    store = stored(tmp_path / "s", model, "alice", vault=KeyVault(tmp_path / "keys"))
    store.backup(tmp_path / "backup")
    with pytest.raises(ValueError, match="exists already"):
        store.restore(tmp_path / "backup", "alice")
    with pytest.raises(MemoryKeyError):
        MemoryStore(tmp_path / "other").restore(tmp_path / "backup", "alice")
    limited = MemoryStore(tmp_path / "limited", max_total_bytes=100, vault=store.vault)
    with pytest.raises(MemoryLimitError):
        limited.restore(tmp_path / "backup", "alice")
    with pytest.raises(MemoryNotFoundError, match="'bob'"):
        store.restore(tmp_path / "backup", "bob")


def test_a_backup_that_cannot_be_written_is_a_clear_error(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path / "s", model, "alice")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "sync", fail)
    with pytest.raises(MemorySaveError, match="No space left"):
        store.backup(tmp_path / "backup")


@pytest.mark.parametrize("where", ["folder", "url"])
def test_a_folder_that_has_memories_is_no_target(tmp_path: Path, model: MPlus, where: str) -> None:
    store, other = stored(tmp_path / "s", model, "alice"), stored(tmp_path / "other", model, "alice")
    with other.open("alice", model) as memory:
        model.write(memory, "Something that is only here.", source="other")
    target = tmp_path / "other" if where == "folder" else "memory://backups/other"
    try:
        if where == "url":
            copy(Folder(other.path("alice")), folder_of(f"{target}/alice"), key=None, new_key=None)
        with pytest.raises(ValueError, match=r"memory 'alice', of a store.*empty folder"):
            store.backup(target)
        with pytest.raises(ValueError, match="of a store"):
            store.backup(store.root)
        assert sources(other, "alice", model) == ["alice", "other"]
    finally:
        fsspec.filesystem("memory").store.clear()


def test_a_plain_backup_is_restored_encrypted_into_a_store_with_a_vault(tmp_path: Path, model: MPlus) -> None:
    stored(tmp_path / "s", model, "alice").backup(tmp_path / "backup")
    store = MemoryStore(tmp_path / "new", vault=KeyVault(tmp_path / "keys"))
    store.restore(tmp_path / "backup", "alice")
    assert store.list()[0].encrypted
    assert sources(store, "alice", model) == ["alice"]
    assert not any(b"quite short" in path.read_bytes() for path in store.path("alice").iterdir() if path.is_file())


def test_a_copy_heeds_the_limit_of_one_memory(tmp_path: Path, model: MPlus) -> None:
    stored(tmp_path / "s", model, "alice")
    with pytest.raises(MemoryLimitError, match="max_memory_bytes"):
        MemoryStore(tmp_path / "s", max_memory_bytes=10).copy("alice", "bob")
