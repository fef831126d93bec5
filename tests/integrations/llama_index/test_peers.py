"""What other local-model integrations and LlamaIndex's stock classes get wrong: ours does not.

Each test first shows, where it can, that the stock class still does it.
"""

import asyncio
import json
import time
from typing import Any

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.llms.types import ChatResponse, CompletionResponse, CompletionResponseGen, LLMMetadata
from llama_index.core.llms import ChatMessage, CustomLLM, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.memory import Memory as StockMemory
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, JsonSerializer, StartEvent, StopEvent, Workflow, step

import mplus
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory
from tests.integrations.llama_index.conftest import MODEL, Slow

QUESTION = [ChatMessage(content="What is my dog called?")]


class Sleepy(CustomLLM):
    """A stock custom LLM."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        time.sleep(0.3)
        return CompletionResponse(text="x")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        raise NotImplementedError


async def longest_pause(work: Any) -> float:
    longest, last, task = 0.0, time.monotonic(), asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    await task
    return longest


def test_async_members_do_not_block_the_event_loop_as_custom_llms_do(llm: MPlusLLM, slow: Slow) -> None:
    assert asyncio.run(longest_pause(Sleepy().achat(QUESTION))) > 0.25
    assert asyncio.run(longest_pause(llm.achat(QUESTION, max_tokens=15))) < 0.25


def test_no_nodes_mean_an_empty_response_as_in_the_stock_engine(llm: MPlusLLM, asked: list[Any]) -> None:
    class Finds(BaseRetriever):
        def _retrieve(self, query_bundle: Any) -> list[Any]:
            return []

    stock = RetrieverQueryEngine.from_args(Finds(), llm=llm).query("Hi?")
    assert str(MPlusIndex(nodes=[], llm=llm).as_query_engine().query("Hi?")) == str(stock) == "Empty Response"
    assert not asked


def test_a_deleted_document_is_gone_and_can_come_again(llm: MPlusLLM) -> None:
    document = Document(text="Box 1 is in the hall.", id_="d")
    stock = SummaryIndex.from_documents([document])
    stock.delete_ref_doc("d")
    assert stock.refresh_ref_docs([document]) == [False]  # the stock index still thinks it has it
    ours = MPlusIndex.from_documents([document], llm=llm)
    ours.delete_ref_doc("d")
    assert "hall" not in str(ours.docstore.docs) and ours.refresh_ref_docs([document]) == [True]


class Keeps(Workflow):
    """Keeps a memory in its context."""

    @step
    async def keep(self, ctx: Context, ev: StartEvent) -> StopEvent:
        await ctx.store.set("memory", ev.get("memory"))
        return StopEvent(result=None)


@pytest.mark.filterwarnings("ignore:Skipping serialization")
async def test_a_memory_is_not_dropped_from_a_context(llm: MPlusLLM) -> None:
    async def kept(memory: Any) -> str:
        workflow = Keeps()
        context = Context(workflow)
        await workflow.run(ctx=context, memory=memory)
        return json.dumps(context.to_dict())

    stock = StockMemory.from_defaults(session_id="a")
    ours = MPlusMemory.from_defaults(llm=llm)
    for memory in (stock, ours):
        await memory.aput(ChatMessage(content="I live in Graz."))
    assert "Graz" not in await kept(stock)
    saved = await kept(ours)
    assert "Graz" in saved
    restored = Context.from_dict(Keeps(), json.loads(saved), serializer=JsonSerializer())
    assert restored is not None
    await stock.sql_store._async_engine.dispose()  # type: ignore[union-attr]


def test_what_no_longer_fits_is_not_lost(llm: MPlusLLM) -> None:
    stock = ChatMemoryBuffer.from_defaults(token_limit=30, tokenizer_fn=MODEL.tokenizer.encode)
    ours = MPlusMemory.from_defaults(llm=llm, token_limit=30)
    for memory in (stock, ours):
        memory.put_messages([ChatMessage(content=text) for text in ("The code is 4719.", "I like pears and plums.")])
        assert "4719" not in str(memory.get())
    assert llm.chat(ours.get()).raw["prefix_tokens"] > 0
    assert llm.chat(stock.get()).raw["prefix_tokens"] == 0


def test_tools_reach_the_prompt(llm: MPlusLLM) -> None:
    def lookup(word: str) -> str:
        """Look up a rare word."""
        return word

    tool = FunctionTool.from_defaults(lookup)
    with_tool = llm.chat_with_tools([tool], "Hi", max_tokens=1).raw["usage"]["prompt_tokens"]
    assert with_tool > llm.chat_with_tools([], "Hi", max_tokens=1).raw["usage"]["prompt_tokens"] + len(
        "Look up a rare word."
    )


def test_the_last_message_need_not_be_a_users(llm: MPlusLLM) -> None:
    messages = [
        *QUESTION,
        ChatMessage(role="assistant", content="Biscuit."),
        ChatMessage(role="system", content="Go on."),
    ]
    assert llm.chat(messages).message.role.value == "assistant"


def test_the_prompt_is_not_echoed(llm: MPlusLLM) -> None:
    assert "dog" not in (llm.chat(QUESTION).message.content or "")
    assert not llm.complete("What is my dog called?", formatted=True).text.startswith("What")


def test_max_tokens_stop_and_usage_count(llm: MPlusLLM, slow: Slow) -> None:
    response = llm.chat(QUESTION, max_tokens=3)
    assert response.raw["finish_reason"] == "length" and response.raw["usage"]["completion_tokens"] == 3


def test_a_stream_ends_when_generation_fails(llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(MODEL, "stream", fails)
    with pytest.raises(RuntimeError, match="broken"):
        list(llm.stream_chat(QUESTION))

    async def read() -> list[ChatResponse]:
        return [chunk async for chunk in await llm.astream_chat(QUESTION)]

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(asyncio.wait_for(read(), 5))


def test_an_abandoned_stream_does_not_keep_generating(llm: MPlusLLM, slow: Slow) -> None:
    stream = llm.stream_complete("Hi", max_tokens=200)
    next(stream)
    del stream
    steps = slow.steps
    time.sleep(0.1)
    assert slow.steps == steps < 10


def test_there_is_one_bos(llm: MPlusLLM, asked: list[Any]) -> None:
    llm.complete("Hi", formatted=True, max_tokens=1)
    ids = MODEL.read_request(MODEL.new_memory(), asked[0]).input_ids
    assert list(ids).count(MODEL.tokenizer.bos_token_id) <= 1


def test_raw_holds_no_tensors(llm: MPlusLLM) -> None:
    for chunk in llm.stream_chat(QUESTION):
        json.dumps(chunk.raw)
    json.dumps(llm.complete("Hi").raw)


def test_an_llm_cache_of_a_pipeline_is_not_asked_for_stale_answers(llm: MPlusLLM) -> None:
    engine = MPlusIndex.from_documents([Document(text="Box 1 is in the hall.")], llm=llm).as_query_engine()
    first = str(engine.query("Where is box 1?"))
    assert str(engine.query("Where is box 1?")) == first
    assert isinstance(llm.loaded, mplus.MPlus) and not isinstance(llm, MockLLM)
