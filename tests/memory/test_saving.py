import json
import os
import random
import shutil
import threading
from pathlib import Path

import pytest
import torch

import mplus
from mplus.errors import CorruptMemoryError, MemoryLockedError, MemoryMismatchError, MemoryNotFoundError
from mplus.memory import state_files
from mplus.memory.long_term import LongTermMemory
from mplus.memory.saving import save
from mplus.memory.state import Track
from mplus.memory.tokens import Provenance, Tokens
from mplus.model import MPlus
from mplus.storage.files import verify
from mplus.storage.names import MANIFEST
from mplus.storage.place import Folder
from mplus.testing import tiny_model
from tests.comparisons import assert_same
from tests.conftest import TINY
from tests.memory.saves import logits, written

QUESTION = "Which box is blue?"


@pytest.mark.parametrize(
    "changes",
    [{}, {"layout": "token"}, {"long_term_dtype": "int8"}, {"keep_states": True}, {"long_term_device": "disk"}],
)
def test_a_saved_memory_loads_as_it_was(tmp_path: Path, text: str, changes: dict) -> None:
    model = tiny_model(memory=mplus.MemoryConfig(**(TINY.model_dump() | changes)))
    memory = written(model, text)
    memory.save(tmp_path / "m")
    loaded = mplus.Memory.load(tmp_path / "m", model)
    assert loaded.config == memory.config and loaded.seed == 4
    assert loaded.fingerprint == memory.fingerprint
    assert torch.equal(logits(model, loaded), logits(model, memory))
    assert loaded.sources() == memory.sources()
    assert loaded.stats() == memory.stats()
    verify(Folder(tmp_path / "m"))
    for one in (memory, loaded):
        model.write(one, text[:333], source="later")
    if memory.config.layout == "chunk":
        assert_same(loaded, memory)
    assert torch.equal(logits(model, loaded), logits(model, memory))
    assert loaded.fingerprint == memory.fingerprint


def test_an_incremental_save_writes_only_what_is_new(tmp_path: Path, model: MPlus, text: str) -> None:
    memory = written(model, text * 3)
    memory.save(tmp_path)
    before = {p.name: p.stat().st_ino for p in tmp_path.glob("tokens-*")}
    model.write(memory, "One more turn of the conversation.", source="b")
    memory.save(tmp_path)
    after = {p.name: p.stat().st_ino for p in tmp_path.glob("tokens-*")}
    assert before
    # The text fits into short-term memory, which one old chunk leaves: all others stay as they were.
    assert len(before.items() - after.items()) <= 1
    assert len(list(tmp_path.glob("state-*"))) == 2  # provenance, context
    assert mplus.Memory.load(tmp_path, model).fingerprint == memory.fingerprint


def test_forgotten_text_leaves_the_disk_with_the_next_save(tmp_path: Path, model: MPlus, text: str) -> None:
    memory = written(model, text)
    model.write(memory, text.upper(), source="secret")
    memory.save(tmp_path)
    before = {p.name for p in tmp_path.glob("*.safetensors")}
    memory.forget("secret")
    memory.save(tmp_path)
    after = {p.name for p in tmp_path.glob("*.safetensors")}
    assert before - after
    assert "secret" not in (tmp_path / MANIFEST).read_text()
    assert [s.name for s in mplus.Memory.load(tmp_path, model).sources()] == ["a", "tail"]


def test_files_are_private(tmp_path: Path, model: MPlus, text: str) -> None:
    written(model, text).save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_mode & 0o077 == 0
    for path in (tmp_path / "m").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_a_memory_of_another_model_is_refused(tmp_path: Path, model: MPlus, text: str) -> None:
    written(model, text).save(tmp_path)
    with pytest.raises(MemoryMismatchError, match="made by a model"):
        mplus.Memory.load(tmp_path, tiny_model(seed=9, memory=TINY))


def test_a_folder_without_a_memory_is_named(tmp_path: Path, model: MPlus) -> None:
    with pytest.raises(MemoryNotFoundError, match=str(tmp_path)):
        mplus.Memory.load(tmp_path, model)


