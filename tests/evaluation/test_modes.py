"""What each way of answering reads, seen by looking over the shoulder of the model."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mplus.evaluation.data_files import passages
from mplus.evaluation.datasets import squad
from mplus.evaluation.memoryllm import Pool, memoryllm
from mplus.evaluation.modes import answerers
from mplus.evaluation.replies import Answered, Settings
from mplus.evaluation.retention import Stream
from mplus.memory.memory import Memory
from mplus.model import MPlus
from tests.evaluation.data import filler_file, squad_file

SETTINGS = Settings(max_new_tokens=2, batch=4)


class Look:
    """Every batch that a model answers: memories and prompts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prompts: list[str] = []
        self.memories: list[Memory] = []
        real = MPlus.generate_batch

        def generate_batch(model: MPlus, memories: Sequence[Memory], prompts: Sequence[Any], **options: Any) -> Any:
            self.prompts += [prompt[-1]["content"] for prompt in prompts]
            self.memories += memories
            return real(model, memories, prompts, **options)

        monkeypatch.setattr(MPlus, "generate_batch", generate_batch)


@pytest.fixture
def stream(model: MPlus, tmp_path: Path) -> Stream:
    task = squad(squad_file(tmp_path), 4, 0, random.Random(0))
    return Stream.of(task, passages(filler_file(tmp_path)), model.tokenizer, [0, 700, 6000])


def ask(name: str, model: MPlus, stream: Stream, top: int = 2) -> list[Answered]:
    (one,) = answerers([name], model, model.memory_config, stream, SETTINGS, tops=[top])
    wanted = [(question, level) for level in stream.levels for question in stream.task.questions]
    return list(one.replies(wanted))


def test_closed_book_asks_once_for_all_levels(model: MPlus, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(monkeypatch)
    found = ask("closed-book", model, stream)
    assert len(found) == 4 and all(one.levels == stream.levels for one in found)
    assert {one.reply.prefix_tokens for one in found} == {0}
    assert all(not memory.state.sources for memory in look.memories)


def test_full_context_has_everything_that_fits_in_order(
    model: MPlus, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    found = ask("full-context", model, stream)
    assert {one.levels for one in found} == {(0,), (700,)}  # 6,000 tokens exceed the window of 4,096
    longest = max(look.prompts, key=len)
    question = next(q for q in stream.task.questions if q.text in longest)
    expected = [stream.task.contexts[question.contexts[0]], *stream.distractors[: stream.count(700)]]
    assert longest.startswith("\n\n".join(expected))
    assert longest.endswith(f"{question.text}\nAnswer in a few words.")


def test_rag_reads_the_best_passages_and_the_best_last(
    model: MPlus, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    found = ask("rag-bm25", model, stream)
    assert sorted(level for one in found for level in one.levels) == sorted(4 * stream.levels)
    assert all(one.reply.rank == 1 for one in found)
    for prompt in look.prompts:
        question = next(q for q in stream.task.questions if q.text in prompt)
        context = stream.task.contexts[question.contexts[0]]
        assert prompt.endswith(f"{context}\n\n{question.text}\nAnswer in a few words.")
    # At 700 and 6,000 tokens the same passages may come up: then there is one read for both.
    assert len(look.prompts) < 12 or len(set(look.prompts)) == 12


def test_rag_with_the_adapter_reads_the_same_passages_as_memory(
    model: MPlus, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    found = ask("rag-bm25+adapter", model, stream, top=1)
    assert all(one.reply.rank == 1 and one.reply.prefix_tokens > 0 for one in found)
    assert all("Answer in a few words." in prompt and len(prompt) < 80 for prompt in look.prompts)
    for memory in look.memories:
        tracks = memory.state.tracks
        assert not any(len(track.pending) + len(track.long_term) for track in tracks)  # all of it is read whole


def test_only_as_memory_are_passages_turned_towards_the_sentence(
    model: MPlus, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = model.memory_config.model_copy(update={"best_sentence_times": 2})
    for name, times in {"rag-bm25+adapter": 0, "rag-bm25+mplus": 2}.items():
        look = Look(monkeypatch)
        (answerer,) = answerers([name], model, layout, stream, Settings(max_new_tokens=2), tops=(1,))
        assert list(answerer.replies([(question, 0) for question in stream.task.questions]))
        assert {memory.config.best_sentence_times for memory in look.memories} == {times}


def test_memoryllm_has_no_long_term_memory_and_a_pool_as_large_as_fits(model: MPlus) -> None:
    layout = memoryllm(model.memory_config, 4096)
    assert layout.long_term_capacity == 0 and layout.layout == "token"
    assert 3000 < layout.prefix_tokens < 4096 - 400


def test_memoryllm_asks_when_as_much_has_been_written_since(
    model: MPlus, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch)
    small = memoryllm(model.memory_config, 512 + 320)
    monkeypatch.setattr("mplus.evaluation.modes.memoryllm", lambda *_: small)
    stream = replace(stream, levels=(0, 700, 1500))
    found = ask("memoryllm", model, stream)
    assert sorted((one.question.id, one.levels[0]) for one in found) == sorted(
        (question.id, level) for question in stream.task.questions for level in stream.levels
    )
    longest = max(len(model.tokenizer(text)["input_ids"]) for text in stream.distractors)
    for one in found:
        assert one.distractor_tokens is not None
        assert one.levels[0] <= one.distractor_tokens < one.levels[0] + longest
        assert one.reply.prefix_tokens <= small.prefix_tokens
    assert all(len(track.long_term) == 0 for memory in look.memories for track in memory.state.tracks)


def test_memoryllm_needs_something_to_fill_its_pool_with(model: MPlus, stream: Stream) -> None:
    bare = Stream(stream.task, (), (), (0,))
    with pytest.raises(ValueError, match="--distractors"):
        Pool(model, model.memory_config, bare, 0).write_distractor()
