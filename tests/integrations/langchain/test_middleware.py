"""Agents with memory, beyond the acceptance lines."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver

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


class Thread:
    """An agent with a checkpointer, and the memory of its thread."""

    def __init__(self, **settings: Any) -> None:
        self.chat = MPlusChat(model=tiny_model(1, memory=TINY, prompt_turns=0), max_tokens=6, **settings)
        self.agent = create_agent(
            self.chat, tools=[], middleware=[MPlusMemoryMiddleware(self.chat)], checkpointer=InMemorySaver()
        )
        self.config: Any = {"configurable": {"thread_id": "anna"}}

    def say(self, text: str, name: str, config: Any = None) -> str:
        state = self.agent.invoke({"messages": [HumanMessage(text, id=name)]}, config or self.config)
        return state["messages"][-1].id

    def texts(self) -> dict[str, str]:
        with self.chat.opened("anna") as memory:
            return {source.name: " ".join(source.texts) for source in memory.sources()}


def test_earlier_turns_are_read_from_memory_and_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, asked = Thread(), list[Any]()
    real = thread.chat.loaded.stream

    def stream(memory: Any, prompt: Any, **options: Any) -> Any:
        asked.append([message["content"] for message in prompt])
        return real(memory, prompt, **options)

    monkeypatch.setattr(thread.chat.loaded, "stream", stream)
    one, two = thread.say("I live in Graz, near the park.", "h1"), thread.say("I play the cello.", "h2")
    assert asked == [["I live in Graz, near the park."], ["I play the cello."]]
    assert list(thread.texts()) == ["h1", one, "h2", two]


def test_a_removed_and_an_edited_message_are_forgotten() -> None:
    thread = Thread()
    one = thread.say("I live in Graz, near the park.", "h1")
    thread.say("I play the cello.", "h2")
    changes = [RemoveMessage(id=one), HumanMessage("I live in Linz, near the park.", id="h1")]
    thread.agent.update_state(thread.config, {"messages": changes})
    thread.say("Where do I live?", "h3")
    texts = thread.texts()
    assert one not in texts and texts["h1"] == "User: I live in Linz, near the park." and "h2" in texts
    assert "Graz" not in str(texts)


def test_what_was_said_after_a_checkpoint_that_a_thread_goes_back_to_is_forgotten() -> None:
    thread = Thread()
    thread.say("I live in Graz, near the park.", "h1")
    back = thread.agent.get_state(thread.config).config
    two = thread.say("My code is 4711.", "h2")
    assert two in thread.texts()
    thread.say("Hello again.", "h3", back)
    assert "4711" not in str(thread.texts()) and {"h1", "h3"} <= set(thread.texts()) and two not in thread.texts()


def test_another_thread_of_the_same_user_forgets_nothing() -> None:
    thread = Thread(memory_key=None)
    configs: list[Any] = [{"configurable": {"user_id": "anna", "thread_id": name}} for name in ("t1", "t2")]
    thread.say("I live in Graz, near the park.", "h1", configs[0])
    thread.say("I play the cello.", "h2", configs[1])
    assert {"h1", "h2"} <= set(thread.texts())


def test_a_summary_is_not_written_and_what_it_sums_up_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Thread()
    one = thread.say("I live in Graz, near the park.", "h1")
    summary = HumanMessage("Summary: Anna lives in Graz.", id="s1", additional_kwargs={"lc_source": "summarization"})
    state = thread.agent.get_state(thread.config).values["messages"]
    removed = [RemoveMessage(id=message.id) for message in state]
    thread.agent.update_state(thread.config, {"messages": [*removed, summary, AIMessage("I see, I do.", id="a9")]})
    for name in ("h2", "h3"):
        thread.say("Where do I live?", name)
        texts = thread.texts()
        assert {"h1", one, "a9", name} <= set(texts) and "s1" not in texts and "Summary" not in str(texts)
    thread.agent.update_state(thread.config, {"messages": [RemoveMessage(id="h2")]})
    thread.say("And now?", "h4")
    assert "h2" not in thread.texts() and "h1" in thread.texts()


def test_forget_thread_forgets_what_was_said_in_a_deleted_thread() -> None:
    thread = Thread()
    thread.say("I live in Graz, near the park.", "h1")
    other: Any = {"configurable": {"memory_key": "anna", "thread_id": "t2"}}
    thread.say("I play the cello.", "h2", other)
    middleware = MPlusMemoryMiddleware(thread.chat)
    assert middleware.forget_thread("anna") == 2
    assert "Graz" not in str(thread.texts()) and "h2" in thread.texts()
    assert middleware.forget_thread("t2", memory_key="anna") == 2 and thread.texts() == {}
    assert middleware.forget_thread("t2", memory_key="anna") == 0


def test_a_thread_that_was_deleted_and_begins_anew_forgets_what_it_said_before() -> None:
    thread = Thread()
    thread.say("I live in Graz, near the park.", "h1")
    thread.agent.checkpointer.delete_thread("anna")
    thread.say("Hello.", "h2")
    assert "Graz" not in str(thread.texts()) and "h2" in thread.texts()


def test_the_remember_tool_gives_each_note_a_source_of_its_own() -> None:
    chat = MPlusChat(model=MODEL)
    remember, recall, forget = MPlusMemoryMiddleware(chat, tools=True).tools
    said = [remember.invoke({"text": f"Box {n} is red."}) for n in range(2)]
    said += [remember.invoke({"text": f"Key {n} is blue.", "source": "key"}) for n in range(2)]
    assert len(set(said)) == 4 and said[2] == "Remembered as key."
    with chat.opened() as memory:
        assert sorted(" ".join(s.texts) for s in memory.sources()) == [
            *("Box 0 is red.", "Box 1 is red.", "Key 0 is blue.", "Key 1 is blue."),
        ]
    assert "Forgot" in forget.invoke({"source": "key"})
    assert "Key 1" in recall.invoke({"query": "Key 1 is blue."})
