"""Names of memories: one check for stores, vaults and integrations."""

import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from mplus import MemoryStore
from mplus.ids import id_text
from mplus.storage.folder import UNFINISHED
from mplus.storage.names import check_name, id_of, name_for
from mplus.testing import tiny_model
from tests.conftest import TINY


@pytest.mark.parametrize("name", ["Jürgen", "名前", "anna@example.org", "thread+1", "a" * 128, "b3d1f6a0-1c2d"])
def test_names_that_people_have_are_good(name: str) -> None:
    assert check_name(name) == MemoryStore.check_name(name, "memory_key=") == name


@pytest.mark.parametrize(
    "name", ["", "..", "a..b", "a/b", "a.", "con", "COM1.txt", "com¹", "LPT².x", "e\u0301", "☃", ".hidden", "a" * 129]
)
def test_other_names_are_refused_and_shown(name: str) -> None:
    with pytest.raises(ValueError, match="Memory name .*expected 1 to 128 letters"):
        check_name(name)
    with pytest.raises(ValueError, match="memory_key=.*expected 1 to 128 letters"):
        MemoryStore.check_name(name, "memory_key=")


@pytest.mark.parametrize("name", [5, None, b"anna", ["anna"]])
def test_what_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="expected a string"):
        check_name(name)


IDS = ["telegram:12345", "auth0|x", "../up", "a/b", "con", "com¹", "C:\\x", ".", "..", "a.", "id+x", "id++x", "id++h", "h:", "☃", "e\u0301", "\x00", "\ud800", "a b"]  # fmt: skip


@pytest.mark.parametrize("id", [*IDS, "anna", "b3d1f6a0-1c2d", "12345", "thread+1"])
def test_an_id_that_we_did_not_choose_is_escaped_and_listed_as_it_was(id: str) -> None:
    name = name_for(id)
    assert check_name(name) == name and id_of(name) == id and name_for(id) == name
    assert (name == id) == (id not in IDS)


def test_ids_never_meet() -> None:
    assert len({name_for(id) for id in IDS}) == len(IDS)


def test_a_very_long_id_is_hashed() -> None:
    names = {name_for("a:" * 500), name_for("a:" * 501)}
    assert len(names) == 2 and all(check_name(name) == id_of(name) == name for name in names)


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        name_for(" ")


def test_a_very_long_id_is_listed_in_full_and_goes_with_its_memory(tmp_path: Path) -> None:
    store, model = MemoryStore(tmp_path), tiny_model(memory=TINY)
    id = "https://example.org/users?name=" + "anna" * 60
    name = MemoryStore.name_for(id)
    with store.open(name, model, id=id):
        pass
    assert [(one.name, one.id) for one in MemoryStore(tmp_path).list()] == [(name, id)]
    with store.open("anna", model, id="anna"):
        pass
    assert [one.id for one in store.list()] == ["anna", id]
    (tmp_path / f".{name}.id").write_text("somebody else")
    assert [one.id for one in store.list()] == ["anna", name], "what was altered is not believed"
    store.delete(name)
    assert not list(tmp_path.glob("*.id")) and not list(tmp_path.glob(".*.id*"))


def test_ids_may_be_numbers_and_uuids() -> None:
    id = uuid.uuid4()
    assert [name_for(one) for one in (12, id, -1)] == ["12", str(id), name_for("-1")]
    for wrong in (b"ab", 1.5, True, None, ("a",)):
        with pytest.raises(ValueError, match="expected text, a number or a UUID"):
            id_text(wrong, "id")


def test_a_backup_keeps_ids_that_names_do_not_tell(tmp_path: Path) -> None:
    store, model = MemoryStore(tmp_path / "a"), tiny_model(memory=TINY)
    id = "telegram:" + "12345" * 60
    with store.open(MemoryStore.name_for(id), model, id=id):
        pass
    store.backup(tmp_path / "backup")
    restored = MemoryStore(tmp_path / "b")
    restored.restore(tmp_path / "backup", MemoryStore.name_for(id))
    assert [one.id for one in restored.list()] == [id]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which file is meant")
def test_the_note_of_an_id_is_whole_after_a_power_cut_and_made_anew_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, model, id = MemoryStore(tmp_path), tiny_model(memory=TINY), "u" * 500
    name, forced = MemoryStore.name_for(id), list[str]()
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (forced.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )
    with store.open(name, model, id=id):
        pass
    assert any(Path(path).parent == tmp_path and Path(path).name.startswith(UNFINISHED) for path in forced)
    (tmp_path / f".{name}.id").write_bytes(b"")
    assert [one.id for one in store.list()] == [name]
    with store.open(name, model, id=id):
        pass
    assert [one.id for one in store.list()] == [id]


def test_what_a_killed_note_left_is_swept(tmp_path: Path) -> None:
    left, fresh = tmp_path / f"{UNFINISHED}0123", tmp_path / f"{UNFINISHED}4567"
    left.write_bytes(b"x"), fresh.write_bytes(b"x")
    os.utime(left, (0, 0))
    MemoryStore(tmp_path)
    assert not left.exists() and fresh.exists()
