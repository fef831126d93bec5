import asyncio
import threading
import time
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, FunctionMessage, HumanMessage, SystemMessage
from langchain_tests.unit_tests import ChatModelUnitTests

import mplus
from mplus.testing import tiny_model
from mplus_integrations import MPlusChat
from tests.conftest import TINY


class TestStandard(ChatModelUnitTests):
    """LangChain's own suite; nothing is deleted, tool calling is declared as not offered yet."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return MPlusChat

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smol-135m"}


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=tiny_model(memory=TINY), max_tokens=12)


def test_constructing_loads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mplus.MPlus, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    for _ in range(10):
        MPlusChat()


def test_invoke_stream_and_async_agree(chat: MPlusChat) -> None:
    chat.memorize("My dog is called Biscuit, and he likes bread with butter.", source="notes")
    question = "What is my dog called?"
    whole = chat.invoke(question)
    chunks = list(chat.stream(question))
    assert "".join(str(c.content) for c in chunks) == whole.content
    assert sum(c.usage_metadata is not None for c in chunks) == 1
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.response_metadata == whole.response_metadata
    assert total.usage_metadata == whole.usage_metadata

    async def both() -> tuple[Any, str]:
        streamed = [c.content async for c in chat.astream(question)]
        return (await chat.ainvoke(question)).content, "".join(streamed)

    assert asyncio.run(both()) == (whole.content, whole.content)


def test_the_answer_names_what_it_recalled(chat: MPlusChat) -> None:
    for n in range(8):
        chat.memorize(f"Note {n}: box {n} holds {'pears' if n % 2 else 'plums'}, as always.", source=f"note-{n}")
    answer = chat.invoke("What does box 1 hold?")
    metadata = answer.response_metadata
    assert metadata["model_name"] == "tiny-llama" and metadata["finish_reason"] in ("stop", "length")
    assert sum(r["share"] for r in metadata["recalled"]) == pytest.approx(1)
    assert {r["source"] for r in metadata["recalled"]} <= {f"note-{n}" for n in range(8)}
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0


def test_documents_and_messages_can_be_memorized(chat: MPlusChat) -> None:
    documents = [Document("A page about pears and plums.", metadata={"source": "fruit.md", "page": 2})]
    messages = [HumanMessage("I live in Graz, in an old house.", id="m1"), AIMessage("How nice to hear that!", id="m2")]
    assert chat.memorize(documents) > 0
    assert asyncio.run(chat.amemorize(messages)) > 0
    with chat.opened() as memory:
        pass
    assert [s.name for s in memory.sources()] == ["fruit.md", "m1", "m2"]
    assert memory.sources()[0].metadata == {"source": "fruit.md", "page": 2}
    assert chat.forget("fruit.md") == 29
    assert [s.name for s in memory.sources()] == ["m1", "m2"]


def test_a_failed_memorize_writes_nothing(chat: MPlusChat) -> None:
    with pytest.raises(ValueError, match="nothing to write"):
        chat.memorize(["This is fine and long enough.", ""])
    with chat.opened() as memory:
        assert memory.sources() == []


def test_a_global_cache_never_hides_a_write(chat: MPlusChat) -> None:
    from langchain_core.caches import InMemoryCache

    cached = MPlusChat(model=chat.loaded, max_tokens=12, cache=InMemoryCache())
    first = cached.invoke("What is my dog called?")
    assert cached.invoke("What is my dog called?").content == first.content
    before = cached._get_llm_string()
    cached.memorize("My dog is called Biscuit, and he likes bread with butter.")
    assert cached._get_llm_string() != before
    assert cached.invoke("What is my dog called?").response_metadata["prefix_tokens"] > 0


def test_users_have_memories_of_their_own(tmp_path, chat: MPlusChat) -> None:
    shared = MPlusChat(model=chat.loaded, store=mplus.MemoryStore(tmp_path), max_tokens=8)
    shared.memorize("Alice keeps the key under the pot.", memory_key="alice", source="a")
    bob = shared.invoke("Where is the key?", memory_key="bob")
    fresh = MPlusChat(model=chat.loaded, max_tokens=8).invoke("Where is the key?")
    assert bob.content == fresh.content and bob.response_metadata["prefix_tokens"] == 0
    assert shared.invoke("Where is the key?", memory_key="alice").response_metadata["prefix_tokens"] > 0
    again = MPlusChat(model=chat.loaded, store=mplus.MemoryStore(tmp_path), memory_key="alice", max_tokens=8)
    assert again.invoke("Where is the key?").response_metadata["prefix_tokens"] > 0


@pytest.mark.parametrize("key", ["../up", "a" * 10_000, "a/b", "☃"])
def test_a_wrong_memory_key_is_refused(tmp_path, chat: MPlusChat, key: str) -> None:
    shared = MPlusChat(model=chat.loaded, store=mplus.MemoryStore(tmp_path / "s"))
    with pytest.raises(ValueError, match="memory_key="):
        shared.invoke("hi", memory_key=key)
    assert list((tmp_path / "s").iterdir()) == []


def test_names_without_a_store_live_as_long_as_the_chat(chat: MPlusChat) -> None:
    chat.memorize("Alice keeps the key under the pot.", memory_key="alice")
    assert chat.invoke("Where?", memory_key="alice").response_metadata["prefix_tokens"] > 0
    assert chat.invoke("Where?", memory_key="bob").response_metadata["prefix_tokens"] == 0
    assert chat.invoke("Where?").response_metadata["prefix_tokens"] == 0


def test_one_given_memory_has_no_names(chat: MPlusChat) -> None:
    one = MPlusChat(model=chat.loaded, memory=chat.loaded.new_memory())
    with pytest.raises(ValueError, match="made with memory="):
        one.invoke("hi", memory_key="alice")
    with pytest.raises(ValueError, match="one of them"):
        MPlusChat(model=chat.loaded, memory=chat.loaded.new_memory(), memory_key="alice")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([FunctionMessage("x", name="f")], "FunctionMessage"),
        ([HumanMessage([{"type": "image_url", "image_url": "x"}])], "image_url"),
    ],
)
def test_what_cannot_be_read_is_named(chat: MPlusChat, messages: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat.invoke(messages)


def test_text_blocks_and_system_messages_are_read(chat: MPlusChat) -> None:
    blocks = [SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "Hi "}, "there"])]
    assert chat.invoke(blocks).content == chat.invoke([("system", "Be brief."), ("user", "Hi \nthere")]).content


class Slow:
    """A logits processor that takes its time and counts."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, tokens: list[int], logits: Any) -> Any:
        self.steps += 1
        time.sleep(0.02)
        return logits