def test_a_newer_format_is_refused(tmp_path: Path, model: MPlus, text: str) -> None:
    written(model, text).save(tmp_path)
    sealed = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(sealed.replace('"format":2', '"format":99', 1))
    with pytest.raises(CorruptMemoryError, match="99"):
        mplus.Memory.load(tmp_path, model)


def test_altered_and_truncated_files_are_refused_or_harmless(tmp_path: Path, model: MPlus, text: str) -> None:
    memory = written(model, text)
    memory.save(tmp_path)
    expected = logits(model, memory)
    rng = random.Random(0)
    files = sorted(path for path in tmp_path.iterdir() if path.name != ".lock")
    refused = 0
    for number in range(60):
        path = files[number % len(files)]
        whole = path.read_bytes()
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
        try:
            loaded = mplus.Memory.load(tmp_path, model)
            assert torch.equal(logits(model, loaded), expected)
        except CorruptMemoryError:
            refused += 1
        path.write_bytes(whole)
    assert refused >= 50
    assert mplus.Memory.load(tmp_path, model).fingerprint == memory.fingerprint


def test_a_save_that_fails_keeps_the_earlier_one(
    tmp_path: Path, model: MPlus, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = written(model, text)
    memory.save(tmp_path)
    saved = memory.fingerprint
    model.write(memory, text, source="more")
    real, calls = os.fsync, []

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        memory.save(tmp_path)
    monkeypatch.undo()
    assert mplus.Memory.load(tmp_path, model).fingerprint == saved
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".writing")]
    memory.save(tmp_path)
    assert mplus.Memory.load(tmp_path, model).fingerprint == memory.fingerprint


def rows_of(track: Track, pool: Tokens | LongTermMemory) -> tuple[torch.Tensor, ...]:
    if isinstance(pool, LongTermMemory):
        content = pool.content(torch.arange(len(pool)), track.dtype, track.devices)
    else:
        content = pool.content
    return (*content.keys, *content.values)


SAVED = Path(__file__).parent / "saved"


@pytest.mark.parametrize("name", ["chunk", "token"])
def test_memories_that_an_earlier_version_saved_load(tmp_path: Path, name: str) -> None:
    """``saved`` was written before the places were one; what such a save says must never change its meaning."""
    known = json.loads((SAVED / f"{name}.json").read_text())
    model = tiny_model(memory=mplus.MemoryConfig(**known["config"]), num_hidden_layers=2)
    folder = tmp_path / "m"
    shutil.copytree(SAVED / name, folder)
    verify(Folder(folder))
    # What the saved memory was made of.
    again = model.new_memory(seed=4)
    told = " ".join(f"Sentence {i} says that box {i * 7 % 13} is {'red' if i % 3 else 'blue'}." for i in range(3))
    model.write(again, told, source="a", metadata={"page": 3}, keep_text=True)
    model.write(again, told[:40].upper(), source="b")
    model.write(again, "Hi!", source="tail")
    for _ in range(2):
        memory = mplus.Memory.load(folder, model)
        assert memory.fingerprint == known["fingerprint"]
        assert [(s.name, dict(s.metadata)) for s in memory.sources()] == [("a", {"page": 3}), ("b", {}), ("tail", {})]
        assert [s.label for s in memory.snapshots] == ["before b"]
        for track, pattern in zip(memory.state.tracks, again.state.tracks, strict=True):
            for pool in ("short_term", "pending", "long_term"):
                held, expected = getattr(track, pool), getattr(pattern, pool)
                assert held.provenance.chunks.tolist() == expected.provenance.chunks.tolist()
                assert held.provenance.ages.tolist() == expected.provenance.ages.tolist()
                for ours, theirs in zip(rows_of(track, held), rows_of(pattern, expected), strict=True):
                    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        before = {path.name for path in folder.glob("tokens-*")}
        memory.save(folder)
        assert {path.name for path in folder.glob("tokens-*")} == before  # nothing of it is written again
    memory.rollback(memory.snapshots[0].id)
    assert [s.name for s in memory.sources()] == ["a"]


