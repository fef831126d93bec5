import asyncio
import threading
from typing import Any

import pytest

from mplus.errors import PromptTooLongError, UnknownNameError
from mplus.generation.requests import GenerationOptions
from mplus.memory.memory import Memory
from mplus.model import MPlus
from mplus.testing import tiny_model
from tests.conftest import TINY

PROMPT = [{"role": "user", "content": "Which box is blue?"}]


@pytest.fixture
def memory(model: MPlus, text: str):
    memory = model.new_memory()
    model.write(memory, text, source="a")
    return memory


def test_streamed_pieces_join_to_the_answer(model: MPlus, memory) -> None:
    answer = model.generate(memory, PROMPT, max_new_tokens=40)
    stream = model.stream(memory, PROMPT, max_new_tokens=40)
    assert "".join(stream) == answer.text
    assert stream.generation == answer
    assert answer.completion_tokens == len(answer.token_ids) <= 40
    assert answer.prompt_tokens == len(model.read_request(memory, PROMPT).input_ids)


def test_a_batch_answers_as_singles_do(model: MPlus, memory, text: str) -> None:
    other, empty = model.new_memory(), model.new_memory()
    model.write(other, text[200:520], source="b")
    memories = [memory, empty, other, memory]
    prompts = [PROMPT, "Box", "Sentence 7 says that", PROMPT]
    together = model.generate_batch(memories, prompts, max_new_tokens=12)
    alone = [model.generate(m, p, max_new_tokens=12) for m, p in zip(memories, prompts, strict=True)]
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]
    assert [g.recalled for g in together] == [
        pytest.approx(g.recalled) if not g.recalled else g.recalled for g in alone
    ]


def test_sampling_in_a_batch_does_not_depend_on_the_others(model: MPlus, memory) -> None:
    settings = {"max_new_tokens": 10, "temperature": 1.3, "seed": 11}
    alone = model.generate(memory, PROMPT, **settings)
    together = model.generate_batch([memory, model.new_memory()], [PROMPT, "other"], **settings)
    assert together[0].token_ids == alone.token_ids
    assert model.generate(memory, PROMPT, **{**settings, "seed": 12}).token_ids != alone.token_ids


def test_finish_reasons(model: MPlus, memory) -> None:
    full = model.generate(memory, PROMPT, max_new_tokens=12)
    assert full.finish_reason == "length"
    stopped = model.generate(memory, PROMPT, max_new_tokens=12, stop_token_ids=[full.token_ids[5]])
    assert stopped.finish_reason == "stop"
    first = full.token_ids.index(full.token_ids[5])
    assert stopped.token_ids == full.token_ids[:first]


def test_a_stop_string_never_appears(model: MPlus, memory) -> None:
    # What a random model says is mostly broken characters: two whole ones in a row are looked for.
    for prompt in ("box", "red", "blue", "Which?", "Sentence", PROMPT):
        full = model.generate(memory, prompt, max_new_tokens=30)
        found = [full.text[i : i + 2] for i in range(len(full.text) - 2) if "�" not in full.text[i : i + 2]]
        if found:
            break
    stop = found[0]
    answer = model.generate(memory, prompt, max_new_tokens=30, stop=stop)
    assert answer.finish_reason == "stop"
    assert answer.text == full.text[: full.text.find(stop)]
    pieces = list(model.stream(memory, prompt, max_new_tokens=30, stop=stop))
    assert "".join(pieces) == answer.text


def test_cancelling_stops_within_two_tokens(model: MPlus, memory) -> None:
    cancelled = threading.Event()
    counted: list[int] = []

    def count(tokens: list[int], logits):
        counted.append(len(tokens))
        if len(tokens) == 5:
            cancelled.set()
        return logits

    answer = model.generate(memory, PROMPT, max_new_tokens=100, cancelled=cancelled, processors=[count])
    assert answer.finish_reason == "cancelled"
    assert len(answer.token_ids) <= 7
    assert max(counted) <= 7


def test_leaving_a_stream_stops_it(model: MPlus, memory) -> None:
    steps: list[int] = []
    with model.stream(memory, PROMPT, max_new_tokens=100, processors=[lambda t, x: steps.append(1) or x]) as stream:
        for _ in stream:
            break
    assert len(steps) <= 6
    assert stream.generation.finish_reason == "cancelled"


def test_an_error_inside_generation_reaches_the_reader(model: MPlus, memory) -> None:
    def fail(tokens: list[int], logits):
        if len(tokens) == 3:
            raise RuntimeError("broken processor")
        return logits

    with pytest.raises(RuntimeError, match="broken processor"):
        list(model.stream(memory, PROMPT, max_new_tokens=10, processors=[fail]))
    assert model.generate(memory, PROMPT, max_new_tokens=2).completion_tokens == 2


def test_a_prompt_longer_than_the_window_is_refused() -> None:
    model = tiny_model(memory=TINY, max_position_embeddings=400)
    memory = model.new_memory()
    model.write(memory, "box " * 100, source="a")
    before = memory.state
    with pytest.raises(PromptTooLongError, match="400"):
        model.generate(memory, "x" * 380)
    with pytest.raises(PromptTooLongError):
        model.generate(model.new_memory(), "x" * 400)
    assert memory.state is before
    answer = model.generate(memory, "x" * 200, max_new_tokens=300)
    assert answer.prefix_tokens + answer.prompt_tokens + answer.completion_tokens <= 400


