"""Tool choice, structured output, long histories, and agents with memory."""

import asyncio
import time
from typing import Any

import pytest
import torch
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

import mplus
from mplus import MemoryConfig, MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def greet(name: str = Field(max_length=8)) -> str:
    """Greet somebody."""
    return f"Hello {name}"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=10)
    age: int = Field(ge=0, le=120)


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


SCHEMA = {
    "title": "person",
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
}


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=600)


@pytest.mark.parametrize("choice", ["any", True, "required"])
def test_any_makes_a_call(chat: MPlusChat, choice: Any) -> None:
    answer = chat.bind_tools([add, greet], tool_choice=choice).invoke("hi")
    assert len(answer.tool_calls) == 1 and answer.tool_calls[0]["name"] in ("add", "greet")
    assert answer.invalid_tool_calls == [] and answer.content == ""


@pytest.mark.parametrize("choice", ["add", {"type": "function", "function": {"name": "add"}}])
def test_a_name_makes_that_call_streamed_or_not(chat: MPlusChat, choice: Any) -> None:
    bound = chat.bind_tools([add, greet], tool_choice=choice)
    answer = bound.invoke("hi")
    assert answer.tool_calls[0]["name"] == "add" and set(answer.tool_calls[0]["args"]) == {"a", "b"}
    total = AIMessageChunk("")
    for chunk in bound.stream("hi"):
        total += chunk
    assert [(c["name"], c["args"]) for c in total.tool_calls] == [(c["name"], c["args"]) for c in answer.tool_calls]
    assert "<tool_call>" not in str(total.content)


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_auto_and_none_may_answer_in_words(chat: MPlusChat, choice: Any) -> None:
    answer = chat.bind_tools([add, greet], tool_choice=choice).invoke("hi", max_tokens=20)
    assert answer.tool_calls == [] and answer.content


