"""The LLM: its eight members, whose memory it reads, and what it does with what it cannot read."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatInProgressEvent, LLMChatStartEvent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import Document

import mplus
from mplus import MemoryStore
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from mplus_integrations.llama_index import MPlusLLM
from tests.conftest import TINY
from tests.integrations.llama_index.conftest import MODEL, Saying, Slow

NOTE = "My dog is called Biscuit, and he likes bread with butter."
QUESTION = [ChatMessage(role="user", content="What is my dog called?")]


# --- acceptance ---------------------------------------------------------------------------------------


def test_acceptance_2_ten_constructions_load_weights_zero_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mplus.MPlus, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    for _ in range(10):
        llm = MPlusLLM()
        assert llm.metadata.model_name == "smol-135m" and llm.metadata.context_window > 0
        assert llm.to_payload()["is_function_calling_model"]


def test_acceptance_3_a_joined_stream_equals_a_greedy_answer(llm: MPlusLLM) -> None:
    llm.memorize(NOTE, source="notes")
    whole = llm.chat(QUESTION)
    text = whole.message.content
    assert text and whole.delta is None
    chunks = list(llm.stream_chat(QUESTION))
    assert "".join(c.delta or "" for c in chunks) == text
    assert all(c.message.content == "".join(x.delta or "" for x in chunks[: n + 1]) for n, c in enumerate(chunks))
    assert all(c.raw.keys() == {"usage"} for c in chunks[:-1]) and chunks[-1].raw == whole.raw
    assert llm.complete("What is my dog called?").text == text
    assert "".join(c.delta or "" for c in llm.stream_complete("What is my dog called?")) == text

    async def others() -> list[str | None]:
        streamed = [c.delta or "" async for c in await llm.astream_chat(QUESTION)]
        completed = [c.delta or "" async for c in await llm.astream_complete("What is my dog called?")]
        one, two = await llm.achat(QUESTION), await llm.acomplete("What is my dog called?")
        return [one.message.content, two.text, "".join(streamed), "".join(completed)]

    assert asyncio.run(others()) == [text] * 4


def test_acceptance_3_stop_strings_never_appear(llm: MPlusLLM, say: Saying) -> None:
    say(*["One, two, three, four."] * 2)
    assert llm.chat(QUESTION, stop=["two, th"]).message.content == "One, "
    chunks = list(llm.stream_chat(QUESTION, stop=["two, th"]))
    assert "".join(c.delta or "" for c in chunks) == "One, "
    assert chunks[-1].raw["finish_reason"] == "stop"


def test_acceptance_3_one_bos_and_control_tokens_in_text_stay_inert(llm: MPlusLLM, asked: list[Any]) -> None:
    llm.chat([ChatMessage(role="user", content="a <|im_end|> <s> b")], max_tokens=1)
    llm.complete("a <|im_end|> <s> b", formatted=True, max_tokens=1)
    with llm.latents().opened(MODEL) as memory:
        chat, plain = (MODEL.read_request(memory, prompt).input_ids for prompt in asked)
    end, bos = MODEL.tokenizer.convert_tokens_to_ids("<|im_end|>"), MODEL.tokenizer.bos_token_id
    assert chat.count(end) == 1 and chat.count(bos) == 0  # the template's own end of turn, and no bos in it
    assert plain.count(end) == 0 and plain.count(bos) <= 1


def test_acceptance_4_the_event_loop_ticks_while_answers_are_made(llm: MPlusLLM, slow: Slow) -> None:
    async def run() -> float:
        longest, last, done = 0.0, time.monotonic(), asyncio.Event()

        async def answer() -> None:
            await llm.achat(QUESTION, max_tokens=10)
            async for _ in await llm.astream_chat(QUESTION, max_tokens=10):
                pass
            await llm.acomplete("hello", max_tokens=10)
            done.set()

        task = asyncio.create_task(answer())
        while not done.is_set() and not task.done():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await task
        return longest

    assert asyncio.run(run()) < 0.25


@pytest.mark.parametrize("how", ["cancel achat", "time out achat", "break astream_chat", "break stream_chat"])
def test_acceptance_4_leaving_early_stops_generation(llm: MPlusLLM, slow: Slow, how: str) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(llm.achat(QUESTION, max_tokens=200))
        while slow.steps < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def time_out() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(llm.achat(QUESTION, max_tokens=200), 0.1)

    async def leave() -> None:
        async for _ in await llm.astream_chat(QUESTION, max_tokens=200):
            break
        await asyncio.sleep(0.05)  # nobody closes the generator: it is collected, and that ends it
        steps = slow.steps
        await asyncio.sleep(0.2)
        assert slow.steps <= steps + 2

    if how == "break stream_chat":
        for _ in llm.stream_chat(QUESTION, max_tokens=200):
            break
    else:
        asyncio.run({"cancel achat": cancel, "time out achat": time_out, "break astream_chat": leave}[how]())
    steps = slow.steps
    time.sleep(0.2)
    assert slow.steps <= steps + 2
    assert 0 < steps < 50


def test_acceptance_4_an_error_inside_generation_reaches_the_consumer(
    llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tokens: list[int], logits: Any) -> Any:
        raise RuntimeError("broken")

    real = MODEL.stream
    monkeypatch.setattr(MODEL, "stream", lambda *a, **k: real(*a, **k, processors=[fail]))

    async def read() -> None:
        async for _ in await llm.astream_chat(QUESTION):
            pass

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(read())
    with pytest.raises(RuntimeError, match="broken"):
        list(llm.stream_chat(QUESTION))
    with pytest.raises(RuntimeError, match="broken"):
        llm.complete("hi")


def test_acceptance_5_one_memory_never_changes_what_another_ones_reader_computes(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), max_tokens=6)
    llm.memorize("The library opens at nine, on Sundays at noon.", memory_key="bob", source="b")

    def logits() -> torch.Tensor:
        memory = llm.latents("bob").read(MODEL)
        return prefill(MODEL.weights, [MODEL.read_request(memory, "When does it open?")]).logits

    before = logits()
    llm.memorize(NOTE, memory_key="alice")
    llm.chat(QUESTION, memory_key="alice")
    assert torch.equal(logits(), before)
    assert llm.chat(QUESTION, memory_key="carol").raw["prefix_tokens"] == 0


def test_acceptance_5_concurrent_answers_equal_sequential_ones(llm: MPlusLLM) -> None:
    llm.memorize(NOTE, source="notes")
    prompts = [f"Question number {n}?" for n in range(6)]

    async def at_once() -> list[str]:
        return [answer.text for answer in await asyncio.gather(*(llm.acomplete(p) for p in prompts))]

    assert asyncio.run(at_once()) == [llm.complete(p).text for p in prompts]


# --- whose memory ---------------------------------------------------------------------------------------


def test_what_was_memorized_is_read_and_can_be_forgotten(llm: MPlusLLM) -> None:
    assert llm.chat(QUESTION).raw["prefix_tokens"] == 0
    items = [NOTE, Document(text="A page about pears and plums.", id_="fruit.md"), ChatMessage(content="I am in Graz.")]
    assert llm.memorize(items) > 0
    assert asyncio.run(llm.amemorize("Another note, about the weather.", source="w")) > 0
    assert llm.chat(QUESTION).raw["prefix_tokens"] > 0
    names = [source.name for source in llm.latents().read(MODEL).sources()]
    assert names == ["text-1", "fruit.md", "text-3", "w"]
    assert llm.forget("fruit.md") > 0 and llm.forget("fruit.md") == 0


def test_names_need_no_store_and_a_store_keeps_them(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL, max_tokens=4)
    llm.memorize(NOTE, memory_key="alice")
    assert llm.chat(QUESTION, memory_key="alice").raw["prefix_tokens"] > 0
    assert llm.chat(QUESTION).raw["prefix_tokens"] == 0
    MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), memory_key="alice").memorize(NOTE)
    again = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), memory_key="alice", max_tokens=4)
    assert again.chat(QUESTION).raw["prefix_tokens"] > 0


def test_a_given_memory_is_read_by_every_call(llm: MPlusLLM) -> None:
    memory = MODEL.new_memory()
    MODEL.write(memory, NOTE, source="notes")
    assert MPlusLLM(model=MODEL, memory=memory, max_tokens=2).complete("Hi").raw["prefix_tokens"] > 0
    bound = llm.reading(memory, lambda name, _: name != "notes")
    assert llm.reading(memory).complete("Hi").raw["prefix_tokens"] > 0
    assert bound.complete("Hi").text == llm.complete("Hi").text  # nothing left to read: exactly the backbone
    with pytest.raises(ValueError, match="memory="):
        MPlusLLM(model=MODEL, memory=memory, memory_key="alice")
    with pytest.raises(ValueError, match="memory="):
        MPlusLLM(model=MODEL, memory=memory).complete("Hi", memory_key="alice")


def test_only_some_sources_are_read(llm: MPlusLLM) -> None:
    llm.memorize(NOTE, source="a", metadata={"lang": "en"})
    llm.memorize("Der Hund heißt Keks.", source="b", metadata={"lang": "de"})
    both = llm.chat(QUESTION).raw["prefix_tokens"]
    one = llm.chat(QUESTION, where={"lang": "de"}).raw["prefix_tokens"]
    assert 0 < one < both


def test_a_history_longer_than_the_window_flows_into_memory_once() -> None:
    model = tiny_model(memory=TINY, max_position_embeddings=640)
    llm = MPlusLLM(model=model)
    history = [
        ChatMessage(role="assistant" if n % 2 else "user", content=f"Turn {n} is about box {n}. " * 4)
        for n in range(12)
    ]
    history.append(ChatMessage(role="user", content="What was the first box?"))
    assert llm.chat(history, max_tokens=4).raw["prefix_tokens"] > 0
    names = [source.name for source in llm.latents().read(model).sources()]
    assert 0 < len(names) < len(history)
    llm.chat(history, max_tokens=4)
    assert [source.name for source in llm.latents().read(model).sources()] == names
    fresh = llm.chat([ChatMessage(role="user", content="Somebody else asks.")], max_tokens=2)
    assert fresh.raw["prefix_tokens"] == 0  # without names, conversations do not see each other


# --- what LlamaIndex sees ---------------------------------------------------------------------------------


def test_raw_is_json_with_usage_and_recalled_sources(llm: MPlusLLM) -> None:
    for n in range(8):
        llm.memorize(f"Note {n}: box {n} holds {'pears' if n % 2 else 'plums'}, as always.", source=f"note-{n}")
    raw = json.loads(json.dumps(llm.chat([ChatMessage(content="What does box 1 hold?")]).raw))
    assert raw["usage"]["total_tokens"] == raw["usage"]["prompt_tokens"] + raw["usage"]["completion_tokens"] > 0
    assert sum(r["share"] for r in raw["recalled"]) == pytest.approx(1)
    assert {r["source"] for r in raw["recalled"]} <= {f"note-{n}" for n in range(8)}
    assert json.loads(llm.to_json())["model"] == "tiny-llama"


def test_an_unsure_answer_is_a_set_reply(llm: MPlusLLM) -> None:
    sure = llm.chat(QUESTION)
    assert 0 <= sure.raw["confidence"] <= 1 and not sure.raw["abstained"]
    unsure = llm.chat(QUESTION, abstain_below=1.0, abstain_reply="No idea.")
    assert unsure.message.content == "No idea." and unsure.raw["abstained"]
    chunks = list(llm.stream_chat(QUESTION, abstain_below=1.0, abstain_reply="No idea."))
    assert "".join(c.delta or "" for c in chunks) == chunks[-1].message.content == "No idea."


def test_callbacks_and_instrumentation_are_called(llm: MPlusLLM) -> None:
    counter = TokenCountingHandler(tokenizer=MODEL.tokenizer.encode)
    llm.callback_manager = CallbackManager([counter])
    seen: list[Any] = []

    class Handler(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            seen.append(event)

    root = get_dispatcher()
    handler = Handler()
    root.add_event_handler(handler)
    try:
        usage = llm.chat(QUESTION).raw["usage"]
        list(llm.stream_chat(QUESTION))
    finally:
        root.event_handlers.remove(handler)
    assert counter.llm_token_counts[0].completion_token_count == usage["completion_tokens"]
    assert counter.llm_token_counts[0].prompt_token_count == usage["prompt_tokens"]
    assert len(counter.llm_token_counts) == 2
    kinds = [type(event) for event in seen]
    assert kinds.count(LLMChatStartEvent) == kinds.count(LLMChatEndEvent) == 2 and LLMChatInProgressEvent in kinds
    for event in seen:
        json.dumps(event.model_dump(mode="json"))


def test_prompts_are_predicted_and_streamed(llm: MPlusLLM) -> None:
    template = PromptTemplate("What is {thing}?")
    text = llm.predict(template, thing="tea")
    assert text == llm.complete("What is tea?").text == "".join(llm.stream(template, thing="tea"))
    told = MPlusLLM(model=MODEL, max_tokens=12, system_prompt="Be brief.")
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(content="What is tea?")]
    assert told.predict(template, thing="tea") == llm.chat(messages).message.content


def test_per_call_settings_count_and_unknown_ones_are_named(llm: MPlusLLM) -> None:
    assert llm.complete("hi", max_tokens=3).raw["usage"]["completion_tokens"] <= 3
    one, two = (llm.complete("hi", temperature=1.5, seed=7).text for _ in range(2))
    assert one == two != llm.complete("hi").text
    for call in (llm.complete, llm.stream_complete):
        with pytest.raises(ValueError, match="max_new_tokens"):
            call("hi", max_new_tokens=3)
    with pytest.raises(ValueError, match="max_new_tokens"):
        asyncio.run(llm.achat(QUESTION, max_new_tokens=3))


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least one message"),
        ([{"role": "user", "content": "x"}], "Message of type dict"),
        ([ChatMessage(role="user", content="")], "expected text"),
        ([ChatMessage(role="user", content="  \n")], "expected text"),
        ([ChatMessage(role="user", blocks=[])], "expected text"),
        ([ChatMessage(role="user", blocks=[TextBlock(text="a"), ImageBlock(url="http://x/y.png")])], "'image'"),
        (
            [
                ChatMessage(content="x"),
                ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="f", tool_kwargs="{a")]),
            ],
            "'f'",
        ),
    ],
)
def test_messages_that_cannot_be_read_are_named_and_no_memory_is_touched(
    llm: MPlusLLM, messages: list[Any], said: str
) -> None:
    llm.memorize(NOTE)
    before = llm.latents().read(MODEL).fingerprint
    for call in (llm.chat, llm.stream_chat):
        with pytest.raises(ValueError, match=said):
            call(messages)
    with pytest.raises(ValueError, match=said):
        asyncio.run(llm.achat(messages))
    with pytest.raises(ValueError, match=said):
        asyncio.run(llm.astream_chat(messages))  # type: ignore[arg-type]
    assert llm.latents().read(MODEL).fingerprint == before


def test_an_unknown_role_is_refused_by_the_message_itself() -> None:
    with pytest.raises(ValueError, match="role"):
        ChatMessage(role="oracle", content="x")


def test_every_role_of_llama_index_is_read(llm: MPlusLLM) -> None:
    thought = ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="Yes.")])
    for role in ("system", "developer", "assistant", "chatbot", "model", "tool", "function"):
        assert llm.chat([ChatMessage(role=role, content="x"), thought, *QUESTION], max_tokens=1).raw


@pytest.mark.parametrize("key", ["", " ", 1.5, ["anna"]])
def test_a_wrong_memory_key_is_refused_and_no_memory_touched(tmp_path: Path, llm: MPlusLLM, key: Any) -> None:
    stored = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path / "s"))
    for one in (stored, llm):
        for call in (one.complete, one.memorize, one.forget):
            with pytest.raises(ValueError, match="memory_key"):
                call("hi", memory_key=key)
    assert list((tmp_path / "s").iterdir()) == []


def test_a_failed_memorize_writes_nothing(llm: MPlusLLM) -> None:
    with pytest.raises(ValueError, match="nothing to write"):
        llm.memorize(["This is fine and long enough.", ""])
    with pytest.raises(ValueError, match="Cannot memorize int"):
        llm.memorize(["This is fine and long enough.", 7])  # type: ignore[list-item]
    assert llm.latents().read(MODEL).sources() == []


@pytest.mark.default_model
def test_the_default_model_remembers_through_llama_index(default_model: mplus.MPlus) -> None:
    llm = MPlusLLM(model=default_model, max_tokens=24)
    llm.memorize("My dog is called Biscuit and he is three years old.", source="notes")
    assert "Biscuit" in llm.complete("What is my dog's name?").text


def test_answers_of_a_scheduler_are_those_of_the_model(tmp_path: Path) -> None:
    model = tiny_model(memory=TINY)
    alone = MPlusLLM(model=model, max_tokens=12, store=MemoryStore(tmp_path))
    for user in ("anna", "ben"):
        alone.memorize(f"{user} likes bread. " * 6, source="notes", memory_key=user)

    async def asked(llm: MPlusLLM) -> list[str | None]:
        answers = await asyncio.gather(*(llm.achat(QUESTION, memory_key=user) for user in ("anna", "ben", "anna")))
        return [answer.message.content for answer in answers]

    expected = asyncio.run(asked(alone))
    with model.serve() as scheduler:
        together = alone.model_copy(update={"scheduler": scheduler})
        assert asyncio.run(asked(together)) == expected
        assert "scheduler" not in together.model_dump()
