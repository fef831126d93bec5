"""Agents with memory, beyond the acceptance lines."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY)


async def test_the_middleware_works_async_with_a_context_key(tmp_path: Any) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=6)
    agent = create_agent(chat, tools=[], middleware=[MPlusMemoryMiddleware(chat)], context_schema=dict)
    await agent.ainvoke({"messages": [HumanMessage("I live in Graz.", id="h1")]}, context={"memory_key": "anna"})
    with chat.opened("anna") as memory:
        assert memory.sources()[0].name == "h1"


def test_the_memory_tools_remember_recall_and_forget(tmp_path: Any) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=6)
    tools = {tool.name: tool for tool in MPlusMemoryMiddleware(chat, tools=True).tools}
    assert "Remembered" in tools["remember"].invoke({"text": "The key is under the pot.", "source": "key"})
    assert "under the pot" in tools["recall"].invoke({"query": "Where is the key?"})
    assert "Forgot" in tools["forget"].invoke({"source": "key"})
    assert "Nothing" in tools["recall"].invoke({"query": "Where is the key?"})


def test_threads_without_a_store_have_memories_of_their_own() -> None:
    chat = MPlusChat(model=MODEL, max_tokens=4)
    agent = create_agent(chat, tools=[], middleware=[MPlusMemoryMiddleware(chat)])
    config: Any = {"configurable": {"thread_id": "anna"}}
    agent.invoke({"messages": [HumanMessage("I live in Graz.", id="h1")]}, config)
    with chat.opened("anna") as memory:
        assert memory.sources()[0].name == "h1"
    for other in ("bob", None):
        with chat.opened(other) as memory:
            assert memory.sources() == []


def test_a_chat_with_one_memory_keeps_to_it() -> None:
    memory = MODEL.new_memory()
    chat = MPlusChat(model=MODEL, memory=memory, max_tokens=4)
    agent = create_agent(chat, tools=[], middleware=[MPlusMemoryMiddleware(chat, tools=True)])
    agent.invoke({"messages": [HumanMessage("Hello.", id="h1")]}, {"configurable": {"thread_id": "anna"}})
    assert memory.sources()[0].name == "h1"


@pytest.mark.parametrize("place", ["memory_key", "user_id", "thread_id"])
def test_the_nearest_name_counts(place: str, tmp_path: Any) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=4)
    agent = create_agent(chat, tools=[], middleware=[MPlusMemoryMiddleware(chat)])
    names = ["memory_key", "user_id", "thread_id"]
    config: Any = {"configurable": {name: name for name in names[names.index(place) :]}}
    agent.invoke({"messages": [HumanMessage("Hello there.")]}, config)
    assert [memory.name for memory in MemoryStore(tmp_path).list()] == [place]
