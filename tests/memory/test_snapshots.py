from pathlib import Path

import pytest
import torch

import mplus
from mplus.model import MPlus
from mplus.storage.manifest import parse_manifest
from mplus.storage.names import MANIFEST
from mplus.testing import tiny_model
from tests.comparisons import logits
from tests.conftest import TINY


def test_rollback_is_the_state_of_the_snapshot_and_can_be_undone(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text[:300], source="a")
    earlier, before = memory.snapshot("before b"), logits(model, memory)
    model.write(memory, text[300:], source="b")
    later, after = memory.snapshot(), logits(model, memory)
    memory.rollback(earlier)
    assert [s.name for s in memory.sources()] == ["a"]
    assert torch.equal(logits(model, memory), before)
    memory.rollback(later)
    assert torch.equal(logits(model, memory), after)
    assert [(s.id, s.label) for s in memory.snapshots] == [(earlier, "before b"), (later, "")]


def test_a_snapshot_copies_nothing(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    memory.snapshot()
    fork = memory.fork()
    assert memory.snapshots[0].state is memory.state is fork.state
    model.write(fork, "A little more of it.", source="a")
    ours, theirs = memory.state.tracks[0].long_term, fork.state.tracks[0].long_term
    assert len(ours.segments) > 0
    assert all(a is b for a, b in zip(ours.segments, theirs.segments, strict=True))


def test_diff_names_what_was_added_removed_and_changed(model: MPlus) -> None:
    memory = model.new_memory()
    for name in ("stays", "goes", "grows", "again"):
        model.write(memory, f"What is said about {name} here.", source=name)
    snapshot, fork = memory.snapshot(), memory.fork()
    model.write(memory, "More of it than there was.", source="grows")
    model.write(memory, "Something that is quite new.", source="new")
    memory.forget("goes")
    memory.forget("again")
    model.write(memory, "Something else under that name.", source="again")
    assert memory.diff(fork) == (("new",), ("goes",), ("grows", "again"))
    # Forgetting reaches into snapshots: there, what was forgotten since never was.
    assert memory.diff(snapshot) == (("new", "again"), (), ("grows",))
    assert fork.diff(memory).added == ("goes",)
    assert not memory.diff(memory.fork())


def test_a_rollback_does_not_bring_back_what_was_forgotten(model: MPlus, text: str) -> None:
    memory, never = model.new_memory(), model.new_memory()
    model.write(memory, text[:400], source="a")
    model.write(never, text[:400], source="a")
    model.write(memory, text[400:].upper(), source="secret")
    snapshot = memory.snapshot()
    model.write(memory, text[400:], source="b")
    memory.forget("secret")
    memory.rollback(snapshot)
    assert [s.name for s in memory.sources()] == ["a"]
    torch.testing.assert_close(logits(model, memory), logits(model, never), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("call", ["rollback", "discard", "diff"])
def test_an_unknown_snapshot_is_named_and_nothing_changes(model: MPlus, call: str) -> None:
    memory = model.new_memory()
    model.write(memory, "Something to keep for long.", source="a")
    snapshot, before = memory.snapshot(), memory.state
    with pytest.raises(ValueError, match=f"'nope'.*{snapshot}"):
        getattr(memory, call)("nope")
    assert memory.state is before


def test_discard_and_reset_drop_snapshots(model: MPlus) -> None:
    memory = model.new_memory()
    first, second = memory.snapshot(), memory.snapshot()
    memory.discard(first)
    assert [s.id for s in memory.snapshots] == [second]
    memory.reset()
    assert memory.snapshots == ()


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_history_is_saved_and_a_later_save_writes_only_what_is_new(tmp_path: Path, text: str, layout: str) -> None:
    model = tiny_model(memory=mplus.MemoryConfig(**(TINY.model_dump() | {"layout": layout})))
    memory = model.new_memory(seed=2)
    model.write(memory, text[:500], source="a", metadata={"page": 1}, keep_text=True)
    earlier, before = memory.snapshot("early"), logits(model, memory)
    model.write(memory, text * 2, source="b")
    memory.save(tmp_path)
    files = {p.name: p.stat().st_ino for p in tmp_path.glob("*") if p.stem != "memory"}
    model.write(memory, "One more turn of it.", source="c")
    memory.save(tmp_path)
    again = {p.name: p.stat().st_ino for p in tmp_path.iterdir()}
    # The snapshot's own files stay as they are; only those of the state before are gone.
    (snapshot,) = parse_manifest((tmp_path / MANIFEST).read_bytes(), tmp_path, None).snapshots
    entry = snapshot.state
    used = {entry.shard, *(n for t in entry.tracks for n in (*t.short_term, *t.pending, *t.long_term))}
    assert used and all(files[name] == again[name] for name in used)
    loaded = mplus.Memory.load(tmp_path, model)
    assert [(s.id, s.label, s.created) for s in loaded.snapshots] == [
        (s.id, s.label, s.created) for s in memory.snapshots
    ]
    assert loaded.diff(earlier) == memory.diff(earlier)
    loaded.rollback(earlier)
    assert torch.equal(logits(model, loaded), before)
    loaded.discard(earlier)
    loaded.save(tmp_path)
    assert [s.name for s in mplus.Memory.load(tmp_path, model).sources()] == ["a"]
    assert mplus.Memory.load(tmp_path, model).snapshots == ()


def test_adopt_takes_over_a_fork_with_its_history(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "Something to keep for long.", source="a")
    memory.snapshot()
    fork = memory.fork()
    fork.forget("a")
    memory.adopt(fork)
    assert memory.fingerprint == fork.fingerprint
    assert memory.snapshots[0].state.source_number("a") is None
    with pytest.raises(mplus.MemoryMismatchError, match="fork"):
        memory.adopt(model.new_memory(seed=7))