def test_leaving_while_a_call_is_held_back_stops_generation(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def slow(tokens: list[int], logits: Any) -> Any:
        steps.append(1)
        time.sleep(0.02)
        return logits

    real = chat.loaded.stream
    monkeypatch.setattr(chat.loaded, "stream", lambda *a, **k: real(*a, **k, processors=[slow]))
    bound = chat.bind_tools([add], tool_choice="add")

    async def leave(streamed: bool) -> None:
        async def read() -> None:
            if streamed:
                async for _ in bound.astream("hi"):
                    pass
            else:
                await bound.ainvoke("hi")

        steps.clear()
        task = asyncio.create_task(read())
        while len(steps) < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for streamed in (True, False):
        asyncio.run(leave(streamed))
        seen = len(steps)
        time.sleep(0.2)
        assert len(steps) <= seen + 2 < 40


async def test_an_async_stream_ends_with_the_same_last_chunk(chat: MPlusChat) -> None:
    for bound in (chat.bind_tools([add], tool_choice="add"), chat.bind(max_tokens=8)):
        expected = list(bound.stream("hi"))
        found = [chunk async for chunk in bound.astream("hi")]
        assert len(found) == len(expected)
        assert found[-1].usage_metadata == expected[-1].usage_metadata is not None
        assert [c["args"] for c in found[-1].tool_calls] == [c["args"] for c in expected[-1].tool_calls]


def test_a_timeout_ends_an_answer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(tokens: list[int], logits: Any) -> Any:
        time.sleep(0.02)
        return logits.index_fill(0, torch.tensor([MODEL.tokenizer.eos_token_id]), float("-inf"))

    chat = MPlusChat(model=MODEL, max_tokens=600, timeout=0.1)
    real = MODEL.stream
    monkeypatch.setattr(MODEL, "stream", lambda *a, **k: real(*a, **k, processors=[slow]))
    answer = chat.invoke("hi")
    assert answer.response_metadata["finish_reason"] == "cancelled"
    with pytest.raises(ValueError, match="timeout"):
        MPlusChat(model=MODEL, timeout=-1).invoke("hi")


def test_words_before_a_call_are_the_same_streamed_or_not(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'Sure, one moment.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    wanted = [*MODEL.tokenizer(said)["input_ids"], MODEL.tokenizer.eos_token_id]

    def dictate(tokens: list[int], logits: Any) -> Any:
        forced = torch.full_like(logits, float("-inf"))
        forced[wanted[len(tokens)]] = 0
        return forced

    real = chat.loaded.stream
    monkeypatch.setattr(chat.loaded, "stream", lambda *a, **k: real(*a, **k, processors=[dictate]))
    bound = chat.bind_tools([add])
    answer = bound.invoke("hi")
    total = AIMessageChunk("")
    for chunk in bound.stream("hi"):
        total += chunk
    assert answer.content == total.content == "Sure, one moment.\n"
    assert answer.tool_calls[0]["args"] == total.tool_calls[0]["args"] == {"a": 1, "b": 2}


def test_bad_tools_and_choices_are_refused_when_bound(chat: MPlusChat) -> None:
    class Open(BaseModel):
        """Takes anything."""

        values: dict[str, Any]

    with pytest.raises(ValueError, match="open"):
        chat.bind_tools([Open])
    with pytest.raises(ValueError, match="'multiply'"):
        chat.bind_tools([add], tool_choice="multiply")
    with pytest.raises(ValueError, match="tool_choice"):
        chat.bind_tools([add], tool_choice={"type": "any"})


def test_a_call_cut_short_is_an_invalid_call(chat: MPlusChat) -> None:
    answer = chat.bind_tools([add], tool_choice="add").invoke("hi", max_tokens=25)
    assert answer.tool_calls == [] and answer.invalid_tool_calls[0]["error"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
@pytest.mark.parametrize("schema", [Person, PersonDict, SCHEMA], ids=["pydantic", "typeddict", "json"])
def test_structured_output_validates(chat: MPlusChat, schema: Any, method: Any) -> None:
    found = chat.with_structured_output(schema, method=method, max_tokens=2000).invoke("Who?")
    if schema is Person:
        assert isinstance(found, Person)
    else:
        assert set(found) == {"name", "age"}
    raw = chat.with_structured_output(schema, method=method, include_raw=True, max_tokens=2000).invoke("Who?")
    assert isinstance(raw["raw"], AIMessage) and raw["parsing_error"] is None and raw["parsed"] == found


@pytest.mark.parametrize("strategy", [ProviderStrategy, ToolStrategy])
def test_agents_answer_in_a_form(strategy: Any) -> None:
    agent = create_agent(MPlusChat(model=MODEL, max_tokens=600), tools=[], response_format=strategy(Person))
    found = agent.invoke({"messages": [HumanMessage("Who?")]})
    assert isinstance(found["structured_response"], Person)


# --- histories ----------------------------------------------------------------------------------------


def long_history(turns: int) -> list[Any]:
    said: list[Any] = [SystemMessage("Be brief.")]
    for n in range(turns):
        said += [HumanMessage(f"Turn {n}: box {n} is in room {n}, as always and for ever."), AIMessage(f"Noted {n}.")]
    return [*said, HumanMessage("Where is box 1?")]


@pytest.fixture
def narrow() -> MPlusChat:
    config = MemoryConfig(**{**TINY.model_dump(), "short_term_tokens": 64, "recalled_tokens": 32})
    return MPlusChat(model=tiny_model(memory=config, max_position_embeddings=640), max_tokens=8)


def written(chat: MPlusChat) -> list[str]:
    with chat.opened() as memory:
        return [source.name for source in memory.sources()]


def test_what_does_not_fit_flows_into_memory_once(narrow: MPlusChat) -> None:
    history = long_history(12)
    answer = narrow.invoke(history)
    first = written(narrow)
    assert first and answer.response_metadata["prefix_tokens"] > 0
    narrow.invoke(history)
    assert written(narrow) == first, "the same history is recognised"
    narrow.invoke([*history, AIMessage("In room 1."), HumanMessage("And box 2?")])
    later = written(narrow)
    assert later[: len(first)] == first and len(later) - len(first) <= 8


def test_a_changed_history_is_rolled_back(narrow: MPlusChat) -> None:
    history = long_history(12)
    narrow.invoke(history)
    before = set(written(narrow))
    history[3] = HumanMessage("Turn 1: box 1 was sold.")
    narrow.invoke(history)
    after = set(written(narrow))
    assert len(before & after) == 2, "only what was said before the change is still there"
    narrow.invoke(long_history(0))
    assert set(written(narrow)) == after, "another conversation leaves it alone"


def test_a_short_history_writes_nothing(narrow: MPlusChat) -> None:
    narrow.invoke("hello")
    assert written(narrow) == []


@pytest.mark.parametrize("turns", [0, 12])
def test_a_message_longer_than_the_window_is_refused_and_nothing_flows(narrow: MPlusChat, turns: int) -> None:
    with pytest.raises(mplus.PromptTooLongError):
        narrow.invoke([*long_history(turns)[:-1], HumanMessage("long " * 400)])
    assert written(narrow) == []


def test_an_empty_answer_in_the_history_does_not_make_later_turns_flow_twice(narrow: MPlusChat) -> None:
    history = long_history(12)
    history[4] = AIMessage("")
    narrow.invoke(history)
    first = written(narrow)
    narrow.invoke(history)
    assert written(narrow) == first and len(set(first)) == len(first)


def test_a_history_that_ends_where_turns_had_flowed_is_asked_again(narrow: MPlusChat) -> None:
    history = long_history(12)
    narrow.invoke(history)
    narrow.invoke(history[:4])
    assert len(written(narrow)) == 2, "the question itself stands in the prompt, what followed is gone"


def test_a_very_long_history_is_counted_only_a_few_times(narrow: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = narrow.loaded.count_tokens

    def count(*args: Any, **kwargs: Any) -> int:
        counted.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(narrow.loaded, "count_tokens", count)
    narrow.invoke(long_history(200))
    assert len(counted) < 15


# --- agents -------------------------------------------------------------------------------------------


def test_each_turn_is_written_once_also_after_resume(tmp_path: Any) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=6)
    saver = InMemorySaver()

    def agent() -> Any:
        return create_agent(chat, tools=[], middleware=[MPlusMemoryMiddleware(chat)], checkpointer=saver)

    config = {"configurable": {"thread_id": "anna"}}
    agent().invoke({"messages": [HumanMessage("I live in Graz, near the park.", id="h1")]}, config)
    state = agent().invoke({"messages": [HumanMessage("I play the cello on Mondays.", id="h2")]}, config)
    with chat.opened("anna") as memory:
        names = [source.name for source in memory.sources()]
    spoken = [m.id for m in state["messages"] if str(m.content).strip()]
    assert names == spoken and len(set(names)) == len(names)
    agent().invoke({"messages": [HumanMessage("Hi!", id="b1")]}, {"configurable": {"thread_id": "bob"}})
    with chat.opened("bob") as memory:
        assert "h1" not in [source.name for source in memory.sources()]


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


def test_config_names_the_memory(tmp_path: Any) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=4)
    chat.memorize("The key is under the pot.", memory_key="anna")
    config: Any = {"configurable": {"memory_key": "anna"}}
    assert chat.invoke("Where?", config=config).response_metadata["prefix_tokens"] > 0
    assert list(chat.stream("Where?", config=config))[-1].response_metadata["prefix_tokens"] > 0
    assert chat.invoke("Where?").response_metadata["prefix_tokens"] == 0