@pytest.mark.parametrize("changes", [{}, {"layout": "token", "long_term_dtype": "float32"}])
def test_no_byte_of_a_forgotten_source_stays_on_disk(tmp_path: Path, text: str, changes: dict) -> None:
    """Neither its tokens, in any pool, nor its name, its text or its metadata."""
    model = tiny_model(memory=mplus.MemoryConfig(**(TINY.model_dump() | changes)))
    memory = model.new_memory()
    secret = "The vault is behind the third painting. " * 9
    model.write(memory, text, source="a")
    model.write(memory, secret, source="the-secret", metadata={"who": "countess"}, keep_text=True)
    memory.snapshot("with it")
    model.write(memory, text[:300], source="b")
    number = memory.state.source_number("the-secret")
    rows: list[bytes] = []
    for track in memory.state.tracks:
        for pool in (track.short_term, track.pending, track.long_term):
            index = (pool.provenance.sources == number).nonzero().flatten()
            if not len(index):
                continue
            if isinstance(pool, Tokens):
                stored = [layer[index] for layer in (*pool.content.keys, *pool.content.values)]
            else:
                stored = [
                    plane.data[row][None]
                    for segment, row in zip(pool.segment[index].tolist(), pool.row[index].tolist(), strict=True)
                    for plane in (*pool.segments[segment].keys, *pool.segments[segment].values)
                ]
            # Rows of the first layer come from single letters, which other sources have too.
            count = len(track.layers)
            later = [layer for n, layer in enumerate(stored) if track.layers[n % count] > 0]
            rows += [row.contiguous().numpy().tobytes() for layer in later for row in layer]
    told = [b"the-secret", b"third painting", b"countess"]
    ids = model.tokenizer("third painting", add_special_tokens=False)["input_ids"]
    told.append(torch.tensor(ids, dtype=torch.int32).numpy().tobytes())

    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in tmp_path.iterdir())

    memory.save(tmp_path)
    before = on_disk()
    assert len(rows) > 100 and all(row in before for row in rows) and all(what in before for what in told[:3])
    memory.forget("the-secret")
    memory.save(tmp_path)
    after = on_disk()
    assert not [row for row in rows if row in after]
    assert not [what for what in told if what in after]
    assert [s.name for s in mplus.Memory.load(tmp_path, model).sources()] == ["a", "b"]


def test_a_second_writer_waits_or_is_refused(tmp_path: Path, model: MPlus, text: str) -> None:
    memory = written(model, text)
    with Folder(tmp_path).lock(1.0), pytest.raises(MemoryLockedError, match="another save"):
        save(memory, Folder(tmp_path), timeout=0.05)
    threads = [threading.Thread(target=memory.save, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verify(Folder(tmp_path))
    assert mplus.Memory.load(tmp_path, model).fingerprint == memory.fingerprint


def test_a_load_during_saves_finds_a_whole_state(tmp_path: Path, model: MPlus, text: str) -> None:
    states = [written(model, text[:n]) for n in (300, 700)]
    known = {memory.fingerprint for memory in states}
    states[0].save(tmp_path)
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            for memory in states:
                memory.save(tmp_path)

    saver = threading.Thread(target=save)
    saver.start()
    try:
        for _ in range(15):
            assert mplus.Memory.load(tmp_path, model).fingerprint in known
    finally:
        stop.set()
        saver.join()


def test_a_memory_saved_before_words_were_kept_is_recalled_by_states_alone(
    model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = model.new_memory()
    for number in range(12):
        model.write(memory, f"Box {number} holds {number * 7} pens. ", source=f"text-{number}")
    whole = state_files._provenance_columns

    def earlier(name: str, provenance: Provenance) -> dict[str, torch.Tensor]:
        return {key: column for key, column in whole(name, provenance).items() if ".words" not in key}

    monkeypatch.setattr(state_files, "_provenance_columns", earlier)
    memory.save(tmp_path / "saved")
    loaded = mplus.Memory.load(tmp_path / "saved", model)
    (track,) = loaded.state.tracks
    assert len(track.long_term) == len(memory.state.tracks[0].long_term) > 0
    assert not track.long_term.provenance.words.any()
    assert model.generate(loaded, "Which box?", max_new_tokens=2).recalled
