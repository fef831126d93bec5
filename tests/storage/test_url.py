"""Writers behind urls: one at a time by a lease, and a comparison at the exchange for those that heed none."""

import json
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mplus import Memory, MemoryConflictError, MemoryLockedError, MemoryReadError, MemorySaveError, MemoryStore
from mplus.memory.saving import save
from mplus.model import MPlus
from mplus.storage import url as url_module
from mplus.storage.address import folder_of
from mplus.storage.lease import Lease
from mplus.storage.url import LEASE, Url
from tests.memory.saves import written

URL = "memory://bucket/alice"


@pytest.fixture(autouse=True)
def _clear() -> Generator[None]:
    yield
    fsspec.filesystem("memory").store.clear()


def lease(until: float) -> bytes:
    return json.dumps({"holder": "somebody", "until": until}).encode()


def interrupted(monkeypatch: pytest.MonkeyPatch, other: Memory, where: str = URL) -> None:
    """Another writer, which heeds no lease, saves just before the next exchange of a manifest."""
    real = Url.exchange_if

    def exchange_if(place: Url, name: str, content: bytes, expected: bytes | None) -> None:
        monkeypatch.setattr(Url, "exchange_if", real)
        held = fsspec.filesystem("memory").store.pop(f"/bucket/alice/{LEASE}")
        other.save(where)
        fsspec.filesystem("memory").store[f"/bucket/alice/{LEASE}"] = held
        real(place, name, content, expected)

    monkeypatch.setattr(Url, "exchange_if", exchange_if)


@pytest.mark.parametrize("saved_before", [False, True])
def test_of_two_writers_one_is_refused_and_the_memory_loads(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch, saved_before: bool
) -> None:
    first, second = written(model, text[:200]), written(model, text[200:400])
    if saved_before:
        written(model, text[400:600]).save(URL)
    interrupted(monkeypatch, second)
    with pytest.raises(MemoryConflictError, match="alice.*another writer"):
        first.save(URL)
    assert Memory.load(URL, model).fingerprint == second.fingerprint
    first.save(URL)  # nothing is in its way any more
    assert Memory.load(URL, model).fingerprint == first.fingerprint


def test_a_second_writer_waits_for_the_lease_or_is_refused(model: MPlus) -> None:
    memory, files = model.new_memory(), fsspec.filesystem("memory")
    files.pipe_file(f"/bucket/alice/{LEASE}", lease(time.time() + 60))
    with pytest.raises(MemoryLockedError, match="alice.*still running"):
        save(memory, folder_of(URL), timeout=0.05)
    files.pipe_file(f"/bucket/alice/{LEASE}", lease(time.time() + 0.1))
    memory.save(URL)
    assert not files.exists(f"/bucket/alice/{LEASE}")


NOT_FINITE = [b'{"holder": "somebody", "until": %s}' % number for number in (b"NaN", b"Infinity", b"1" + b"0" * 400)]


@pytest.mark.parametrize("left", [lease(0.0), b"not a lease", b"{}", b"[" * 4000, *NOT_FINITE])
def test_the_lease_of_a_dead_writer_ends(model: MPlus, left: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"/bucket/alice/{LEASE}", left)
    save(model.new_memory(), folder_of(URL), timeout=0.5)
    Memory.load(URL, model)


def test_the_lease_of_a_dead_writer_whose_clock_was_years_ahead_ends(model: MPlus) -> None:
    place, files = folder_of(URL), fsspec.filesystem("memory")
    assert isinstance(place, Url)
    place.lease_seconds = 0.5
    files.pipe_file(f"/bucket/alice/{LEASE}", lease(time.time() + 10 * 366 * 86_400))
    with pytest.raises(MemoryLockedError, match="if its process died, in 0 s"):
        save(model.new_memory(), place, timeout=0.1)
    save(model.new_memory(), place, timeout=2.0)  # a second try goes on waiting where the first left off
    assert Memory.load(URL, model) is not None


