import copy
import pickle
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from mplus import KeyVault, MemoryStore
from mplus.config import MemoryConfig
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from tests.comparisons import assert_same, logits
from tests.conftest import TINY

QUESTION = "Which box is blue?"


def test_a_fork_never_changes_its_origin(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text[:400], source="a")
    before, fingerprint = logits(model, memory), memory.fingerprint
    fork = memory.fork()
    assert fork.fingerprint == fingerprint
    assert fork.state is memory.state
    model.write(fork, text[400:], source="b")
    fork.forget("a")
    assert memory.fingerprint == fingerprint
    assert torch.equal(logits(model, memory), before)
    model.write(memory, "and something else entirely", source="c")
    assert "c" not in [s.name for s in fork.sources()]


@pytest.mark.parametrize("size", [40, 400, 1100])
def test_forgetting_a_source_equals_never_having_had_it(model: MPlus, text: str, size: int) -> None:
    """In the chunk layout, bit for bit in what a read sees."""
    parts = {"a": text[:500], "x": text[:size].upper(), "b": text[300:620], "c": text[900:960]}
    never, forgot = model.new_memory(), model.new_memory()
    for name, part in parts.items():
        model.write(forgot, part, source=name)
        if name != "x":
            model.write(never, part, source=name)
    removed = forgot.forget("x")
    assert removed > 0
    assert [s.name for s in forgot.sources()] == ["a", "b", "c"]
    assert len(forgot.state.tracks[0].short_term) == len(never.state.tracks[0].short_term)
    for prompt in (QUESTION, "SENTENCE 1 SAYS"):
        torch.testing.assert_close(logits(model, forgot, prompt), logits(model, never, prompt), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["\ud83d", "\x00", 12, uuid.UUID(int=7), "☃" * 3000], ids=lambda name: f"{name!r:.20}")
def test_a_source_of_any_name_is_written_pinned_saved_and_forgotten(model: MPlus, tmp_path: Path, name: Any) -> None:
    memory = model.new_memory()
    model.write(memory, "Ann has a box.", source=name)
    model.write(memory, ["Bob has a cat.", "Cat."], source=[name, None], later=True)
    memory.pin(name)
    memory.unpin(name)
    memory.save(tmp_path / "m")
    again = Memory.load(tmp_path / "m", model)
    assert next(iter(again.sources())).name == str(name)
    assert again.forget(name) > 0 and str(name) not in [source.name for source in again.sources()]


