"""Conversations in one named memory: none takes another for an edit of itself, and what one takes back is forgotten."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from llama_index.core.llms import ChatMessage

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.conversations import is_unique
from mplus_integrations.langchain import MPlusChat
from mplus_integrations.llama_index import MPlusLLM, MPlusMemory
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY, prompt_turns=0)
Turn = tuple[str, str]
"""Id, or nothing, and text; the user begins."""
Ask = Callable[..., None]

BEGIN = ["Hello there.", "Hello, how can I help?"]
GRAZ, VIENNA = [*BEGIN, "I live in Graz.", "Good."], [*BEGIN, "I live in Vienna.", "Fine."]
QUESTION = "Where do I live?"


def turns(texts: Sequence[str], ids: str = "") -> list[Turn]:
    return [(f"{ids}{n}" if ids else "", text) for n, text in enumerate(texts)]


def of_langchain(said: Sequence[Turn]) -> list[BaseMessage]:
    kinds = (HumanMessage, AIMessage)
    return [kinds[n % 2](text, id=name or None) for n, (name, text) in enumerate(said)]


def of_llama_index(said: Sequence[Turn]) -> list[ChatMessage]:
    roles = ("user", "assistant")
    return [
        ChatMessage(role=roles[n % 2], content=text, additional_kwargs={"id": name} if name else {})
        for n, (name, text) in enumerate(said)
    ]


def langchain_asks(store: MemoryStore) -> Ask:
    def ask(said: Sequence[Turn], way: str = "sync", *, thread: str | None = None) -> None:
        chat = MPlusChat(model=MODEL, store=store, max_tokens=1)  # a new one each time, as after a restart
        messages = of_langchain(said)
        config: Any = {"configurable": {"memory_key": "anna", **({"thread_id": thread} if thread else {})}}

        async def streamed() -> None:
            async for _ in chat.astream(messages, config):
                pass

        match way:
            case "sync":
                chat.invoke(messages, config)
            case "async":
                asyncio.run(chat.ainvoke(messages, config))
            case "stream":
                list(chat.stream(messages, config))
            case _:
                asyncio.run(streamed())

    return ask


def llama_index_asks(store: MemoryStore) -> Ask:
    def ask(said: Sequence[Turn], way: str = "sync", *, thread: str | None = None) -> None:
        llm = MPlusLLM(model=MODEL, store=store, memory_key="anna", max_tokens=1)
        messages, options = of_llama_index(said), {"conversation_id": thread}

        async def streamed() -> None:
            async for _ in await llm.astream_chat(messages, **options):
                pass

        match way:
            case "sync":
                llm.chat(messages, **options)
            case "async":
                asyncio.run(llm.achat(messages, **options))
            case "stream":
                list(llm.stream_chat(messages, **options))
            case _:
                asyncio.run(streamed())

    return ask


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path)


@pytest.fixture(params=[langchain_asks, llama_index_asks], ids=["langchain", "llama_index"])
def ask(store: MemoryStore, request: pytest.FixtureRequest) -> Ask:
    return request.param(store)


def remembered(store: MemoryStore) -> list[str]:
    texts = [text for source in store.load("anna", MODEL).sources() for text in source.texts]
    return sorted(text.partition(": ")[2] for text in texts)


WAYS = ["sync", "async", "stream", "async stream"]


@pytest.mark.parametrize("named", [False, True], ids=["unknown", "named"])
def test_two_conversations_that_begin_alike_both_go_on_and_nothing_of_either_is_lost(
    ask: Ask, store: MemoryStore, named: bool
) -> None:
    """Interleaved, in every way to ask, after a restart each time."""
    said = {"a": [*GRAZ], "b": [*VIENNA]}
    for number, way in enumerate(WAYS):
        for name, texts in said.items():
            ask(turns([*texts, QUESTION]), way, thread=name if named else None)
            said[name] = [*texts, f"And {name} has {number} cats.", "I see."]
    kept, expected = remembered(store), {text for texts in said.values() for text in texts[:-2]}
    assert set(kept) == expected
    assert len(kept) == sum(len(texts) - 2 for texts in said.values()) - (0 if named else 2), "each turn once"


def test_an_edit_in_one_conversation_leaves_the_other_alone(ask: Ask, store: MemoryStore) -> None:
    for thread in ("a", "b"):
        ask(turns([*GRAZ, QUESTION]), thread=thread)
    ask(turns([*VIENNA, QUESTION]), thread="a")
    assert remembered(store) == sorted([*GRAZ, *VIENNA])
    ask(turns([*GRAZ, QUESTION, "In Graz.", "Thanks."]), thread="b")
    assert remembered(store) == sorted([*GRAZ, *VIENNA, QUESTION, "In Graz."])


def test_what_a_named_conversation_takes_back_is_forgotten(ask: Ask, store: MemoryStore) -> None:
    ask(turns([*GRAZ, "I play the cello.", "Nice.", QUESTION]), thread="a")
    ask(turns([*GRAZ, QUESTION]), thread="a")
    assert remembered(store) == sorted(GRAZ), "it goes on from an earlier place"
    ask(turns([*VIENNA, QUESTION]), thread="a")
    assert remembered(store) == sorted(VIENNA), "a turn was changed"


def test_without_a_name_or_ids_a_changed_history_forgets_nothing(ask: Ask, store: MemoryStore) -> None:
    ask(turns([*GRAZ, QUESTION]))
    ask(turns([*VIENNA, QUESTION]))
    ask(turns([*BEGIN, QUESTION]))
    assert set(remembered(store)) == {*GRAZ, *VIENNA}


def test_a_message_with_other_content_under_its_id_replaces_the_earlier_one(ask: Ask, store: MemoryStore) -> None:
    ids = "9f1c2d3e-4b5a-4c6d-8e7f-00112233445"
    ask(turns([*VIENNA, QUESTION]))
    ask(turns([*GRAZ, QUESTION], ids))
    edited = turns([*GRAZ[:2], "I live in Linz.", "Good.", QUESTION], ids)
    ask(edited)
    assert remembered(store) == sorted([*VIENNA, "I live in Linz.", "Good."]), "what has the same id is known again"
    ask(edited)
    assert remembered(store) == sorted([*VIENNA, "I live in Linz.", "Good."])


@pytest.mark.parametrize("ids", ["", "m", "message-"])
def test_ids_that_every_conversation_counts_anew_prove_nothing(ask: Ask, store: MemoryStore, ids: str) -> None:
    ask([(f"{ids}{n}", text) for n, text in enumerate([*GRAZ, QUESTION])])
    ask([(f"{ids}{n}", text) for n, text in enumerate([*VIENNA, QUESTION])])
    assert set(remembered(store)) == {*GRAZ, *VIENNA}


def test_in_a_named_conversation_any_id_counts_and_another_one_keeps_its_own(ask: Ask, store: MemoryStore) -> None:
    for thread in ("a", "b"):
        ask(turns([*GRAZ, QUESTION], "m"), thread=thread)
    ask(turns(["Good day.", *GRAZ[1:], QUESTION], "m"), thread="a")
    assert remembered(store) == sorted([*GRAZ, "Good day.", *GRAZ[1:]]), "the first turn was changed, the others stay"
    ask(turns(["Good day.", "Hello.", QUESTION], "m"), thread="a")
    assert remembered(store) == sorted([*GRAZ, "Good day.", "Hello."])


@pytest.mark.parametrize("ids", ["", "m"])
def test_other_lists_in_a_named_conversation_forget_nothing(ask: Ask, store: MemoryStore, ids: str) -> None:
    """A question alone, the last few turns, a prompt of a step that has nothing to do with the history."""
    said = turns([*GRAZ, QUESTION], ids)
    ask(said, thread="a")
    for other in (said[-1:], said[2:], turns(["Is this rude?", "No.", "And this?"])):
        ask(other, thread="a")
    assert {*GRAZ} <= set(remembered(store))


def test_what_was_left_out_to_save_room_is_kept(store: MemoryStore) -> None:
    """A trimmed middle, and a tool's result that was shortened under its id."""
    chat = MPlusChat(model=MODEL, store=store, max_tokens=1)
    config: Any = {"configurable": {"memory_key": "anna", "thread_id": "one"}}
    whole = [
        HumanMessage("Hello there.", id="m1"),
        AIMessage("", id="m2", tool_calls=[{"name": "look", "args": {"what": "weather"}, "id": "c1"}]),
        ToolMessage("It is 21 degrees in Graz.", id="m3", tool_call_id="c1"),
        AIMessage("It is warm.", id="m4"),
    ]
    chat.invoke([*whole, HumanMessage("And tomorrow?", id="m5")], config)
    told = set(remembered(store))
    cleared = whole[2].model_copy(update={"content": "[cleared]"})
    chat.invoke([*whole[:2], cleared, whole[3], HumanMessage("And on Sunday?", id="m6")], config)
    chat.invoke([whole[0], whole[3], HumanMessage("And on Monday?", id="m7")], config)
    assert told <= set(remembered(store))
    assert not any("[cleared]" in text for text in remembered(store))


