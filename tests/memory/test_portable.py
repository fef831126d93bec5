import zipfile
from pathlib import Path

import fsspec
import pytest
import torch

from mplus import CorruptMemoryError, Memory, MemoryKey, MemoryNotFoundError, MemorySaveError
from mplus.model import MPlus
from mplus.storage.names import MANIFEST
from tests.memory.saves import logits, written


@pytest.mark.parametrize("key", [None, MemoryKey(b"k" * 32)])
def test_a_portable_file_opens_as_what_it_was_made_of(tmp_path: Path, model: MPlus, text: str, key) -> None:
    memory = written(model, text)
    file = tmp_path / "alice.mplus"
    memory.export(file, key=key)
    loaded = Memory.load(file, model, key=key)
    assert torch.equal(logits(model, loaded), logits(model, memory))
    assert loaded.sources() == memory.sources()
    assert file.stat().st_mode & 0o077 == 0
    # Any unpacking tool makes a folder of it that opens.
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "unpacked")
    assert Memory.load(tmp_path / "unpacked", model, key=key).fingerprint == memory.fingerprint
    loaded.save(tmp_path / "saved", key=key)
    assert Memory.load(tmp_path / "saved", model, key=key).fingerprint == memory.fingerprint


def test_a_file_that_is_not_a_portable_memory_is_refused(tmp_path: Path, model: MPlus, text: str) -> None:
    good = tmp_path / "good.mplus"
    written(model, text).export(good)
    data = good.read_bytes()

    def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
        with zipfile.ZipFile(tmp_path / "made", "w", compression) as made:
            for name, content in entries.items():
                made.writestr(name, content)
        return (tmp_path / "made").read_bytes()

    with zipfile.ZipFile(good) as whole:
        held = {name: whole.read(name) for name in whole.namelist()}
    bad = {
        "empty": b"",
        "text": b"hello",
        "cut": data[: len(data) // 2],
        "flipped": data[:3000] + bytes([data[3000] ^ 1]) + data[3001:],
        "climbing": archive({**held, "../evil": b"x"}),
        "absolute": archive({**held, "/tmp/evil": b"x"}),
        "stranger": archive({**held, "run.py": b"x"}),
        "compressed": archive(held, zipfile.ZIP_DEFLATED),
        "without manifest": archive({n: c for n, c in held.items() if n != MANIFEST}),
        "without a shard": archive(dict(list(held.items())[1:])),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptMemoryError):
            Memory.load(tmp_path / name, model)
    assert not (tmp_path.parent / "evil").exists()


def test_exporting_over_a_folder_or_into_nowhere_is_an_error(tmp_path: Path, model: MPlus) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        model.new_memory().export(tmp_path)
    with pytest.raises(MemorySaveError, match="nowhere"):
        model.new_memory().export(tmp_path / "nowhere" / "a.mplus")


def test_memories_live_behind_urls(tmp_path: Path, model: MPlus, text: str) -> None:
    fs = fsspec.filesystem("memory")
    url = "memory://bucket/alice"
    try:
        memory = written(model, text * 2)
        memory.save(url)
        before = {name: fs.created(name) for name in fs.ls("/bucket/alice", detail=False)}
        loaded = Memory.load(url, model)
        assert torch.equal(logits(model, loaded), logits(model, memory))
        model.write(loaded, "One more turn of the conversation.", source="b")
        loaded.save(url)
        after = {name: fs.created(name) for name in fs.ls("/bucket/alice", detail=False)}
        kept = [name for name in before if after.get(name) == before[name]]
        assert len([name for name in kept if "tokens-" in name]) >= 3
        assert Memory.load(url, model).fingerprint == loaded.fingerprint
        name = next(n for n in after if "tokens-" in n)
        content = fs.cat_file(name)
        for damaged in (content[:-1], content[:-1] + b"\xff" if content[-1] != 255 else content[:-1] + b"\0"):
            fs.pipe_file(name, damaged)
            with pytest.raises(CorruptMemoryError):
                Memory.load(url, model)
        fs.rm_file(f"/bucket/alice/{MANIFEST}")
        with pytest.raises(MemoryNotFoundError, match="bucket"):
            Memory.load(url, model)
        memory.export("memory://bucket/alice.mplus")
        assert Memory.load("memory://bucket/alice.mplus", model).fingerprint == memory.fingerprint
        memory.save("memory://bucket/sealed", key=MemoryKey(b"k" * 32))
        assert Memory.load("memory://bucket/sealed", model, key=MemoryKey(b"k" * 32)).fingerprint == memory.fingerprint
    finally:
        fs.store.clear()


def test_file_urls_are_local_folders(tmp_path: Path, model: MPlus, text: str) -> None:
    memory = written(model, text)
    memory.save((tmp_path / "m").as_uri())
    assert (tmp_path / "m" / MANIFEST).exists()
    assert Memory.load((tmp_path / "m").as_uri(), model).fingerprint == memory.fingerprint


def test_a_url_that_nothing_reads_is_named(model: MPlus) -> None:
    with pytest.raises(ValueError, match="gopher"):
        model.new_memory().save("gopher://somewhere/alice")
