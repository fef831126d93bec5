import contextlib
import errno
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from mplus import CorruptMemoryError, Memory, MemoryKey, MemoryNotFoundError, MemoryReadError, MemorySaveError
from mplus.model import MPlus
from mplus.storage.address import folder_of, place_of, zip_of
from mplus.storage.files import copy, verify
from mplus.storage.folder import Folder
from mplus.storage.names import MANIFEST
from mplus.storage.place import Place, not_saved
from mplus.storage.url import Url
from mplus.storage.zip_file import Zip
from tests.memory.saves import written

NAME = f"tokens-{'0' * 32}.safetensors"


@pytest.fixture(params=["folder", "zip", "url", "zip behind a url"])
def where(request: pytest.FixtureRequest, tmp_path: Path):
    """Where each kind of place is."""
    yield {
        "folder": tmp_path / "held",
        "zip": tmp_path / "held.mplus",
        "url": "memory://held",
        "zip behind a url": "memory://held.mplus",
    }[request.param]
    fsspec.filesystem("memory").store.clear()


def made(where: Path | str) -> Place:
    return zip_of(where) if str(where).endswith(".mplus") else folder_of(where)


def test_every_place_holds_files_alike(where: Path | str) -> None:
    place = made(where)
    with place.lock(1.0):
        assert place.sizes().keys() <= {".lock"}
        with pytest.raises(FileNotFoundError), place.open(MANIFEST):
            pass
        with place.put(NAME) as file:
            file.write(b"some ")
            file.write(b"bytes")
        place.sync()
        place.exchange(MANIFEST, b"{}")
    place = place_of(where)
    assert {name: size for name, size in place.sizes().items() if name != ".lock"} == {NAME: 10, MANIFEST: 2}
    with place.open(NAME) as file:
        assert file.read(7) == b"some by"
    with place.on_disk({NAME: 10}) as folder:
        assert (folder / NAME).read_bytes() == b"some bytes"
    if not isinstance(place, Folder):  # there whoever opens the file checks it
        for expected in ({NAME: 11}, {NAME.replace("0", "1"): 3}):
            with pytest.raises(CorruptMemoryError, match="tokens-"), place.on_disk(expected):
                pass
    assert str(place) == str(where)


