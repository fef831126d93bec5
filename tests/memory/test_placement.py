import operator
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mplus.config import MemoryConfig
from mplus.memory import placement, state
from mplus.memory.long_term import joined
from mplus.memory.mapped import spilled
from mplus.memory.placement import placed
from mplus.memory.tiers import Segment
from mplus.model import MPlus
from mplus.read.prefill import prefill
from tests.conftest import TINY
from tests.memory.stores import store

QUESTION = "Which box is blue?"


def claimed(frequencies: list[float]):
    """A store of one segment per frequency."""
    made = store([16] * len(frequencies))
    each = torch.tensor(frequencies, dtype=torch.float64).repeat_interleave(16)
    return replace(made, provenance=replace(made.provenance, recall_frequencies=each))


def tiers(stores) -> list[list[str]]:
    return [[segment.tier for segment in store.segments] for store in stores]


def test_the_most_recalled_stay_at_hand_and_the_newest_among_equals() -> None:
    one, other = claimed([5.0, 9.0, 5.0]), claimed([1.0, 7.0])
    size = one.segments[0].nbytes
    config = MemoryConfig(long_term_host_bytes=3 * size)
    assert tiers(placed([one, other], config)) == [["disk", "host", "host"], ["disk", "host"]]
    assert tiers(placed([one, other], config.model_copy(update={"long_term_host_bytes": 0}))) == [
        ["disk"] * 3,
        ["disk"] * 2,
    ]
    for unlimited in (MemoryConfig(), MemoryConfig(long_term_device="cpu")):
        assert placed([one, other], unlimited) == [one, other]
    assert tiers(placed([one], MemoryConfig(long_term_device="disk"))) == [["disk"] * 3]


def test_what_moved_is_the_same_and_stays_where_it_is() -> None:
    whole = claimed([1.0, 2.0])
    (after,) = placed([whole], MemoryConfig(long_term_host_bytes=whole.segments[0].nbytes))
    assert tiers([after]) == [["disk", "host"]]
    assert [s.name for s in after.segments] == [s.name for s in whole.segments]
    index = torch.arange(len(whole))
    for one, other in zip(
        whole.content(index, torch.float32, (torch.device("cpu"),) * 3).keys,
        after.content(index, torch.float32, (torch.device("cpu"),) * 3).keys,
        strict=True,
    ):
        assert torch.equal(one, other)
    again = placed([after], MemoryConfig(long_term_host_bytes=10**9))[0]
    assert all(map(operator.is_, again.segments, after.segments)), "a segment on disk is read from there"
    assert tiers(placed([after], MemoryConfig(long_term_device="cuda"))) == [["disk", "host"]]


def test_a_quarter_of_the_machine_is_the_limit_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = claimed([1.0, 2.0, 3.0])
    monkeypatch.setattr(placement, "host_memory_bytes", lambda: 4.0 * whole.segments[0].nbytes)
    assert tiers(placed([whole], MemoryConfig())) == [["disk", "disk", "host"]]
    assert tiers(placed([whole], MemoryConfig(long_term_device="cpu"))) == [["host"] * 3]


@pytest.mark.parametrize("layout", ["chunk", "token"])
def test_tiers_change_no_logit(model: MPlus, text: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "SEGMENT_TOKENS", 64)
    base = TINY if layout == "chunk" else TINY.model_copy(update={"layout": "token", "recall": "attention"})
    found, total = [], 0
    for changes in ({"long_term_device": "cpu"}, {"long_term_device": "disk"}, {"long_term_host_bytes": 0}):
        if "long_term_host_bytes" in changes:
            changes = {"long_term_host_bytes": total // 2}
        memory = model.new_memory(config=base.model_copy(update=changes))
        for part in range(3):
            model.write(memory, text[: len(text) // 2], source=f"part {part}")
        used = {s.tier for track in memory.state.tracks for s in track.long_term.segments}
        total = sum(track.long_term.nbytes for track in memory.state.tracks)
        request = model.read_request(memory, QUESTION)
        found.append((used, prefill(model.weights, [request], all_logits=True).logits))
    assert [used for used, _ in found] == [{"host"}, {"disk"}, {"host", "disk"}]
    for _, logits in found[1:]:
        assert torch.equal(logits, found[0][1])


@pytest.mark.gpu
def test_the_device_tier_has_a_budget(text: str, model: MPlus, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = TINY.model_copy(update={"long_term_device": "cuda"})
    model = MPlus.from_pretrained(tmp_path, device="cuda")

    def segments(config: MemoryConfig) -> Sequence[Segment]:
        memory = model.new_memory(config=config)
        for part in range(4):
            model.write(memory, text, source=f"part {part}")
        return memory.state.tracks[0].long_term.segments

    everything = segments(config)
    assert {s.tier for s in everything} == {"device"}
    budget = sum(s.nbytes for s in everything) - 1
    less = segments(config.model_copy(update={"long_term_device_bytes": budget}))
    assert sum(s.nbytes for s in less if s.tier == "device") <= budget
    assert "host" in {s.tier for s in less}
    assert all(s.keys[0].data.is_pinned() for s in less if s.tier == "host")


def test_joined_segments_stay_on_the_device_only_together() -> None:
    whole = claimed([1.0, 2.0])
    on_device = [replace(segment, tier="device") for segment in whole.segments]
    rows = [torch.arange(16)] * 2
    assert joined(on_device, rows).tier == "device"
    assert joined([on_device[0], whole.segments[1]], rows).tier == "host"
    assert joined([on_device[0], spilled(whole.segments[1])], rows).tier == "host"
