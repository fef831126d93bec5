"""A turn that an agent's middleware writes takes the place of a turn of its own thread, and of nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware, MPlusStore, MPlusVectorStore
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY)
UUID = "0d9f4d3c-1f0a-4f0e-9a5e-0c4b8f6f2d11"


class Threads:
    """An agent whose threads share the memory of one user."""

    def __init__(self, folder: Path, *, prompt_turns: Any = None, saver: Any = None) -> None:
        self.chat = MPlusChat(model=MODEL, store=MemoryStore(folder), max_tokens=2, prompt_turns=prompt_turns)
        self.middleware = MPlusMemoryMiddleware(self.chat)
        self.agent: Any = create_agent(self.chat, middleware=[self.middleware], checkpointer=saver)

    @classmethod
    def kept(cls, folder: Path) -> "Threads":
        return cls(folder, saver=InMemorySaver())

    def say(self, thread: str | None, *messages: Any) -> Any:
        known = {"memory_key": "anna"} if thread is None else {"memory_key": "anna", "thread_id": thread}
        return self.agent.invoke({"messages": list(messages)}, {"configurable": known})

    def sources(self) -> dict[str, Any]:
        with self.chat.opened("anna") as memory:
            return {source.name: source for source in memory.sources()}

    def said(self, thread: str | None = None) -> list[str]:
        """What users said in a thread; None: in any."""
        found = [s for s in self.sources().values() if s.metadata.get("role") == "user"]
        mine = [s for s in found if thread is None or s.metadata.get("mplus_thread") == thread]
        return [text.removeprefix("User: ") for source in mine for text in source.texts]


def note(chat: MPlusChat) -> str:
    chat.memorize("The key is under the pot.", source="note", memory_key="anna")
    return "note"


def document(chat: MPlusChat) -> str:
    MPlusVectorStore(chat, memory_key="anna").add_documents([Document("The key is under the pot.", id="page")])
    return "page"


def item(chat: MPlusChat) -> str:
    MPlusStore(chat, memory_key="anna").put(("keys",), "spare", {"place": "The key is under the pot."})
    with chat.opened("anna") as memory:
        return memory.sources()[0].name


def memorized_message(chat: MPlusChat) -> str:
    chat.memorize(HumanMessage("The key is under the pot.", id="memo"), memory_key="anna")
    return "memo"


OTHERS: list[Callable[[MPlusChat], str]] = [note, document, item, memorized_message]


def _held(threads: Threads, name: str) -> Any:
    found = threads.sources()[name]
    return found.texts, found.metadata, found.text_tokens


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "without a checkpointer"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_message_of_the_same_name_leaves_what_is_there(other: Any, kept: bool, tmp_path: Path) -> None:
    threads = Threads.kept(tmp_path) if kept else Threads(tmp_path)
    name = other(threads.chat)
    before = _held(threads, name)
    for _ in range(2):
        threads.say("t", HumanMessage("Hello there.", id=name))
    assert _held(threads, name) == before
    assert threads.said("t") == ["Hello there."], "written once, under another name"
    threads.say("t", HumanMessage("Hello again.", id=name))
    assert threads.said("t") == ["Hello again."], "another text under the same id is an edit"
    if kept:
        threads.say("t", RemoveMessage(id=name), HumanMessage("What now?", id="q"))
        assert threads.said("t") == ["What now?"]
    assert _held(threads, name) == before


def test_a_message_that_was_memorized_is_not_written_again(tmp_path: Path) -> None:
    threads, message = Threads.kept(tmp_path), HumanMessage("I live in Graz.", id="m")
    threads.chat.memorize(message, memory_key="anna")
    threads.say("t", message)
    assert threads.said() == ["I live in Graz."]
    threads.say("t", RemoveMessage(id="m"), HumanMessage("And now?", id="q"))
    assert threads.said() == ["I live in Graz.", "And now?"], "who memorized it forgets it"


def test_a_note_by_the_name_of_a_turn_stays_when_the_thread_takes_the_turn_back(tmp_path: Path) -> None:
    threads = Threads.kept(tmp_path)
    threads.say("t", HumanMessage("I live in Graz.", id="m"))
    threads.chat.memorize("Near the park.", source="m", memory_key="anna")
    threads.say("t", HumanMessage("And now?", id="q"))
    assert threads.sources()["m"].texts == ("User: I live in Graz.",)
    threads.say("t", RemoveMessage(id="m"))
    assert "m" not in threads.sources() and threads.sources()["m (note)"].texts == ("Near the park.",)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "without a checkpointer"])
def test_threads_that_count_their_ids_keep_their_turns(kept: bool, tmp_path: Path) -> None:
    threads = Threads.kept(tmp_path) if kept else Threads(tmp_path)
    for number in (1, 2):
        for thread in ("A", "B"):
            threads.say(thread, HumanMessage(f"{thread} says {number}.", id=f"msg-{number}"))
    assert threads.said("A") == ["A says 1.", "A says 2."] and threads.said("B") == ["B says 1.", "B says 2."]
    threads.say("B", HumanMessage("B has changed.", id="msg-1"))
    assert threads.said("A") == ["A says 1.", "A says 2."] and threads.said("B") == ["B says 2.", "B has changed."]


def test_the_same_message_in_two_threads_is_of_both(tmp_path: Path) -> None:
    threads = Threads.kept(tmp_path)
    for thread in ("A", "B"):
        threads.say(thread, HumanMessage("I live in Graz.", id="same"))
    threads.say("A", RemoveMessage(id="same"), HumanMessage("And now?", id="q"))
    assert threads.said("A") == ["And now?"] and threads.said("B") == ["I live in Graz."]
    threads.say("C", HumanMessage("I live in Graz.", id="same"))
    assert threads.middleware.forget_thread("C", memory_key="anna") >= 1
    threads.say("B", HumanMessage("Since 2020.", id="n"))
    assert threads.said("B") == ["I live in Graz.", "Since 2020."]
    assert threads.chat.forget_conversation("B", memory_key="anna") >= 2
    assert threads.said() == ["And now?"]


def test_a_turn_of_an_earlier_version_that_two_threads_said_is_written_for_the_other_one(tmp_path: Path) -> None:
    threads = Threads.kept(tmp_path)
    threads.say("B", HumanMessage("I live in Graz.", id="same"))
    with threads.chat.opened("anna") as memory:
        memory.forget("same")
        about = {"mplus_thread": "A", "role": "user"}
        MODEL.write(memory, "User: I live in Graz.", source="same", metadata=about, keep_text=True)
    threads.say("B", HumanMessage("Since 2020.", id="n"))
    assert threads.said("A") == ["I live in Graz."] and threads.said("B") == ["I live in Graz.", "Since 2020."]
    threads.say("A", HumanMessage("I live in Linz.", id="same"))
    assert threads.said("A") == ["I live in Linz."], "which is known by its name alone"


def test_agents_of_one_graph_that_keep_states_of_their_own_may_count_alike(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    agents: list[Any] = [
        create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)], checkpointer=True) for _ in range(2)
    ]

    def told(number: int) -> Any:
        def node(state: Any) -> Any:
            text = f"Agent {number} is asked {len(state['messages'])}."
            agents[number].invoke({"messages": [HumanMessage(text, id=f"msg-{len(state['messages'])}")]})

        return node

    graph = StateGraph(MessagesState).add_node("a", told(0)).add_node("b", told(1))
    team: Any = graph.add_edge(START, "a").add_edge("a", "b").compile(checkpointer=InMemorySaver())
    for text in ("One.", "Two."):
        team.invoke({"messages": [HumanMessage(text)]}, {"configurable": {"thread_id": "t"}})
    with chat.opened("t") as memory:
        said = [text for source in memory.sources() if source.metadata["role"] == "user" for text in source.texts]
    assert sorted(said) == [f"User: Agent {agent} is asked {count}." for agent in (0, 1) for count in (1, 2)]


def test_nodes_of_one_graph_that_share_its_messages_write_each_once(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2)
    graph = StateGraph(MessagesState)
    for name in ("a", "b"):
        graph.add_node(name, create_agent(chat, middleware=[MPlusMemoryMiddleware(chat)]))
    team: Any = graph.add_edge(START, "a").add_edge("a", "b").compile(checkpointer=InMemorySaver())
    for number in range(2):
        team.invoke(
            {"messages": [HumanMessage(f"Turn {number}.", id=f"h{number}")]}, {"configurable": {"thread_id": "t"}}
        )
    with chat.opened("t") as memory:
        said = [text for source in memory.sources() if source.metadata["role"] == "user" for text in source.texts]
    assert said == ["User: Turn 0.", "User: Turn 1."]


# --- without the id of a thread -----------------------------------------------------------------------


def test_without_a_thread_what_is_sent_again_is_there_once(tmp_path: Path) -> None:
    threads = Threads(tmp_path)
    for messages in (["I live in Graz."], ["I live in Graz.", "My code is 4711."]):
        threads.say(None, *(HumanMessage(text, id=f"h{n}") for n, text in enumerate(messages)))
    assert threads.said() == ["I live in Graz.", "My code is 4711."], "under the same ids"
    for _ in range(2):
        threads.say(None, HumanMessage("I play the cello."))
    assert threads.said() == ["I live in Graz.", "My code is 4711.", "I play the cello."], "and under new ones"


def test_without_a_thread_only_an_id_that_no_other_conversation_has_proves_an_edit(tmp_path: Path) -> None:
    threads = Threads(tmp_path)
    for text in ("Anna says this.", "Another chat of hers says that.", "Anna says this."):
        threads.say(None, HumanMessage(text, id="msg-1"))
    assert threads.said() == ["Anna says this.", "Another chat of hers says that."]
    for text in ("I live in Graz.", "I live in Linz."):
        threads.say(None, HumanMessage(text, id=UUID))
    assert threads.said()[2:] == ["I live in Linz."]


# --- what the model is asked --------------------------------------------------------------------------


def test_a_turn_under_another_name_is_known_in_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(tmp_path, prompt_turns="all", saver=InMemorySaver())
    note(threads.chat)
    threads.say("A", HumanMessage("I live in Graz.", id="same"))
    threads.say("B", HumanMessage("I live in Graz.", id="same"))
    threads.say("B", HumanMessage("I play the cello.", id="note"))
    read, real = list[set[str]](), threads.chat.loaded.stream

    def stream(memory: Any, prompt: Any, *, where: Any = None, **options: Any) -> Any:
        read.append({s.name for s in memory.sources() if where is None or where(s.name, s.metadata)})
        return real(memory, prompt, where=where, **options)

    monkeypatch.setattr(threads.chat.loaded, "stream", stream)
    before = set(threads.sources())
    threads.say("B", HumanMessage("And now?", id="q"))
    mine = {name for name, source in threads.sources().items() if source.metadata.get("mplus_thread") == "B"}
    assert read == [before - mine], "what stands in the prompt is not read too"
    few = Threads(tmp_path, prompt_turns=0)
    few.agent = create_agent(few.chat, middleware=[few.middleware], checkpointer=threads.agent.checkpointer)
    few.say("B", HumanMessage("And then?", id="r"))
    assert few.said("B") == ["I live in Graz.", "I play the cello.", "And now?", "And then?"], "nor is it written again"
    assert not any("mplus_conversation" in source.metadata for source in few.sources().values())