def test_a_file_that_was_not_written_whole_is_not_there(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    with pytest.raises(RuntimeError), place.lock(1.0), place.put(NAME) as file:
        file.write(b"half")
        raise RuntimeError
    assert place.sizes().keys() == {".lock"}
    with pytest.raises(RuntimeError), zip_of(tmp_path / "held.mplus").lock(1.0):
        raise RuntimeError
    assert place.sizes().keys() == {".lock"}


def test_what_a_killed_writer_left_goes_when_the_next_one_begins(tmp_path: Path) -> None:
    (tmp_path / ".writing-0123456789abcdef").write_text("half")
    with Folder(tmp_path).lock(1.0):
        assert Folder(tmp_path).sizes().keys() == {".lock"}


@pytest.mark.parametrize("key", [None, MemoryKey(b"k" * 32)])
@pytest.mark.parametrize("new_key", [None, MemoryKey(b"n" * 32)])
def test_a_copy_opens_with_its_own_key_wherever_it_is(
    where: Path | str, tmp_path: Path, model: MPlus, text: str, key: MemoryKey | None, new_key: MemoryKey | None
) -> None:
    memory = written(model, text[:200])
    memory.snapshot("then")
    memory.export(where, key=key) if str(where).endswith(".mplus") else memory.save(where, key=key)
    copy(place_of(where), Folder(tmp_path / "copy"), key=key, new_key=new_key)
    verify(Folder(tmp_path / "copy"), key=new_key)
    copied = Memory.load(tmp_path / "copy", model, key=new_key)
    assert copied.fingerprint == memory.fingerprint
    assert copied.sources() == memory.sources()
    assert [s.label for s in copied.snapshots] == ["then"]
    suffixes = {path.suffix for path in (tmp_path / "copy").glob("tokens-*")}
    assert suffixes == {".safetensors" if new_key is None else ".sealed"}


def test_members_of_a_zip_are_names_and_never_paths(tmp_path: Path, model: MPlus, text: str) -> None:
    written(model, text[:200]).export(tmp_path / "good.mplus")
    with zipfile.ZipFile(tmp_path / "good.mplus") as whole:
        held = {name: whole.read(name) for name in whole.namelist()}
    ways_out = (".writing-x/../../../evil", ".writing-0123456789abcdef", f"{NAME}/../../evil", "..\\evil", f"/{NAME}")
    odd = ("C:evil", f"C:\\{NAME}", f"\\\\host\\{NAME}", f"{NAME}/", f"./{NAME}", NAME.upper(), f"{NAME}\n", f" {NAME}")
    alike = (NAME.replace("0", "\u0660", 1), NAME.replace("-", "\u2010", 1), f"{NAME}:stream", "Memory.json", ".lock")
    for name in (*ways_out, *odd, *alike):
        with zipfile.ZipFile(tmp_path / "bad.mplus", "w") as made:
            for member, content in {**held, name: b"x"}.items():
                made.writestr(member, content)
        with pytest.raises(CorruptMemoryError, match=r"bad\.mplus"):
            Memory.load(tmp_path / "bad.mplus", model)
    assert not list(tmp_path.parent.glob("**/evil"))


def test_a_link_in_a_zip_is_a_file_like_any_other(tmp_path: Path, model: MPlus, text: str) -> None:
    (tmp_path / "secret").write_text("of somebody else")
    written(model, text[:200]).export(tmp_path / "good.mplus")
    with zipfile.ZipFile(tmp_path / "good.mplus") as whole, zipfile.ZipFile(tmp_path / "bad.mplus", "w") as made:
        for name in whole.namelist():
            entry = zipfile.ZipInfo(name)
            is_link = name.startswith("state-")
            entry.external_attr = (0o120777 if is_link else 0o600) << 16
            made.writestr(entry, str(tmp_path / "secret") if is_link else whole.read(name))
    with pytest.raises(CorruptMemoryError, match="state-"):
        Memory.load(tmp_path / "bad.mplus", model)


# --- urls ---------------------------------------------------------------------------------------------


class TransportError(Exception):
    """As the library of some object store raises it: no ``OSError``."""


def broken(monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise TransportError("connection reset by peer")

    for method in methods:
        monkeypatch.setattr(type(fsspec.filesystem("memory")), method, fail)


def test_errors_of_a_transport_come_as_errors_of_a_memory(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://bucket/alice"
    try:
        memory = written(model, text[:200])
        memory.save(url)
        for methods in (["makedirs"], ["ls"], ["_open", "open"], ["pipe_file"]):
            changed = memory.fork()
            model.write(changed, "Something more to save.", source="b")
            with monkeypatch.context() as patch:
                broken(patch, *methods)
                with pytest.raises(MemorySaveError, match="alice.*connection reset"):
                    changed.save(url)
            assert Memory.load(url, model).fingerprint == memory.fingerprint
        for methods in (["info"], ["ls"], ["_open", "open"], ["get_file"]):
            with monkeypatch.context() as patch:
                broken(patch, *methods)
                with pytest.raises(MemoryReadError, match="connection reset"):
                    Memory.load(url, model)
        with pytest.raises(MemoryNotFoundError, match="nobody"):
            Memory.load("memory://bucket/nobody", model)
    finally:
        fsspec.filesystem("memory").store.clear()


class RefusedError(Exception):
    """As the library of a web server raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (ConnectionRefusedError("nobody answers"), MemoryReadError),
        (RefusedError(500), MemoryReadError),
        (RefusedError(404), MemoryNotFoundError),
        (FileNotFoundError("no such object"), MemoryNotFoundError),
        (None, MemoryNotFoundError),
    ],
)
def test_a_server_that_does_not_answer_is_no_missing_memory(
    model: MPlus, monkeypatch: pytest.MonkeyPatch, cause: Exception | None, expected: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("alice") from cause

    for method in ("_open", "open", "info"):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), method, fail)
    with pytest.raises(expected, match="alice"):
        Memory.load("memory://bucket/alice", model)
    for method in ("ls", "cat_file", "find"):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), method, fail)
    place = Url("memory://bucket/alice", fsspec.filesystem("memory"), "/bucket/alice")
    for ask in (place.sizes, place.folders, lambda: place.content(MANIFEST)):
        with pytest.raises(OSError, match="status|nobody") if expected is MemoryReadError else contextlib.nullcontext():
            assert not ask()


@pytest.mark.parametrize("error", [TransportError, ValueError, TimeoutError])
@pytest.mark.parametrize("after", [0, 3])
def test_a_portable_file_that_cannot_be_fetched_is_not_called_damaged(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception], after: int
) -> None:
    url, reads = "memory://bucket/alice.mplus", [0]
    real = MemoryFile.read

    def read(file: Any, size: int = -1) -> bytes:
        reads[0] += 1
        if reads[0] > after:
            raise error("connection reset by peer")
        return real(file, size)

    try:
        written(model, text[:200]).export(url)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFile, "read", read, raising=False)
            with pytest.raises(MemoryReadError, match="alice.*connection reset"):
                Memory.load(url, model)
        content = fsspec.filesystem("memory").cat_file(url)
        fsspec.filesystem("memory").pipe_file(url, content[: len(content) // 2])
        with pytest.raises(CorruptMemoryError, match="not a portable memory"):
            Memory.load(url, model)
    finally:
        fsspec.filesystem("memory").store.clear()


def test_a_load_beside_a_writer_behind_a_url_finds_a_whole_state(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the writer removed after the reader had its name: the reader begins again."""
    url = "memory://bucket/alice"
    try:
        first, second = written(model, text[:200]), written(model, text[200:400])
        first.save(url)
        fetch = Url.fetch

        def interrupted(place: Url, names: Iterable[str], folder: Path) -> None:
            monkeypatch.setattr(Url, "fetch", fetch)
            second.save(url)
            fetch(place, names, folder)

        monkeypatch.setattr(Url, "fetch", interrupted)
        assert Memory.load(url, model).fingerprint == second.fingerprint
    finally:
        fsspec.filesystem("memory").store.clear()


# --- what is forced to disk ---------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux which file is meant")
def test_the_names_of_a_first_save_and_of_an_export_are_forced_to_disk(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[Path] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        forced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    model.new_memory().save(tmp_path / "users" / "alice")
    assert {tmp_path, tmp_path / "users", tmp_path / "users" / "alice"} <= set(forced)
    forced.clear()
    model.new_memory().export(tmp_path / "alice.mplus")
    assert tmp_path in forced
    assert (tmp_path / "users" / "alice").stat().st_mode & 0o077 == 0


def test_an_exchange_that_failed_halfway_removes_nothing_that_may_be_needed(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network may fail once the object store has the new manifest: its files must stay."""
    url = "memory://bucket/alice"
    try:
        memory = written(model, text[:200])
        memory.save(url)
        model.write(memory, "Something more to save.", source="b")
        exchange = Url.exchange

        def lost(place: Url, name: str, content: bytes) -> None:
            exchange(place, name, content)
            raise OSError("the answer was lost")

        with monkeypatch.context() as patch, contextlib.suppress(MemorySaveError):
            patch.setattr(Url, "exchange", lost)
            memory.save(url)
        assert Memory.load(url, model).fingerprint == memory.fingerprint
    finally:
        fsspec.filesystem("memory").store.clear()


def test_a_path_and_its_url_are_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "a.mplus").write_bytes(b"")
    assert isinstance(place_of(tmp_path / "a.mplus"), Zip)
    assert isinstance(place_of((tmp_path / "a.mplus").as_uri()), Zip)
    assert isinstance(place_of(tmp_path.as_uri()), Folder)
    assert isinstance(place_of(str(tmp_path / "nothing yet")), Folder)


def test_what_was_not_saved_says_what_helps(tmp_path: Path, model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "A text.")
    with pytest.raises(MemorySaveError, match=r"No such file or directory.*Make its folder first"):
        memory.export(tmp_path / "missing" / "me.mplus")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(MemorySaveError, match=r"A file stands where a folder should be"):
        memory.export(tmp_path / "file" / "me.mplus")
    full = not_saved(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert "Free space there, or save to another folder" in str(full)
