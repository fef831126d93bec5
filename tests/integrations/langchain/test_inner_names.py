"""A call within a run: the name that the call itself was given counts before the names of the run around it."""

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusRetriever
from mplus_integrations.langchain.configs import asked_in
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY, prompt_turns=0)
ANNA, OPERATOR = {"memory_key": "anna"}, {"memory_key": "operator"}
TOLD: Any = {"metadata": ANNA}
AROUND: dict[str, Any] = {"metadata": {"metadata": OPERATOR}, "configurable": {"configurable": OPERATOR}}
HISTORY = [HumanMessage("My code is 4711, keep it."), AIMessage("I shall."), HumanMessage("What is my code?")]


class Wrapper(BaseRetriever):
    """Passes on its callbacks and nothing that was configured, as retrievers of langchain-classic do."""

    inner: MPlusRetriever

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.inner.invoke(query, {"callbacks": run_manager.get_child()})

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        return await self.inner.ainvoke(query, {"callbacks": run_manager.get_child()})


@pytest.fixture
def chat(tmp_path: Path) -> MPlusChat:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    for key in ("anna", "operator"):
        chat.memorize(f"The code is of {key}.", memory_key=key)
    return chat


def found(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


@pytest.mark.parametrize("around", AROUND)
def test_a_retriever_within_a_run_searches_the_memory_that_its_call_names(around: str, chat: MPlusChat) -> None:
    wrapper = Wrapper(inner=MPlusRetriever(chat=chat))

    async def asked(query: str) -> list[Document]:
        return await wrapper.ainvoke(query, TOLD)

    outer = RunnableLambda(lambda query: wrapper.invoke(query, TOLD), afunc=asked)
    assert found(outer.invoke("code", AROUND[around])) == ["The code is of anna."]
    assert found(asyncio.run(outer.ainvoke("code", AROUND[around]))) == ["The code is of anna."]
    assert found(RunnableLambda(wrapper.invoke).invoke("code", AROUND[around])) == ["The code is of operator."]


def test_what_a_run_was_configured_counts_before_metadata_that_its_callbacks_have_from_further_out(
    chat: MPlusChat,
) -> None:
    wrapper = Wrapper(inner=MPlusRetriever(chat=chat))
    inner = RunnableLambda(lambda query: wrapper.invoke(query))
    outer = RunnableLambda(lambda query: inner.invoke(query, {"configurable": ANNA}))
    assert found(outer.invoke("code", AROUND["metadata"])) == ["The code is of anna."]


WAYS: dict[str, Callable[[MPlusChat], Any]] = {
    "invoke": lambda chat: chat.invoke(HISTORY, TOLD),
    "stream": lambda chat: list(chat.stream(HISTORY, TOLD)),
    "generate": lambda chat: chat.generate([HISTORY], metadata=ANNA),
    "a key of the config": lambda chat: chat.invoke(HISTORY, {**ANNA}),  # type: ignore[typeddict-unknown-key]
    "configured": lambda chat: chat.invoke(HISTORY, {"configurable": ANNA, "metadata": {"memory_key": "bob"}}),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("way", WAYS)
def test_a_chat_within_a_run_reads_the_memory_that_its_call_names(way: str, around: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    RunnableLambda(lambda _: WAYS[way](chat)).invoke("", AROUND[around])
    assert [memory.name for memory in MemoryStore(tmp_path).list()] == ["anna"]


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("way", ["ainvoke", "astream", "agenerate"])
def test_an_asynchronous_chat_too(way: str, around: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)

    async def asked(_: str) -> None:
        if way == "ainvoke":
            await chat.ainvoke(HISTORY, TOLD)
        elif way == "agenerate":
            await chat.agenerate([HISTORY], metadata=ANNA)
        else:
            async for _piece in chat.astream(HISTORY, TOLD):
                pass

    asyncio.run(RunnableLambda(asked).ainvoke("", AROUND[around]))
    assert [memory.name for memory in MemoryStore(tmp_path).list()] == ["anna"]


def test_messages_of_a_graphs_thread_say_nothing_of_another_thread_that_a_call_names() -> None:
    seen: list[dict[str, Any]] = []

    def node(_: MessagesState) -> dict[str, Any]:
        other: RunnableConfig = {"metadata": {"thread_id": "2"}}
        seen.extend(asked_in(None, asked_in(config, {})) for config in (None, other))
        return {"messages": []}

    graph = StateGraph(MessagesState).add_node("ask", node).add_edge(START, "ask")
    graph.compile(checkpointer=InMemorySaver()).invoke({"messages": HISTORY}, {"configurable": {"thread_id": "1"}})
    assert [one["conversation_id"] for one in seen] == ["1", "2"]
    assert len(seen[0]["conversation_says"]) == 3 and "conversation_says" not in seen[1]
    assert seen[0]["conversation_part"] == seen[1]["conversation_part"] == "ask"


LOST: Any = {"callbacks": CallbackManager([], parent_run_id=uuid.uuid4())}
ASKING: dict[str, Callable[[MPlusChat, Any], Any]] = {
    "invoke": lambda chat, config: chat.invoke(HISTORY, config),
    "ainvoke": lambda chat, config: asyncio.run(chat.ainvoke(HISTORY, config)),
    "stream": lambda chat, config: next(chat.stream(HISTORY, config)),
    "astream": lambda chat, config: asyncio.run(anext(chat.astream(HISTORY, config))),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("way", ASKING)
def test_a_chat_refuses_a_config_that_has_nothing_but_callbacks_of_a_chain(way: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    with pytest.raises(ValueError, match="passes no config on"):
        ASKING[way](chat, LOST)
    for free in (chat.model_copy(update={"require_key": False}), chat.model_copy(update={"memory_key": "bob"})):
        ASKING[way](free, LOST)
    ASKING[way](chat, None)


def test_a_chain_without_names_still_answers(tmp_path: Path) -> None:
    chain = PromptTemplate.from_template("{q}") | MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    assert chain.invoke({"q": "Hi."}) and len(chain.batch([{"q": "Hi."}])) == 1 and list(chain.stream({"q": "Hi."}))