def test_what_other_nodes_of_a_graph_are_told_is_no_edit(store: MemoryStore) -> None:
    chat = MPlusChat(model=MODEL, store=store, max_tokens=1)

    def node(*more: str) -> Callable[[MessagesState], Mapping[str, Any]]:
        def asked(state: MessagesState) -> Mapping[str, Any]:
            chat.invoke(of_langchain(turns([*BEGIN, *more, QUESTION])))
            return {}

        return asked

    def run(*answers: str) -> None:
        graph = StateGraph(MessagesState)
        graph.add_node("answer", node(*answers))
        graph.add_node("check", node("Answer with yes or no.", "Yes."))
        graph.add_edge(START, "answer")
        graph.add_edge("answer", "check")
        graph.add_edge("check", END)
        config: Any = {"configurable": {"memory_key": "anna", "thread_id": "t"}}
        graph.compile().invoke({"messages": []}, config)

    run(*GRAZ[2:])
    assert remembered(store) == sorted([*GRAZ, "Answer with yes or no.", "Yes."])
    run(*VIENNA[2:])
    assert remembered(store) == sorted([*VIENNA, "Answer with yes or no.", "Yes."]), "each node may go back itself"


@pytest.mark.parametrize("key", ["thread_id", "conversation_id", "session_id"])
@pytest.mark.parametrize("place", ["configurable", "metadata"])
def test_a_conversation_is_named_as_graphs_chains_and_message_histories_name_it(
    store: MemoryStore, key: str, place: str
) -> None:
    chat = MPlusChat(model=MODEL, store=store, memory_key="anna", max_tokens=1)
    for said in (GRAZ, BEGIN):
        chat.invoke(of_langchain(turns([*said, QUESTION])), {place: {key: "a"}})  # pyright: ignore[reportArgumentType]
    assert remembered(store) == sorted(BEGIN)