def test_a_leading_bos_is_not_doubled_by_the_prefix(model: MPlus, memory) -> None:
    from mplus.generation.prompt import Prompt

    bos = model.tokenizer.bos_token_id
    with_bos = model.read_request(memory, Prompt((bos, 98, 99), (1, 3)))
    assert list(with_bos.input_ids) == [98, 99] and with_bos.query == (0, 2)
    assert list(model.read_request(model.new_memory(), Prompt((bos, 98, 99), (1, 3))).input_ids) == [bos, 98, 99]


def test_different_numbers_of_memories_and_prompts_are_refused(model: MPlus, memory) -> None:
    with pytest.raises(ValueError, match="1 memories for 2 prompts"):
        model.generate_batch([memory], ["a", "b"])


def test_shares_of_recalled_sources_add_up_to_one(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    for i in range(9):
        model.write(memory, text[i * 60 : i * 60 + 90], source=f"s{i}")
    answer = model.generate(memory, PROMPT, max_new_tokens=1)
    assert sum(r.share for r in answer.recalled) == pytest.approx(1)
    assert [r.relevance for r in answer.recalled] == sorted((r.relevance for r in answer.recalled), reverse=True)
    assert all(-1 <= r.relevance <= 1 for r in answer.recalled)


def test_a_write_adapters_tail_is_read_as_text() -> None:
    from pathlib import Path

    from mplus.checkpoint.loading import load
    from mplus.generation.prompt import Prompt

    folder = Path(__file__).parent.parent / "golden" / "tiny_mplus"
    loaded = load(folder, device="cpu", dtype="float32", attention="auto")
    model = MPlus(loaded.weights, tiny_model().tokenizer, loaded.memory, parts=loaded.parts)
    memory = model.new_memory()
    model.write(memory, [5, 6, 7], source="a")
    request = model.read_request(memory, Prompt((40, 41), (0, 2)))
    assert list(request.input_ids) == [5, 6, 7, 40, 41]
    assert request.query == (3, 5)


def test_closing_a_stream_does_not_set_the_callers_event(model: MPlus) -> None:
    shared = threading.Event()
    with model.stream(model.new_memory(), "hello", cancelled=shared, max_new_tokens=4) as stream:
        next(stream)
    assert not shared.is_set()
    shared.set()
    assert model.generate(model.new_memory(), "hello", cancelled=shared).finish_reason == "cancelled"


def test_a_batch_reads_for_each_prompt_only_what_it_may(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    for number in range(6):
        model.write(memory, f"Note {number}. {text[:300]}", source=f"note-{number}")
    allowed = [lambda source, _: source == "note-1", None, lambda source, _: source in ("note-0", "note-5")]
    prompts = ["Which box is red? ", "What about note four? ", "And the blue ones? "]
    batch = model.generate_batch([memory] * 3, prompts, where=allowed, max_new_tokens=5)
    for prompt, one, together in zip(prompts, allowed, batch, strict=True):
        alone = model.generate(memory, prompt, where=one, max_new_tokens=5)
        assert together.text == alone.text
        assert {r.source for r in together.recalled} == {r.source for r in alone.recalled}
    assert {r.source for r in batch[0].recalled} <= {"note-1"}
    with pytest.raises(ValueError, match="2 conditions in where for 3 prompts"):
        model.generate_batch([memory] * 3, prompts, where=allowed[:2])


@pytest.mark.parametrize("door", ["generate", "stream", "generate_batch", "serve", "astream"])
@pytest.mark.parametrize(("name", "nearest"), [("temprature", "temperature"), ("max_tokens", "max_new_tokens")])
def test_every_method_names_an_unknown_setting_with_the_nearest(
    model: MPlus, memory: Memory, door: str, name: str, nearest: str
) -> None:
    given: dict[str, Any] = {name: 9}
    with (
        model.serve() as scheduler,
        pytest.raises(UnknownNameError, match=f"'{name}'. Use {nearest}. It takes: .*seed"),
    ):
        if door == "generate_batch":
            model.generate_batch([memory], [PROMPT], **given)
        elif door == "serve":
            scheduler.generate(memory, PROMPT, **given)
        elif door == "astream":
            asyncio.run(scheduler.agenerate(memory, PROMPT, **given))
        else:
            getattr(model, door)(memory, PROMPT, **given)


def test_none_stands_for_the_default_of_every_option(model: MPlus, memory: Memory) -> None:
    nothing: dict[str, Any] = dict.fromkeys(set(GenerationOptions.__annotations__) - {"max_new_tokens"})
    expected = model.generate(memory, PROMPT, max_new_tokens=6)
    assert model.generate(memory, PROMPT, max_new_tokens=6, **nothing).text == expected.text
    assert model.generate_batch([memory], [PROMPT], max_new_tokens=6, where=None)[0].text == expected.text
