"""Texts with the time at which they were said: what is read of a period, and as of a time."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import mplus
from mplus import Memory, MemoryStore, MPlus
from mplus.memory.periods import Period
from mplus.moments import as_text, seconds_of
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from tests.conftest import TINY

QUESTION = "Which box is blue?"
DAYS = ("2023-02-01", "2023-06-01", "2024-01-15", "2024-08-20")
"""When the sources "2023-02-01" and so on were said, each in two parts."""


def said(day: str) -> list[str]:
    numbers = [DAYS.index(day) * 9 + n for n in range(9)] if day in DAYS else [99]
    return [" ".join(f"On day {n} box {n * 7 % 13} is {'red' if n % 3 else 'blue'}." for n in numbers), f"{day} ended."]


def filled(model: MPlus, days: Any = DAYS, **options: Any) -> Memory:
    memory = model.new_memory(config=options.pop("config", None))
    for day in days:
        model.write(memory, said(day), source=day, at=day, keep_text=True, **options)
    return memory


def logits(model: MPlus, memory: Any, **options: Any) -> torch.Tensor:
    return prefill(model.weights, [model.read_request(memory, QUESTION, **options)], all_logits=True).logits


def names(memory: Memory) -> list[str]:
    return [source.name for source in memory.sources()]


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("order", [DAYS, (DAYS[2], DAYS[0], DAYS[3], DAYS[1])])
def test_a_read_as_of_a_time_is_that_of_a_memory_that_ends_there(
    model: MPlus, kept: int, order: tuple[str, ...]
) -> None:
    as_of = "2022-01-01" if not kept else DAYS[kept - 1]
    memory = filled(model, order)
    expected = filled(model, [day for day in order if day <= as_of])
    before = memory.fingerprint
    assert torch.equal(logits(model, memory, as_of=as_of), logits(model, expected))
    assert torch.equal(logits(model, memory, until=as_of), logits(model, expected))
    assert torch.equal(logits(model, memory.as_of(as_of)), logits(model, expected))
    found, wanted = (
        model.search(one, QUESTION, limit=None, **o) for one, o in ((memory, {"as_of": as_of}), (expected, {}))
    )
    assert [(one.source, one.relevance, one.texts) for one in found] == [
        (o.source, o.relevance, o.texts) for o in wanted
    ]
    assert memory.fingerprint == before
    assert names(memory) == list(order)


def test_an_answer_as_of_a_time_recalls_nothing_later(model: MPlus) -> None:
    memory = filled(model)
    answer = model.generate(memory, QUESTION, as_of="2023-12-31", max_new_tokens=2)
    assert {one.source for one in answer.recalled} == set(DAYS[:2])
    answer = model.generate(memory, QUESTION, since="2023-03-01", until="2024-03-01", max_new_tokens=2)
    assert {one.source for one in answer.recalled} == set(DAYS[1:3])
    (answer,) = model.generate_batch([memory], [QUESTION], since="2024-01-15", max_new_tokens=2)
    assert {one.source for one in answer.recalled} == set(DAYS[2:])
    with model.serve() as scheduler:
        answer = scheduler.generate(memory, QUESTION, as_of="2023-02-01", max_new_tokens=2)
    assert {one.source for one in answer.recalled} == {DAYS[0]}


def test_periods_and_filters_both_hold(model: MPlus) -> None:
    memory = model.new_memory()
    for day in DAYS:
        for language in ("en", "de"):
            source = f"{language} {day}"
            model.write(memory, said(day), source=source, at=day, metadata={"language": language})
    found = model.search(memory, QUESTION, limit=None, where={"language": "de"}, since="2023-05-01", until="2024-02-01")
    assert {one.source for one in found} == {"de 2023-06-01", "de 2024-01-15"}


def test_several_memories_are_read_as_of_one_time(model: MPlus) -> None:
    own, shared = filled(model, DAYS[:2]), filled(model, DAYS[2:])
    joined = logits(model, [own, shared], as_of="2024-02-01")
    assert torch.equal(joined, logits(model, [own, filled(model, DAYS[2:3])]))
    assert torch.equal(joined, logits(model, [own, shared], as_of="2024-02-01"))
    assert {one.source for one in model.search([own, shared], QUESTION, limit=None, until="2023-03-01")} == {DAYS[0]}


@pytest.mark.parametrize("ledger", [True, False])
def test_a_source_is_read_up_to_a_time(ledger: bool) -> None:
    config = TINY.model_copy(update={"ledger": ledger, "read": "latent"})
    model = tiny_model(memory=config)

    def diary(days: Any) -> Memory:
        memory = model.new_memory()
        for day in days:
            model.write(memory, said(day), source="diary", at=day, metadata={"day": day, day: True}, keep_text=True)
        return memory

    memory = diary(DAYS)
    (source,) = memory.sources()
    assert (source.earliest, source.latest) == (seconds_of(DAYS[0], "at"), seconds_of(DAYS[-1], "at"))
    seen = memory.as_of(DAYS[1])
    if not ledger:  # which of its metadata and texts came later is not known
        assert names(seen) == []
        return
    expected = diary(DAYS[:2])
    assert torch.equal(logits(model, seen), logits(model, expected))
    (source,), (wanted,) = seen.sources(), expected.sources()
    assert (source.metadata, source.texts, source.text_tokens) == (wanted.metadata, wanted.texts, wanted.text_tokens)
    assert (source.memory_tokens, source.tail_tokens, source.latest) == (
        *(wanted.memory_tokens, wanted.tail_tokens),
        seconds_of(DAYS[1], "at"),
    )


def test_short_texts_of_different_times_never_share_a_chunk(model: MPlus) -> None:
    memory, expected = model.new_memory(), model.new_memory()
    for day in ("2024-01-01", "2024-01-01", "2024-01-02", "2024-01-03"):
        model.write(memory, "Yes.", source="talk", at=day)
        if day == "2024-01-01":
            model.write(expected, "Yes.", source="talk", at=day)
    assert torch.equal(logits(model, memory, as_of="2024-01-01"), logits(model, expected))
    assert not torch.equal(logits(model, memory), logits(model, expected))


def test_without_a_time_text_counts_from_when_it_was_written(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    memory = model.new_memory()
    model.write(memory, said("first"), source="first")
    model.write(memory, "Short.", source="talk")
    now += 3600
    model.write(memory, said("second"), source="second")
    model.write(memory, "Short again.", source="late")
    now += 3600
    assert names(memory.as_of(now - 7200)) == ["first", "talk"]
    assert names(memory.as_of(as_text(now - 3600))) == ["first", "talk", "second", "late"]
    assert names(memory.as_of(now - 7201)) == []
    for source in memory.sources():
        assert (source.earliest, source.latest) == (source.first_written, source.last_written)


def test_what_was_joined_to_a_chunk_later_is_not_read_before(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    memory = model.new_memory()
    model.write(memory, "Short", source="talk")
    now += 60
    model.write(memory, "and then a much longer text that fills the chunk. " * 2, source="talk")
    assert not torch.equal(logits(model, memory), logits(model, model.new_memory()))
    assert torch.equal(logits(model, memory, as_of=now - 30), logits(model, model.new_memory()))


def test_times_are_kept_by_every_way_a_memory_goes(tmp_path: Path, model: MPlus) -> None:
    memory = filled(model)
    model.write(memory, "Tail.", source="tail", at="2024-09-01")
    memory.snapshot("all")
    memory.save(tmp_path / "saved")
    memory.export(tmp_path / "one.mplus")
    store = MemoryStore(tmp_path / "store")
    store.put("anna", memory)
    store.copy("anna", "ben")
    back = memory.fork()
    model.write(back, "Something else.", source="else")
    back.rollback(back.snapshots[0].id)
    adopted = model.new_memory()
    adopted.adopt(memory.fork())
    expected = logits(model, filled(model, DAYS[:3]))
    ways = {
        "saved": Memory.load(tmp_path / "saved", model),
        "exported": Memory.load(tmp_path / "one.mplus", model),
        "copied": store.load("ben", model),
        "fork": memory.fork(),
        "rolled back": back,
        "adopted": adopted,
        "other recall": memory.as_of("2100-01-01"),
    }
    for way, other in ways.items():
        assert [(s.name, s.earliest, s.latest) for s in other.sources()] == [
            (s.name, s.earliest, s.latest) for s in memory.sources()
        ], way
        assert torch.equal(logits(model, other, as_of="2024-05-01"), expected), way
        assert names(other.as_of("2024-08-31")) == list(DAYS), way


def test_forgetting_with_a_rebuild_keeps_times(model: MPlus) -> None:
    memory = filled(model)
    memory.forget(DAYS[1], rebuild=model)
    assert torch.equal(logits(model, memory, as_of="2024-02-01"), logits(model, filled(model, (DAYS[0], DAYS[2]))))
    memory.forget(DAYS[2])
    assert torch.equal(logits(model, memory, as_of="2024-02-01"), logits(model, filled(model, DAYS[:1])))
    held = {int(n) for track in memory.state.tracks for n in track.chunks}
    assert set(memory.state.moments.chunks.tolist()) <= held  # the time of what was forgotten is forgotten too


def test_nothing_later_is_on_disk_of_a_memory_as_of_a_time(tmp_path: Path, model: MPlus) -> None:
    memory = filled(model)
    memory.as_of("2023-12-31").save(tmp_path)
    loaded = Memory.load(tmp_path, model)
    assert names(loaded) == list(DAYS[:2])
    assert not any(b"2024-0" in path.read_bytes() for path in tmp_path.iterdir())
    assert loaded.state.ledger is not None and len(loaded.state.ledger) == 2


def test_a_view_is_made_once_and_dropped_with_what_it_was_made_of(model: MPlus) -> None:
    memory = filled(model)
    first = model.read_request(memory, QUESTION, as_of="2024-01-01").state
    assert model.read_request(memory, QUESTION, as_of="2024-01-01").state is first
    memory.forget(DAYS[0])
    assert model.read_request(memory, QUESTION, as_of="2024-01-01").state is not first
    everything = model.read_request(memory, QUESTION).state
    assert model.read_request(memory, QUESTION, as_of="2030-01-01").state is everything


def test_a_time_ahead_or_long_ago_neither_deletes_nor_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    model = tiny_model(memory=TINY.model_copy(update={"age_limit_seconds": 100.0}))
    memory = model.new_memory()
    model.write(memory, said("old"), source="said long ago", at="1990-01-01")
    model.write(memory, said("new"), source="said in future", at="2090-01-01")
    now += 60
    assert names(memory) == ["said long ago", "said in future"]
    model.write(memory, said("next"), source="next", at="1980-01-01")
    now += 41
    assert names(memory) == ["next"]


def test_a_pinned_source_past_the_age_limit_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    model = tiny_model(memory=TINY.model_copy(update={"age_limit_seconds": 100.0}))
    memory = model.new_memory()
    model.write(memory, said("plain"), source="plain")
    model.write(memory, said("dated"), source="dated", at="2001-01-01")
    memory.pin("plain")
    memory.pin("dated")
    now += 200
    assert names(memory) == ["plain", "dated"]
    assert names(memory.as_of("2001-01-01")) == ["dated"]
    read = model.generate(memory, QUESTION, max_new_tokens=1, as_of="2001-01-01")
    assert {one.source for one in read.recalled} == {"dated"}
    assert {one.source for one in model.search(memory, QUESTION, as_of=now - 200)} == {"plain", "dated"}


def test_the_reader_sees_a_date_only_if_it_is_asked_for(model: MPlus) -> None:
    def written(**options: Any) -> Memory:
        memory = model.new_memory()
        model.write(memory, ["Anna moved to Oslo.", "She is glad."], source=["a", "b"], keep_text=True, **options)
        return memory

    def texts(memory: Memory) -> list[str]:
        return [model.tokenizer.decode(t.input_ids) for entry in memory.state.ledger or () for t in entry.texts]

    plain, at = written(), written(at="2024-03-03")
    assert torch.equal(logits(model, plain), logits(model, at))
    assert plain.fingerprint == at.fingerprint
    dated = written(at=["2024-03-03", None], dated=True)
    assert texts(dated) == ["On 3 March 2024: Anna moved to Oslo.", "She is glad."]
    assert [source.texts for source in dated.sources()] == [source.texts for source in plain.sources()]
    ids = model.new_memory()
    model.write(ids, model.tokenizer("Oslo.", add_special_tokens=False)["input_ids"], source="c", at=0, dated=True)
    assert texts(ids) == ["On 1 January 1970:\nOslo."]


def test_the_token_layout_and_the_write_adapter_bear_times() -> None:
    for changes in ({"layout": "token"}, {"encoding": "states"}):
        model = tiny_model(memory=TINY.model_copy(update=changes))
        memory = filled(model)
        assert names(memory.as_of("2023-12-31")) == list(DAYS[:2])
        read = model.generate(memory, QUESTION, max_new_tokens=1, as_of="2023-12-31")
        assert {one.source for one in read.recalled} <= set(DAYS[:2])


def test_texts_that_wait_keep_their_times(model: MPlus) -> None:
    memory = model.new_memory()
    for day in DAYS:
        model.write(memory, said(day), source=day, at=day, keep_text=True, later=True)
    torch.testing.assert_close(logits(model, memory, as_of=DAYS[1]), logits(model, filled(model, DAYS[:2])))
    batched = [model.new_memory(), model.new_memory()]
    model.write_batch(batched, [said(DAYS[0]), said(DAYS[1])], sources=list(DAYS[:2]), at=[DAYS[0], DAYS[1]])
    assert [[s.latest for s in one.sources()] for one in batched] == [[seconds_of(day, "at")] for day in DAYS[:2]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "soon"}, r"at='soon'.*ISO 8601"),
        ({"at": True}, r"at=True"),
        ({"at": ["2024-01-01"] * 3}, r"3 times for 1 texts"),
        ({"at": 1.7e12}, r"milliseconds"),
        ({"dated": True}, r"dated=True without at"),
    ],
)
def test_what_is_no_time_is_refused_and_nothing_is_written(model: MPlus, options: dict[str, Any], message: str) -> None:
    for later in (False, True):
        memory = model.new_memory()
        with pytest.raises(ValueError, match=message):
            model.write(memory, "Text.", source="a", later=later, **options)
        assert names(memory) == []


def test_bad_times_of_reads_are_refused(model: MPlus) -> None:
    memory = filled(model)
    with pytest.raises(ValueError, match=r"as_of='then'"):
        model.generate(memory, QUESTION, as_of="then")
    with pytest.raises(ValueError, match=r"since='2024-01-01' is later than until='2023-01-01'"):
        model.search(memory, QUESTION, since="2024-01-01", until="2023-01-01")
    with pytest.raises(ValueError, match=r"as_of='now'"):
        memory.as_of("now")
    with pytest.raises(ValueError, match=r"3 times"):
        model.write_batch([memory], ["a"], at=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"expected a list"):
        model.write_batch([memory], ["a"], at="2024-01-01")  # type: ignore[arg-type]
    assert Period.of() is None


def test_a_save_without_times_is_one_that_earlier_versions_read(tmp_path: Path, model: MPlus) -> None:
    memory = model.new_memory()
    model.write(memory, [*said(DAYS[0])], source="a", keep_text=True)
    memory.save(tmp_path)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for name in (b'"moments"', b'"latest"', b'"earliest"', b'"at"', b'"is_dated"'):
        assert name not in kept
    assert mplus.Memory.load(tmp_path, model).fingerprint == memory.fingerprint


def test_a_memory_of_token_ids_reads_a_period_too(model: MPlus) -> None:
    config = TINY.model_copy(update={"long_term_keep": "ids", "chunk_context": "none"})
    memory, expected = filled(model, config=config), filled(model, DAYS[:1], config=config)
    assert len(memory.state.tracks[0].long_term) > len(expected.state.tracks[0].long_term)
    assert torch.equal(logits(model, memory, as_of=DAYS[0]), logits(model, expected))
    states = [
        model._requests.present.within(memory, Period(until=seconds_of(DAYS[0], "until", end=True))) for _ in range(2)
    ]
    assert states[0] is states[1]


def test_what_was_said_earlier_does_not_attend_to_what_was_written_before_without_a_time(model: MPlus) -> None:
    memory, expected = model.new_memory(), model.new_memory()
    model.write(memory, said(DAYS[3])[0], source="talk")  # now
    for one in (memory, expected):
        model.write(one, said(DAYS[0])[0], source="talk", at=DAYS[0])
    assert torch.equal(logits(model, memory, as_of=DAYS[1]), logits(model, expected))


def test_texts_that_wait_keep_their_times_apart(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, memory = time.time(), model.new_memory()
    for name, seconds in (("a", 0.0), ("b", 3600.0)):
        monkeypatch.setattr(time, "time", lambda seconds=seconds: clock + seconds)
        model.write(memory, f"Box {name} is red.", source=name, later=True)
    assert names(memory.as_of(clock + 60)) == ["a"]
    assert names(memory) == ["a", "b"]
