"""The protocol on a tiny model: what a question meets, and that a run goes on where it was killed."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mplus.evaluation.data_files import passages, read_records
from mplus.evaluation.datasets import locomo, squad
from mplus.evaluation.facts_task import facts
from mplus.evaluation.from_memory import Recalling
from mplus.evaluation.modes import answerers, chosen
from mplus.evaluation.question_prompts import prompt
from mplus.evaluation.raw_answers import ANSWERS, RawAnswers, _known
from mplus.evaluation.replies import Answered, Answerer, Settings
from mplus.evaluation.report import lines, markdown
from mplus.evaluation.retention import Stream, WrittenMemory, distractor_names
from mplus.evaluation.tasks import Question
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.read.prefill import prefill
from mplus.write.absorb import WriteReport
from tests.evaluation.data import LOCOMO, filler_file, squad_file

SETTINGS = Settings(max_new_tokens=3, batch=4)


def answerer(name: str, model: MPlus, stream: Stream) -> Answerer:
    (one,) = answerers([name], model, model.memory_config, stream, SETTINGS, tops=[2])
    return one


def stream_of(model: MPlus, folder: Path, *, together: bool = False) -> Stream:
    task = squad(squad_file(folder), 6, 2, random.Random(0))
    return Stream.of(task, passages(filler_file(folder)), model.tokenizer, [0, 500, 1500], together=together)


def test_a_url_is_no_folder_of_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"out=.*not a url"):
        RawAnswers(Path("s3://bucket/run"), {})
    assert not list(tmp_path.iterdir())


def test_a_level_has_at_least_its_tokens_and_the_fewest_texts(model: MPlus, tmp_path: Path) -> None:
    stream = stream_of(model, tmp_path)
    sizes = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in stream.distractors]
    for level in (0, 1, 500, 1500):
        count = stream.count(level)
        assert sum(sizes[:count]) == stream.tokens(level) >= level
        assert not count or sum(sizes[: count - 1]) < level


def test_too_few_distractors_are_an_error_before_anything_is_written(model: MPlus, tmp_path: Path) -> None:
    task = squad(squad_file(tmp_path), 12, 0, random.Random(0))
    with pytest.raises(ValueError, match="--distractors"):
        Stream.of(task, [], model.tokenizer, [0, 160_000])


def test_a_limited_read_of_the_one_stream_is_a_read_of_a_memory_of_its_own(model: MPlus, tmp_path: Path) -> None:
    stream = stream_of(model, tmp_path)
    shared = WrittenMemory(model, model.memory_config)
    shared.write(list(stream.task.contexts), list(stream.task.contexts.values()))
    count = stream.count(500)
    shared.write(distractor_names(0, count), stream.distractors[:count])
    for question in stream.task.questions[:3]:
        own = WrittenMemory(model, model.memory_config)
        own.write(question.contexts, [stream.task.contexts[name] for name in question.contexts])
        own.write(distractor_names(0, count), stream.distractors[:count])
        asked = prompt(question.text, "short")
        limited = model.read_request(shared.memory, asked, where=shared.own_and_distractors(question))
        alone = model.read_request(own.memory, asked)
        logits = [prefill(model.weights, [request]).logits for request in (limited, alone)]
        assert torch.allclose(*logits, atol=2e-4)


def test_low_levels_are_asked_of_memories_of_their_own_and_high_ones_of_the_stream(
    model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(model, tmp_path)
    written: list[int] = []
    real = MPlus.write

    def write(self: MPlus, memory: Memory, text: list[str], **options: Any) -> WriteReport:
        written.append(len(text))
        return real(self, memory, text, **options)

    monkeypatch.setattr(MPlus, "write", write)
    subject = answerer("mplus", model, stream)
    wanted = [(question, level) for level in (0, 1500) for question in stream.task.questions]
    found = list(subject.replies(wanted))
    assert sorted((a.question.id, a.levels) for a in found) == sorted((q.id, (level,)) for q, level in wanted)
    groups = len({question.contexts for question in stream.task.questions})
    assert written[:groups] == [1] * groups
    assert written[groups:] == [len(stream.task.contexts), stream.count(1500)]


def test_every_source_is_ranked_and_the_right_one_found(model: MPlus, tmp_path: Path) -> None:
    stream = stream_of(model, tmp_path, together=True)
    subject = answerer("mplus-late", model, stream)
    replies = list(subject.replies([(q, 500) for q in stream.task.questions if q.is_answerable]))
    assert all(a.reply.rank is not None for a in replies)
    for a in replies:
        if a.reply.rank is not None and a.reply.rank <= len(a.reply.found):
            assert a.reply.found[a.reply.rank - 1][0] in a.question.gold
    assert all(a.reply.features["relevance"] == a.reply.found[0][1] for a in replies)


class Killed(Exception):
    pass


class Interrupted(Recalling):
    """Stops after some answers, as a kill would."""

    def replies(self, wanted: Sequence[tuple[Question, int]]) -> Iterator[Answered]:
        for count, answered in enumerate(super().replies(wanted)):
            if count == 3:
                raise Killed
            yield answered


def test_a_killed_run_goes_on_and_ends_with_the_same_answers(model: MPlus, tmp_path: Path) -> None:
    stream = stream_of(model, tmp_path)
    arguments = ("mplus", model, model.memory_config, stream, SETTINGS)
    whole = RawAnswers(tmp_path / "whole", {"seed": 0})
    whole.ask(Recalling(*arguments), stream)
    resumed = RawAnswers(tmp_path / "resumed", {"seed": 0})
    with pytest.raises(Killed):
        resumed.ask(Interrupted(*arguments), stream)
    path = tmp_path / "resumed" / ANSWERS
    path.write_text(path.read_text(encoding="utf-8") + '{"task": "squad", "mo', encoding="utf-8")
    resumed = RawAnswers(tmp_path / "resumed", {"seed": 0})
    assert len(resumed.rows) == 3
    asked: list[int] = []
    resumed.ask(Recalling(*arguments), stream, progress=lambda _, done, total: asked.append(done))
    assert asked[0] == 4 and asked[-1] == len(whole.rows) == 24
    key = lambda row: (row["mode"], row["level"], row["id"])
    texts = [{key(row): row["text"] for row in run.rows} for run in (whole, resumed)]
    assert texts[0] == texts[1]
    on_disk = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert on_disk == resumed.rows


def test_lines_end_where_json_lines_do(tmp_path: Path) -> None:
    rows = [{"answer": "One\u2028two\x85three"}, {"answer": "four"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    assert _known(tmp_path / "rows.jsonl") == list(read_records(tmp_path / "rows.jsonl")) == rows


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    RawAnswers(tmp_path, {"seed": 0})
    RawAnswers(tmp_path, {"seed": 0})
    with pytest.raises(ValueError, match=r"seed=0 \(now 1\).*--out"):
        RawAnswers(tmp_path, {"seed": 1})


def test_a_report_has_a_line_per_level(model: MPlus, tmp_path: Path) -> None:
    stream = stream_of(model, tmp_path)
    run = RawAnswers(tmp_path / "run", {})
    run.ask(answerer("mplus", model, stream), stream)
    report = lines(run.rows)
    assert [(line.level, line.questions) for line in report] == [(0, 6), (500, 6), (1500, 6)]
    assert report[0].found[1].mean == 1.0  # only one source to find
    assert markdown(run.rows).count("\n| mplus |") == 3


def test_people_tell_ask_and_change_their_minds() -> None:
    task = facts(12, 5, seed=3, updated=0.6)
    assert task == facts(12, 5, seed=3, updated=0.6)
    kinds = [question.kind for question in task.questions]
    assert len(task.questions) == 17 and kinds.count("unknown") == 5 and kinds.count("updated") > 1
    for question in task.questions:
        texts = [task.contexts[name] for name in question.contexts]
        if not question.is_answerable:
            assert not question.gold
            continue
        (gold,) = question.gold
        assert question.answers[0] in task.contexts[gold]
        if question.kind == "updated":  # what was said first comes before
            assert question.contexts.index(gold) > 0
        assert any(text.startswith("User: ") and "\nAssistant: " in text for text in texts)


def test_modes_by_name(model: MPlus) -> None:
    config = model.memory_config
    with pytest.raises(ValueError, match="expected all, or some of closed-book"):
        chosen(["magic"], model, config)
    with pytest.raises(ValueError, match="no such retriever"):
        chosen(["mplus-published"], model, config)
    everything = chosen(["mplus", "all"], model, config)
    assert everything[0] == "mplus" and everything.count("mplus") == 1
    assert {"closed-book", "memoryllm", "mplus-attention", "rag-bm25"} <= set(everything)
    # Untrained weights have no adapter to read with, nor the published retriever; "mplus" is the late one here.
    assert not {"rag-bm25+adapter", "rag-bm25+mplus", "mplus-published", "mplus-late"} & set(everything)


def test_a_conversation_is_written_once_for_all_its_questions_and_levels(
    model: MPlus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps(LOCOMO), encoding="utf-8")
    task = locomo(path, 4, 2, random.Random(0))
    # At 0 and 50 tokens other conversations would be in short-term memory, at 600 one stream serves all.
    short = [f"Ship {number} left the harbour at noon." for number in range(20)]
    stream = Stream.of(task, short, model.tokenizer, [0, 50, 600])
    written: list[str] = []
    real = MPlus.write

    def write(self: MPlus, memory: Memory, text: list[str], **options: Any) -> WriteReport:
        written.extend(text)
        return real(self, memory, text, **options)

    monkeypatch.setattr(MPlus, "write", write)
    subject = answerer("mplus", model, stream)
    near = [(question, level) for level in (0, 50) for question in task.questions]
    assert len(list(subject.replies(near))) == 2 * 6
    sessions = [text for text in written if text in task.contexts.values()]
    assert len(task.contexts) == 6 and len(sessions) == 6
    written.clear()
    assert len(list(subject.replies([(question, 600) for question in task.questions]))) == 6
    assert sorted(text for text in written if text in task.contexts.values()) == sorted(task.contexts.values())
