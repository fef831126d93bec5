"""What a thread takes back is forgotten: with the middleware, and where a node of a graph asks a bare chat."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Send

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY, prompt_turns=0)
WAYS = ["invoke", "ainvoke", "stream", "astream"]


class Thread:
    """A thread with a checkpointer, whose graph asks a bare chat or is an agent, and the memory of its user."""

    def __init__(self, kind: str, way: str, folder: Path) -> None:
        self.chat = MPlusChat(model=MODEL, store=MemoryStore(folder), max_tokens=2)
        self.way, self.config = way, {"configurable": {"user_id": "anna", "thread_id": "t"}}
        self.saver = InMemorySaver()
        if kind == "agent":
            middleware = MPlusMemoryMiddleware(self.chat)
            self.graph: Any = create_agent(self.chat, middleware=[middleware], checkpointer=self.saver)
        else:
            node = StateGraph(MessagesState).add_node("ask", self._ask).add_edge(START, "ask")
            self.graph = node.compile(checkpointer=self.saver)
        self.number = 0

    def _ask(self, state: Any) -> Any:
        return {"messages": [self.chat.invoke(state["messages"])]}

    def say(self, text: str, config: Any = None) -> Any:
        """Say something, and return the config of the checkpoint before it."""
        self.number += 1
        given, config = {"messages": [HumanMessage(text, id=f"h{self.number}")]}, config or self.config
        before = self.graph.get_state(self.config).config
        match self.way:
            case "invoke":
                self.graph.invoke(given, config)
            case "ainvoke":
                asyncio.run(self.graph.ainvoke(given, config))
            case "stream":
                list(self.graph.stream(given, config, stream_mode="messages"))
            case _:
                asyncio.run(self._streamed(given, config))
        return before

    async def _streamed(self, given: Any, config: Any) -> None:
        async for _ in self.graph.astream(given, config, stream_mode="messages"):
            pass

    def change(self, *messages: Any, config: Any = None) -> Any:
        return self.graph.update_state(config or self.config, {"messages": list(messages)})

    def messages(self) -> list[Any]:
        return self.graph.get_state(self.config).values["messages"]

    def texts(self) -> str:
        return str([source.texts for source in self.chat.latents("anna").read(MODEL).sources()])


def removed(thread: Thread) -> Any:
    thread.change(RemoveMessage(id="h2"))


def replaced(thread: Thread) -> Any:
    thread.change(HumanMessage("My hat is green.", id="h2"))


def replaced_answer(thread: Thread) -> Any:
    answer = thread.messages()[3]
    thread.change(RemoveMessage(id="h2"), AIMessage("I see.", id=answer.id))


def shortened(thread: Thread) -> Any:
    thread.change(*(RemoveMessage(id=message.id) for message in thread.messages()[2:4]))


def rewritten(thread: Thread) -> Any:
    kept = thread.messages()[:2]
    thread.change(RemoveMessage(id=REMOVE_ALL_MESSAGES), *kept)


def gone_back(thread: Thread) -> Any:
    states = list(thread.graph.get_state_history(thread.config))
    return next(s.config for s in states if len(s.values.get("messages", [])) == 2 and not s.next)


def forked(thread: Thread) -> Any:
    return thread.change(HumanMessage("I like green.", id="x1"), config=gone_back(thread))


EDITS: dict[str, Callable[[Thread], Any]] = {
    one.__name__: one for one in (removed, replaced, replaced_answer, shortened, rewritten, gone_back, forked)
}


@pytest.mark.parametrize("kind", ["bare", "agent"])
@pytest.mark.parametrize("edit", EDITS)
def test_what_a_thread_takes_back_is_forgotten(edit: str, kind: str, tmp_path: Path) -> None:
    for place, way in enumerate(WAYS):
        thread = Thread(kind, way, tmp_path / str(place))
        thread.say("I live in Graz, near the park.")
        thread.say("My code is 4711.")
        thread.say("I play the cello.")
        assert "4711" in thread.texts()
        thread.say("And now?", EDITS[edit](thread))
        thread.say("And what else?")
        assert "4711" not in thread.texts(), way
        assert "Graz" in thread.texts(), way
        assert ("cello" in thread.texts()) == (edit not in ("rewritten", "gone_back", "forked")), way


@pytest.mark.parametrize("kind", ["bare", "agent"])
def test_a_summary_is_not_written_and_takes_nothing_back(kind: str, tmp_path: Path) -> None:
    thread = Thread(kind, "invoke", tmp_path)
    thread.say("I live in Graz, near the park.")
    thread.say("My code is 4711.")
    summary = HumanMessage("Summary: Anna has a code.", id="s1", additional_kwargs={"lc_source": "summarization"})
    thread.change(RemoveMessage(id=REMOVE_ALL_MESSAGES), summary, *thread.messages()[2:])
    thread.say("And now?")
    thread.say("And what else?")
    assert "Graz" in thread.texts() and "4711" in thread.texts() and "Summary" not in thread.texts()


@pytest.mark.parametrize("kind", ["bare", "agent"])
def test_a_deleted_thread_is_forgotten_by_name_and_no_other(kind: str, tmp_path: Path) -> None:
    thread = Thread(kind, "invoke", tmp_path)
    thread.say("My code is 4711.")
    thread.say("And now?")
    thread.config = {"configurable": {"user_id": "anna", "thread_id": "other"}}
    thread.say("I play the cello.")
    thread.say("Since when?")
    thread.saver.delete_thread("t")
    assert thread.chat.forget_conversation("t", memory_key="anna") >= 2
    assert "4711" not in thread.texts() and "cello" in thread.texts()


@pytest.mark.parametrize("kind", ["without a checkpointer", "within another graph"])
def test_a_state_that_begins_anew_with_every_run_takes_nothing_back(kind: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)

    def ask(state: Any) -> Any:
        return {"messages": [chat.invoke(state["messages"])]}

    def passed_on(state: Any) -> Any:
        return asking.invoke({"messages": state["messages"][-2:]})

    asking: Any = StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()
    graph = asking
    if kind == "within another graph":
        team = StateGraph(MessagesState).add_node("team", passed_on).add_edge(START, "team")
        graph = team.compile(checkpointer=InMemorySaver())
    for text in ("I live in Graz.", "My code is 4711.", "I play the cello."):
        graph.invoke({"messages": [HumanMessage(text), HumanMessage("Hello.")]}, {"configurable": {"thread_id": "t"}})
    with chat.opened("t") as memory:
        texts = " ".join(text for source in memory.sources() for text in source.texts)
    assert "Graz" in texts and "4711" in texts and "cello" in texts


def test_an_agent_without_a_checkpointer_takes_nothing_back_and_writes_what_is_sent_again_once(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    agent: Any = create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)])
    for texts in (["I live in Graz."], ["My code is 4711."], ["I live in Graz.", "My code is 4711.", "And now?"]):
        agent.invoke({"messages": [HumanMessage(text) for text in texts]}, {"configurable": {"thread_id": "t"}})
    with chat.opened("t") as memory:
        said = [text for source in memory.sources() if source.metadata["role"] == "user" for text in source.texts]
    assert sorted(said) == ["User: And now?", "User: I live in Graz.", "User: My code is 4711."]


def _passed_on(agent: Any) -> Any:
    return lambda state: agent.invoke({"messages": state["messages"][-1:]})


def _passed_on_async(agent: Any) -> Any:
    async def node(state: Any) -> Any:
        return await agent.ainvoke({"messages": state["messages"][-1:]})

    return node


def _streamed_on(agent: Any) -> Any:
    def node(state: Any) -> Any:
        *_, last = agent.stream({"messages": state["messages"][-1:]}, stream_mode="values")
        return {"messages": last["messages"]}

    return node


def _sent(agent: Any) -> Any:
    graph = StateGraph(MessagesState).add_node("agent", agent).add_node("begin", lambda state: {})
    graph.add_edge(START, "begin")
    graph.add_conditional_edges("begin", lambda state: Send("agent", {"messages": state["messages"][-1:]}), ["agent"])
    return graph


def _node(node: Any) -> Any:
    return StateGraph(MessagesState).add_node("team", node).add_edge(START, "team")


WITHIN: dict[str, Callable[[Any], Any]] = {
    "passed on": lambda agent: _node(_passed_on(agent)),
    "passed on, async": lambda agent: _node(_passed_on_async(agent)),
    "passed on, streamed": lambda agent: _node(_streamed_on(agent)),
    "sent": _sent,
    "a node itself": _node,
    "two graphs up": lambda agent: _node(_node(_passed_on(agent)).compile()),
}


@pytest.mark.parametrize("within", WITHIN)
def test_an_agent_within_another_graph_takes_nothing_back_that_it_is_not_given(within: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    agent: Any = create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)])
    graph: Any = WITHIN[within](agent).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t", "user_id": "anna"}}
    for number, text in enumerate(("I live in Graz.", "My code is 4711.", "I play the cello.")):
        given = {"messages": [HumanMessage(text, id=f"h{number}")]}
        asyncio.run(graph.ainvoke(given, config)) if "async" in within else graph.invoke(given, config)
    with chat.opened("anna") as memory:
        said = [text for source in memory.sources() if source.metadata["role"] == "user" for text in source.texts]
    assert said == ["User: I live in Graz.", "User: My code is 4711.", "User: I play the cello."]
    changed = {"messages": [HumanMessage("My code is 0815.", id="h1"), HumanMessage("And now?", id="h3")]}
    agent.invoke(changed, config)
    with chat.opened("anna") as memory:
        texts = str([source.texts for source in memory.sources()])
    assert "4711" not in texts and "0815" in texts and "Graz" in texts, "another text under the same id is an edit"


def test_an_agent_within_another_graph_that_keeps_its_own_state_forgets_what_is_removed_from_it(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    agent: Any = create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)], checkpointer=True)
    graph: Any = _node(_passed_on(agent)).compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "t"}}
    for number, text in enumerate(("I live in Graz.", "My code is 4711.", "I play the cello.")):
        graph.invoke({"messages": [HumanMessage(text, id=f"h{number}")]}, config)
    graph.invoke({"messages": [HumanMessage("Now.", id="h3"), RemoveMessage(id="h1")]}, config)
    with chat.opened("t") as memory:
        texts = str([source.texts for source in memory.sources()])
    assert "Graz" in texts and "cello" in texts


def test_agents_within_one_graph_that_keep_states_of_their_own_forget_nothing_of_each_other(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    agents: list[Any] = [
        create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)], checkpointer=True) for _ in range(2)
    ]
    graph = StateGraph(MessagesState)
    for number, agent in enumerate(agents):
        graph.add_node(f"agent-{number}", _told(agent, f"I am asked as number {number}."))
    graph.add_edge(START, "agent-0").add_edge("agent-0", "agent-1")
    team: Any = graph.compile(checkpointer=InMemorySaver())
    for number in range(3):
        given = {"messages": [HumanMessage(f"Turn {number}.", id=f"h{number}")]}
        team.invoke(given, {"configurable": {"thread_id": "t"}})
    with chat.opened("t") as memory:
        texts = str([source.texts for source in memory.sources()])
    assert "number 0" in texts and "number 1" in texts


def _told(agent: Any, text: str) -> Any:
    def node(state: Any) -> Any:
        agent.invoke({"messages": [HumanMessage(text, id=f"{text}-{len(state['messages'])}")]})
        return {"messages": [AIMessage("Done.")]}

    return node