def test_a_lease_is_renewed_though_the_clock_is_set_back_by_years(monkeypatch: pytest.MonkeyPatch) -> None:
    place, files = folder_of(URL), fsspec.filesystem("memory")
    assert isinstance(place, Url)
    place.lease_seconds = 0.0  # a third of which is over at once
    real, taken = time.time, list[float]()
    monkeypatch.setattr(time, "time", lambda: real() - (10 * 366 * 86_400 if taken else 0))
    take = Lease.take
    monkeypatch.setattr(Lease, "take", lambda held, timeout: (take(held, timeout), taken.append(real())))
    with place.lock(1):
        before = files.cat_file(f"/bucket/alice/{LEASE}")
        with place.put("tokens-0"):
            pass
        assert files.cat_file(f"/bucket/alice/{LEASE}") != before


def test_a_live_writer_keeps_its_lease_from_one_who_waits_longer_than_it_lasts(model: MPlus) -> None:
    mine, theirs = (Lease(fsspec.filesystem("memory"), f"/bucket/alice/{LEASE}", URL, 0.6) for _ in range(2))
    mine.take(1)
    began = time.monotonic()
    while time.monotonic() < began + 1.0:
        mine.renew()
        with pytest.raises(MemoryLockedError):
            theirs.take(0.05)
    mine.give_back()
    theirs.take(0.5)


