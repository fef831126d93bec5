"""One place decides whose memory a call reads: the same names count for a bare chat, a retriever, tools and agents."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph

import mplus
from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware, MPlusRetriever, memory_tools
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY, prompt_turns=0)
HISTORY = [HumanMessage("My code is 4711, keep it."), AIMessage("I shall."), HumanMessage("What is my code?")]


@dataclass
class Context:
    """What the caller of a graph says about its user."""

    user_id: str


def graph(node: Callable[[Any], Any], **options: Any) -> Any:
    return StateGraph(MessagesState, **options).add_node("ask", node).add_edge(START, "ask").compile()


async def astreamed(chat: MPlusChat, config: Any) -> None:
    async for _ in chat.astream(HISTORY, config):
        pass


def in_tool(chat: MPlusChat, config: Any) -> None:
    remember = memory_tools(chat)[0]
    graph(lambda _: {"messages": [AIMessage(remember.invoke({"text": "My code is 4711."}))]}).invoke(
        {"messages": HISTORY}, config
    )


WAYS: dict[str, Callable[[MPlusChat, Any], Any]] = {
    "invoke": lambda chat, config: chat.invoke(HISTORY, config),
    "astream": lambda chat, config: asyncio.run(astreamed(chat, config)),
    "a chain that passes no config on": lambda chat, config: chat.generate([HISTORY], metadata=config["configurable"]),
    "a node": lambda chat, config: graph(lambda s: {"messages": [chat.invoke(s["messages"])]}).invoke(
        {"messages": HISTORY}, config
    ),
    "memorize in a node": lambda chat, config: graph(lambda _: chat.memorize("4711.") and {"messages": []}).invoke(
        {"messages": HISTORY}, config
    ),
    "a tool": in_tool,
    "an agent": lambda chat, config: create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)]).invoke(
        {"messages": HISTORY}, config
    ),
}
NAMES = ["memory_key", "user_id", "thread_id"]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_names_count_on_every_path(way: str, tmp_path: Path) -> None:
    for number in range(len(NAMES)):
        folder = tmp_path / str(number)
        chat = MPlusChat(model=MODEL, store=MemoryStore(folder), max_tokens=2)
        WAYS[way](chat, {"configurable": {name: name for name in NAMES[number:]}})
        assert [memory.name for memory in MemoryStore(folder).list()] == [NAMES[number]]
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path / "own"), memory_key="own", max_tokens=2)
    WAYS[way](chat, {"configurable": {"thread_id": "t"}})
    assert [memory.name for memory in MemoryStore(tmp_path / "own").list()] == ["own"], "a thread is of its user"


def test_the_user_of_a_graphs_context_counts_in_its_nodes_and_its_agents(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    asks = graph(lambda state: {"messages": [chat.invoke(state["messages"])]}, context_schema=Context)
    asks.invoke({"messages": HISTORY}, {"configurable": {"user_id": "bob"}}, context=Context("anna"))
    agent = create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)], context_schema=Context)
    agent.invoke({"messages": HISTORY}, {"configurable": {"thread_id": "t"}}, context=Context("carol"))
    assert {memory.name for memory in MemoryStore(tmp_path).list()} == {"anna", "carol"}


def test_a_retriever_searches_the_memory_of_the_user(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    chat.memorize("Anna's code is 4711.", memory_key="anna")
    chat.memorize("A code for all is 9999.")
    assert "4711" in str(MPlusRetriever(chat=chat).invoke("code", {"configurable": {"user_id": "anna"}}))
    assert MPlusRetriever(chat=chat).invoke("code", {"configurable": {"thread_id": "t"}}) == []
    single = MPlusChat(model=MODEL, memory=MODEL.new_memory(), max_tokens=2)
    single.memorize("The only code is 1.")
    assert MPlusRetriever(chat=single).invoke("code", {"configurable": {"user_id": "anna"}})
    assert single.invoke("code", {"configurable": {"user_id": "anna", "thread_id": "t"}}) is not None


def test_a_chat_without_a_store_keeps_its_notes_in_every_thread_and_users_apart() -> None:
    chat = MPlusChat(model=MODEL, max_tokens=2)
    chat.memorize("A note for all.")
    thread: Any = {"configurable": {"thread_id": "t"}}
    assert MPlusRetriever(chat=chat).invoke("note", thread)
    assert not MPlusRetriever(chat=chat).invoke("note", {"configurable": {"user_id": "anna"}})


@pytest.mark.parametrize("where", ["a user's memory", "a thread's memory", "no store", "an agent without a store"])
def test_a_conversation_is_forgotten_without_the_middleware(where: str, tmp_path: Path) -> None:
    store = None if "no store" in where or "without" in where else MemoryStore(tmp_path)
    chat = MPlusChat(model=MODEL, store=store, max_tokens=2)
    user = {"user_id": "anna"} if where == "a user's memory" else {}
    key = user.get("user_id")
    named = key or ("one" if where in ("a thread's memory", "an agent without a store") else None)
    asks = create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)]) if where.startswith("an agent") else None
    for thread in ("one", "two"):
        config: Any = {"configurable": {**user, "thread_id": thread}}
        said = [HumanMessage(f"In {thread} the code is 4711."), *HISTORY[1:]]
        chat.invoke(said, config) if asks is None else asks.invoke({"messages": said}, config)
    chat.memorize("A note that stays.", memory_key=named)

    def texts() -> str:
        names = {named, "one", "two"} if where != "a user's memory" else {named}
        return str([s.texts for name in names for s in chat.latents(name).read(MODEL).sources()])

    assert "In one" in texts()
    gone = chat.forget_conversation("one", memory_key=key)
    assert gone >= 2 and "In one" not in texts() and "In two" in texts() and "A note that stays" in texts()
    assert asyncio.run(chat.aforget_conversation("one", memory_key=key)) == 0
    with pytest.raises(ValueError, match="expected the name of a conversation"):
        chat.forget_conversation("")


def test_a_thread_forgets_another_one_of_the_same_user_only_by_name(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    for user in ("anna", "bob"):
        chat.invoke(HISTORY, {"configurable": {"user_id": user, "thread_id": "1"}})
    graph(lambda _: chat.forget_conversation("1") and {"messages": []}).invoke(
        {"messages": HISTORY}, {"configurable": {"user_id": "anna", "thread_id": "2"}}
    )
    assert chat.latents("anna").read(MODEL).sources() == [] and len(chat.latents("bob").read(MODEL).sources()) == 2


def test_a_server_that_is_pickled_or_saved_still_asks_for_a_name(tmp_path: Path) -> None:
    import pickle

    with MODEL.serve() as scheduler:
        chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), scheduler=scheduler, max_tokens=2)
        content, saved = pickle.dumps(chat), chat.model_dump(mode="json", exclude={"model"})
    for again in (pickle.loads(content), MPlusChat(model=MODEL, **saved)):
        with pytest.raises(ValueError, match="No memory_key= was given"):
            again.invoke("What is my code?")


def test_a_chat_of_its_own_fields_as_json_reads_the_same_store(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), memory_key="anna", max_tokens=2)
    chat.memorize("My code is 4711.")
    again = MPlusChat.model_validate_json(chat.model_dump_json())
    assert again.store is not None and again.store.root == tmp_path and again.memory_key == "anna"
    for lost, said in (
        (MPlusChat(model=MODEL, memory=MODEL.new_memory()), "without memory="),
        (MPlusChat(model=MODEL, shared=MODEL.new_memory()), "without shared="),
        (MPlusChat(model=MODEL, embedder=lambda texts: [[1.0] for _ in texts]), "without embedder="),
    ):
        with pytest.raises(ValueError, match=said):
            MPlusChat(**lost.model_dump())


def test_threads_that_were_written_into_default_are_found_once_they_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, threads = MemoryStore(tmp_path / "memories"), {"monday": "pears", "auth0|x/y": "plums"}
    before = MPlusChat(model=MODEL, store=store, memory_key="default", max_tokens=2)
    before.memorize("A note for all.", source="note")
    said = {thread: [("human", f"I like {fruit}."), ("ai", "I see.")] for thread, fruit in threads.items()}
    for thread, history in said.items():
        before.invoke([*history, ("human", "And now?")], {"configurable": {"thread_id": thread}})
    with before.opened(None) as memory:  # a turn that an agent has written
        about = {"mplus_thread": "monday"}
        MODEL.write(memory, "User: I like figs.", source="turn", metadata=about, keep_text=True)
    page = (Path(__file__).parents[3] / "docs/how-to/move-memories.md").read_text(encoding="utf-8")
    code = page.partition("## Threads that were")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {"mplus": mplus, "model": MODEL})
    chat = MPlusChat(model=MODEL, store=store, max_tokens=2)
    for thread, fruit in threads.items():
        chat.invoke([*said[thread], ("human", "And now?")], {"configurable": {"thread_id": thread}})
        with chat.opened(thread) as memory:
            texts = [text for source in memory.sources() for text in source.texts]
        more = ["User: I like figs."] if thread == "monday" else []
        assert texts == [f"User: I like {fruit}.", "Assistant: I see.", *more], "recognised, and written once"
    with chat.opened("default") as memory:
        assert [source.name for source in memory.sources()] == ["note"]
    assert {stored.id for stored in store.list()} == {"default", *threads}


@dataclass
class OtherContext:
    """A context with names of its own."""

    userId: str


MISNAMED: dict[str, Callable[[MPlusChat, str], Any]] = {
    "a chat": lambda chat, name: chat.invoke(HISTORY, {"configurable": {name: "eve"}}),
    "a stream": lambda chat, name: asyncio.run(astreamed(chat, {"configurable": {name: "eve"}})),
    "a retriever": lambda chat, name: MPlusRetriever(chat=chat).invoke("code", {"configurable": {name: "eve"}}),
    "a sequence": lambda chat, name: (RunnableLambda(lambda x: x) | chat).invoke(
        HISTORY, {"configurable": {name: "eve"}}
    ),
    "a node": lambda chat, name: graph(lambda s: {"messages": [chat.invoke(s["messages"])]}).invoke(
        {"messages": HISTORY}, {"configurable": {name: "eve"}}
    ),
    "an agent": lambda chat, name: create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)]).invoke(
        {"messages": HISTORY}, {"configurable": {name: "eve"}}
    ),
    "the context of an agent": lambda chat, name: create_agent(
        chat, middleware=[MPlusMemoryMiddleware(chat)], context_schema=dict
    ).invoke({"messages": HISTORY}, context={name: "eve"}),
    "an object as context": lambda chat, _: create_agent(
        chat, middleware=[MPlusMemoryMiddleware(chat)], context_schema=OtherContext
    ).invoke({"messages": HISTORY}, context=OtherContext("eve")),
}


@pytest.mark.parametrize("way", MISNAMED)
def test_a_name_that_nobody_reads_is_refused_where_everybody_would_read_one_memory(way: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    for name in ("userId", "chat_id", "tenant"):
        with pytest.raises(ValueError, match=r"='eve' in a config or context names no memory.*user_id"):
            MISNAMED[way](chat, name)
    assert not chat.store.list()
    # Beside a name that is read it says nothing, nor where the application has named the memory.
    chat.invoke(HISTORY, {"configurable": {"userId": "eve", "user_id": "eve"}})
    MISNAMED["a chat"](MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2, memory_key="all"), "userId")
    MISNAMED["a chat"](MPlusChat(model=MODEL, max_tokens=2), "userId")


NAMED: dict[str, Callable[[MPlusChat, Any], Any]] = {
    "invoke": lambda chat, config: chat.invoke(HISTORY, config, memory_key="anna"),
    "stream": lambda chat, config: list(chat.stream(HISTORY, config, memory_key="anna")),
    "batch": lambda chat, config: chat.batch([HISTORY], config, memory_key="anna"),
    "bind": lambda chat, config: chat.bind(memory_key="anna").invoke(HISTORY, config),
    "a function": lambda chat, config: RunnableLambda(lambda said: chat.invoke(said, memory_key="anna")).invoke(
        HISTORY, config
    ),
    "a retriever": lambda chat, config: MPlusRetriever(chat=chat, memory_key="anna").invoke("code", config),
    "a call of a retriever": lambda chat, config: MPlusRetriever(chat=chat).invoke("code", config, memory_key="anna"),
}


@pytest.mark.parametrize("way", NAMED)
def test_a_memory_that_is_named_beside_other_names_is_read(way: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    chat.memorize("My code is 4711.", memory_key="anna")
    for name in ("user", "session", "tenant_id", "chat_id"):
        NAMED[way](chat, {"configurable": {name: "eve"}})
    assert [one.name for one in chat.store.list()] == ["anna"]