@pytest.fixture
def slow(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> Slow:
    counter, real = Slow(), chat.loaded.stream
    monkeypatch.setattr(chat.loaded, "stream", lambda *a, **k: real(*a, **k, processors=[counter]))
    return counter


def test_the_event_loop_ticks_while_answers_are_made(chat: MPlusChat, slow: Slow) -> None:
    async def run() -> float:
        longest, last = 0.0, time.monotonic()
        done = asyncio.Event()

        async def answer() -> None:
            await chat.ainvoke("hello", max_tokens=15)
            async for _ in chat.astream("hello", max_tokens=15):
                pass
            done.set()

        task = asyncio.create_task(answer())
        while not done.is_set():
            await asyncio.sleep(0.001)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await task
        return longest

    assert asyncio.run(run()) < 0.25


@pytest.mark.parametrize("how", ["cancel ainvoke", "break astream", "break stream"])
def test_leaving_early_stops_generation(chat: MPlusChat, slow: Slow, how: str) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(chat.ainvoke("hello", max_tokens=200))
        while slow.steps < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def leave() -> None:
        stream = chat.astream("hello", max_tokens=200)
        async for _ in stream:
            break
        await stream.aclose()

    if how == "break stream":
        for _ in chat.stream("hello", max_tokens=200):
            break
    else:
        asyncio.run(cancel() if "ainvoke" in how else leave())
    steps = slow.steps
    time.sleep(0.2)
    assert slow.steps <= steps + 2
    assert steps < 50


def test_an_error_reaches_whoever_reads_the_stream(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tokens: list[int], logits: Any) -> Any:
        raise RuntimeError("broken")

    real = chat.loaded.stream
    monkeypatch.setattr(chat.loaded, "stream", lambda *a, **k: real(*a, **k, processors=[fail]))

    async def read() -> None:
        async for _ in chat.astream("hello"):
            pass

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(read())
    with pytest.raises(RuntimeError, match="broken"):
        list(chat.stream("hello"))


def test_concurrent_answers_equal_sequential_ones(chat: MPlusChat) -> None:
    chat.memorize("My dog is called Biscuit, and he likes bread with butter.", source="notes")
    prompts = [f"Question number {n}?" for n in range(6)]
    assert [m.content for m in chat.batch(prompts)] == [chat.invoke(p).content for p in prompts]
    assert threading.active_count() < 60


@pytest.mark.default_model
def test_the_default_model_remembers_through_langchain(default_model: mplus.MPlus) -> None:
    chat = MPlusChat(model=default_model, max_tokens=24)
    chat.memorize("My dog is called Biscuit and he is three years old.", source="notes")
    assert "Biscuit" in str(chat.invoke("What is my dog's name?").content)