@pytest.mark.parametrize("name", [7, UUID(int=7), 3.5, ("a", 1), ""])
def test_any_name_of_a_thread_that_others_chose_is_taken(name: Any) -> None:
    assert MPlusChat(model=MODEL, max_tokens=1).invoke("hello", {"configurable": {"thread_id": name}})
    if isinstance(name, int | UUID):
        named = MPlusMemory.from_defaults(llm=MPlusLLM(model=MODEL), conversation_id=name)  # type: ignore[arg-type]
        assert named.conversation_id == str(name)


@pytest.mark.parametrize("wrong", [True, 1.5, ["a"]])
def test_a_wrong_name_of_a_conversation_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="conversation_id"):
        MPlusChat(model=MODEL).invoke("hello", conversation_id=wrong)
    with pytest.raises(ValueError, match="conversation_id"):
        MPlusLLM(model=MODEL).complete("hello", conversation_id=wrong)


@pytest.mark.parametrize(
    ("name", "unique"),
    [
        ("9f1c2d3e-4b5a-4c6d-8e7f-001122334455", True),
        ("run--9f1c2d3e4b5a4c6d8e7f001122334455-0", True),
        ("msg_67ccd2bed1ec8190b14f964abc054267", True),
        ("chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG", True),
        ("3", False),
        ("conversation-message-3", False),
        ("conversationmessage3", False),
        ("00000000000000000003", False),
    ],
)
def test_ids_that_no_other_conversation_has_are_told_by_their_look(name: str, unique: bool) -> None:
    assert is_unique(name) is unique


def test_a_named_conversation_that_is_cut_off_at_its_beginning_is_written_once(ask: Ask, store: MemoryStore) -> None:
    said = [f"This is turn number {number}." for number in range(11)]
    for end in range(1, 12, 2):
        ask(turns(said[max(end - 5, 0) : end]), thread="monday")
    assert remembered(store) == sorted(said[:10])