def test_forgotten_text_is_in_no_tensor(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    model.write(memory, text.upper(), source="x")
    track = memory.state.tracks[0]
    number = memory.state.source_number("x")
    store = track.long_term if bool((track.long_term.provenance.sources == number).any()) else track.pending
    row = (store.provenance.sources == number).nonzero()[20]
    secret = store.content(row, torch.float32, track.devices).retrieval_keys[0]
    memory.forget("x")
    track = memory.state.tracks[0]
    for pool in (track.pending, track.long_term):
        for segment in pool.segments:
            assert not bool((segment.retrieval_keys.data == secret).all(dim=1).any())
            assert len(segment) == int((pool.segment == pool.segments.index(segment)).sum())


def test_forgetting_in_the_token_layout_removes_every_token_of_the_source(text: str) -> None:
    model = tiny_model(memory=MemoryConfig(**(TINY.model_dump() | {"layout": "token"})))
    memory = model.new_memory()
    for name in "axb":
        model.write(memory, text, source=name)
    number = memory.state.source_number("x")
    memory.forget("x")
    for track in memory.state.tracks:
        for pool in (track.short_term, track.pending, track.long_term):
            assert number not in pool.provenance.sources.tolist()
    model.write(memory, text, source="later")
    assert model.generate(memory, QUESTION, max_new_tokens=2).completion_tokens == 2


def test_forgetting_what_is_not_there_changes_nothing(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "Something to keep for long.", source="a")
    before = memory.state
    assert memory.forget("nobody") == 0
    assert memory.state is before


def test_a_forgotten_name_can_be_written_again(model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, "The first version of it all.", source="a")
    memory.forget("a")
    model.write(memory, "The second version of it.", source="a")
    (source,) = memory.sources()
    assert source.memory_tokens == 25


def test_forgetting_the_waiting_tail(model: MPlus) -> None:
    memory, empty = model.new_memory(), model.new_memory()
    model.write(memory, "Hi!", source="a")
    assert memory.forget("a") == 3
    assert torch.equal(logits(model, memory), logits(model, empty))


def test_reset_is_a_new_memory(model: MPlus, text: str) -> None:
    memory, fresh = model.new_memory(), model.new_memory()
    model.write(memory, text, source="a")
    memory.reset()
    assert memory.fingerprint == fresh.fingerprint
    model.write(memory, text[:300], source="b")
    model.write(fresh, text[:300], source="b")
    assert_same(memory, fresh)


def test_the_fingerprint_changes_with_every_write_and_no_read(model: MPlus) -> None:
    memory = model.new_memory()
    seen = {memory.fingerprint}
    for part in ("Hi!", "A longer text that is written.", "Ho!"):
        model.write(memory, part, source="a")
        assert memory.fingerprint not in seen
        seen.add(memory.fingerprint)
        model.generate(memory, QUESTION, max_new_tokens=2)
        assert memory.fingerprint in seen


def test_stats_and_repr_say_what_is_there(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    stats = memory.stats()
    track = memory.state.tracks[0]
    assert stats.short_term.tokens == (len(track.short_term),) * 4
    assert stats.long_term.tokens == (len(track.long_term),) * 4
    assert stats.nbytes == memory.nbytes > 0
    assert stats.oldest_age == stats.written_tokens - 1
    assert "1 source;" in repr(memory) and "MiB" in repr(memory)


def test_recall_raises_the_frequency_of_what_was_recalled(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    before = memory.state.tracks[0].long_term.provenance.recall_frequencies
    chosen = prefill(model.weights, [model.read_request(memory, QUESTION)]).reading.recalled[0][0]
    model.generate(memory, QUESTION, max_new_tokens=1)
    after = memory.state.tracks[0].long_term.provenance.recall_frequencies
    raised = (after > before).nonzero().flatten().tolist()
    assert raised == sorted(i for i in chosen.index.tolist() if i < len(before))


def test_capacity_is_kept(text: str) -> None:
    model = tiny_model(memory=MemoryConfig(**(TINY.model_dump() | {"long_term_capacity": 150})))
    memory = model.new_memory()
    for i in range(6):
        model.write(memory, text, source=f"{i}")
        assert len(memory.state.tracks[0].long_term) <= 150
    assert max(memory.state.tracks[0].long_term.provenance.ages) < 600


def test_readers_never_see_half_of_a_write(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="0")
    wrong: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            state = memory.state
            sizes = {len(track) for track in state.tracks}
            if sizes != {state.written_tokens}:
                wrong.append(f"{sizes} != {state.written_tokens}")
            model.generate(memory, QUESTION, max_new_tokens=1)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [
        threading.Thread(target=lambda n=n: [model.write(memory, text[:333], source=f"{n}-{i}") for i in range(4)])
        for n in range(2)
    ]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert wrong == []
    assert len(memory.sources()) == 9


def test_copies_are_independent_and_a_pickle_says_what_to_do_instead(model: MPlus, tmp_path: Path) -> None:
    memory = model.new_memory()
    model.write(memory, "The key is under the pot.", source="note", keep_text=True)
    for made in (copy.copy(memory), copy.deepcopy(memory), copy.deepcopy({"memory": memory})["memory"]):
        assert made.fingerprint == memory.fingerprint
        made.forget("note")
        assert [source.name for source in memory.sources()] == ["note"]
    before = memory.fingerprint
    for living, says in ((memory, "memory.export"), (model, "MPlus.from_pretrained")):
        with pytest.raises(ValueError, match=says):
            pickle.dumps(living)
    assert memory.fingerprint == before and copy.deepcopy([model])[0] is model
    store = MemoryStore(tmp_path / "memories", vault=KeyVault(tmp_path / "keys"))
    assert copy.deepcopy({"store": store})["store"] is store