def test_a_save_that_cannot_begin_leaves_no_lease(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = MemoryFileSystem.cat_file, iter([True])

    def cat_file(files: Any, path: str, *given: Any, **options: Any) -> bytes:
        if path.endswith(LEASE) and next(answers, False):
            raise Refused("the connection was reset")
        return real(files, path, *given, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(MemorySaveError, match="the connection was reset"):
        save(model.new_memory(), folder_of(URL), timeout=0.5)
    save(model.new_memory(), folder_of(URL), timeout=0.5)
    assert Memory.load(URL, model) is not None


@pytest.mark.parametrize("made", [True, False])
def test_a_lease_whose_answer_was_lost_has_been_taken(
    model: MPlus, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    real, answers = MemoryFileSystem.pipe_file, iter([True])

    def pipe_file(files: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        lost = path.endswith(LEASE) and next(answers, False)
        if made or not lost:
            real(files, path, value, mode, **options)
        if lost:
            raise Refused("no answer")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    if not made:
        with pytest.raises(MemorySaveError, match="no answer"):
            save(model.new_memory(), folder_of(URL), timeout=0.5)
    else:
        save(model.new_memory(), folder_of(URL), timeout=0.5)
        assert Memory.load(URL, model) is not None


def test_a_lease_that_ended_is_not_taken_from_who_has_it_now(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, memory = fsspec.filesystem("memory"), written(model, text[:200])
    memory.save(URL)
    before = files.cat_file("/bucket/alice/memory.json")
    model.write(memory, "Something more to save.", source="b")
    real = Lease.renew

    def slept(held: Lease) -> None:  # the machine, for longer than the lease
        held._renewed = -1e9
        files.pipe_file(f"/bucket/alice/{LEASE}", lease(time.time() + 60))
        real(held)

    monkeypatch.setattr(Lease, "renew", slept)
    with pytest.raises(MemoryLockedError, match="lease ended"):
        memory.save(URL)
    assert json.loads(files.cat_file(f"/bucket/alice/{LEASE}"))["holder"] == "somebody"
    assert files.cat_file("/bucket/alice/memory.json") == before


def test_files_that_another_writer_may_need_are_not_removed(model: MPlus, text: str) -> None:
    files, orphan = fsspec.filesystem("memory"), f"/bucket/alice/tokens-{'0' * 32}.safetensors"
    files.pipe_file(orphan, b"of a save that has not ended")
    memory = written(model, text[:200])
    memory.save(URL)
    assert files.exists(orphan)
    files.store[orphan].created = datetime.now(UTC) - timedelta(days=2)
    model.write(memory, "Something more to save.", source="b")
    memory.save(URL)
    assert not files.exists(orphan)
    assert Memory.load(URL, model).fingerprint == memory.fingerprint


class Refused(Exception):
    """As the library of an object store raises it: no ``OSError``."""


class Store(MemoryFileSystem):
    """Compares at the exchange as S3 does."""

    protocol = ("s3", "s3a")
    store: dict[str, Any] = {}  # noqa: RUF012
    compared: list[dict[str, str]] = []  # noqa: RUF012
    lost_answers = 0

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found = super().info(path, **options)
        return found | ({"ETag": str(hash(self.cat_file(path)))} if found["type"] == "file" else {})

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **conditions: str) -> None:
        if conditions:
            self.compared.append(conditions)
        present = str(hash(self.cat_file(path))) if self.exists(path) else None
        if conditions.get("IfMatch", present) != present or (conditions.get("IfNoneMatch") and present):
            raise Refused("PreconditionFailed")
        super().pipe_file(path, value, mode)
        if conditions and Store.lost_answers:
            Store.lost_answers -= 1
            raise Refused("the answer was lost")


@pytest.fixture
def place() -> Url:
    Store.store.clear()
    Store.compared.clear()
    return Url("s3://bucket/alice", Store(skip_instance_cache=True), "/bucket/alice")


def test_s3_compares_at_the_moment_of_the_exchange(model: MPlus, text: str, place: Url) -> None:
    memory = written(model, text[:200])
    save(memory, place)
    save(memory, place)
    assert [list(conditions) for conditions in Store.compared] == [["IfNoneMatch"], ["IfMatch"]]


def test_an_exchange_that_s3_refuses_is_a_conflict(
    model: MPlus, text: str, place: Url, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = written(model, text[:200])
    save(memory, place)
    real, path = Store.pipe_file, "/bucket/alice/memory.json"

    def pipe_file(files: Store, path_: str, value: bytes, mode: str = "overwrite", **conditions: str) -> None:
        if conditions:  # somebody else comes in between
            MemoryFileSystem.pipe_file(files, path, b"the manifest of somebody else")
        real(files, path_, value, mode, **conditions)

    monkeypatch.setattr(Store, "pipe_file", pipe_file)
    with pytest.raises(MemoryConflictError):
        save(memory, place)
    assert Store().cat_file(path) == b"the manifest of somebody else"


def test_an_exchange_whose_answer_was_lost_has_been_made(model: MPlus, text: str, place: Url) -> None:
    memory = written(model, text[:200])
    Store.lost_answers = 1
    save(memory, place)
    assert Store.lost_answers == 0


def test_a_file_system_that_cannot_be_reached_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Refused("NoCredentialsError")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(MemoryReadError, match=r"memory://bucket/alice.*NoCredentialsError"):
        folder_of(URL)


def test_the_age_of_a_file_is_read_as_file_systems_tell_it() -> None:
    old = datetime.now(UTC) - timedelta(days=2)
    for name, value in (("LastModified", old), ("mtime", old.timestamp()), ("updated", old.isoformat())):
        assert url_module.moment({name: value}) == pytest.approx(old.timestamp())
    assert url_module.moment({}) is None
    assert url_module.moment({"mtime": "yesterday"}) is None


def test_files_that_another_writer_may_need_stay_though_the_clock_is_years_ahead(
    model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, needed = fsspec.filesystem("memory"), f"/bucket/alice/tokens-{'0' * 32}.safetensors"
    files.pipe_file(needed, b"of a save that has not ended")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 10 * 366 * 86_400)
    memory = written(model, text[:200])
    memory.save(URL)
    assert files.exists(needed)


@pytest.mark.parametrize("call", ["ls", "pipe_file", "makedirs", "open"])
def test_a_backup_to_a_url_that_fails_is_a_clear_error(
    tmp_path: Path, model: MPlus, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = MemoryStore(tmp_path)
    with store.open("alice", model):
        pass
    with monkeypatch.context() as patched:

        def fail(*_: Any, **__: Any) -> None:
            raise Refused("no route to host")

        patched.setattr(MemoryFileSystem, call, fail)
        with pytest.raises(MemorySaveError, match="memory://bucket/backup.*no route to host"):
            store.backup("memory://bucket/backup")
    assert store.backup("memory://bucket/again") == ("alice",)
