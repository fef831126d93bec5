"""Bad input: each a clear error, and no memory touched."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import BaseModel
from typing_extensions import TypedDict

from mplus import Constraint, MemoryStore, MPlus
from mplus.testing import tiny_model
from mplus_integrations.langchain import (
    MPlusChat,
    MPlusMemoryMiddleware,
    MPlusRetriever,
    MPlusStore,
    MPlusVectorStore,
    memory_tools,
)
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY)
ANNA: Any = {"configurable": {"memory_key": "anna"}}


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[MPlusChat]:
    """A chat with a memory of Anna's; what is on disk must be the same afterwards."""
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path / "memories"), max_tokens=8)
    chat.memorize("I live in Graz, near the park.", memory_key="anna")

    def on_disk() -> dict[str, bytes]:
        files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}

    before = on_disk()
    yield chat
    assert on_disk() == before, "a memory was touched"


def refused(chat: MPlusChat, messages: Any, match: str) -> None:
    """Every way to ask says the same."""

    async def streamed() -> None:
        async for _ in chat.astream(messages, config=ANNA):
            pass

    for ask in (
        lambda: chat.invoke(messages, config=ANNA),
        lambda: list(chat.stream(messages, config=ANNA)),
        lambda: chat.batch([messages, messages], config=ANNA),
        lambda: asyncio.run(chat.ainvoke(messages, config=ANNA)),
        lambda: asyncio.run(streamed()),
    ):
        with pytest.raises(ValueError, match=match):
            ask()


# --- messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([FunctionMessage("x", name="f")], "FunctionMessage: expected a human, AI, system, tool or chat message"),
        ([RemoveMessage(id="1")], "RemoveMessage"),
        ([HumanMessage("hi"), ChatMessage("x", role="critic")], "role 'critic': expected one of system, user"),
        ([HumanMessage([{"type": "image_url", "image_url": "x"}])], "'image_url': this model reads text only"),
        ([HumanMessage("hi"), ToolMessage([{"type": "audio"}], tool_call_id="1")], "'audio'"),
        ([("nobody", "hi")], "nobody"),
        ([{"role": "user"}], "content"),
    ],
)
def test_unknown_message_types(stored: MPlusChat, messages: list[Any], match: str) -> None:
    refused(stored, messages, match)


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "at least one message"),
        ("", r"HumanMessage\(content=''\): expected text"),
        ([HumanMessage(" \n\t")], "expected text"),
        ([HumanMessage([])], "expected text"),
        ([SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": ""}])], "expected text"),
    ],
)
def test_empty_messages(stored: MPlusChat, messages: Any, match: str) -> None:
    refused(stored, messages, match)


@pytest.mark.parametrize(
    ("items", "match"),
    [
        ("", "nothing to write"),
        ([Document(" "), Document("")], "nothing to write"),
        (["fine", 5], "Cannot memorize int"),
        ([HumanMessage("fine"), FunctionMessage("x", name="f")], "FunctionMessage"),
    ],
)
def test_what_cannot_be_memorized(stored: MPlusChat, items: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        stored.memorize(items, memory_key="anna")
    with pytest.raises(ValueError, match=match):
        asyncio.run(stored.amemorize(items, memory_key="anna"))


# --- tools --------------------------------------------------------------------------------------------


class Open(BaseModel):
    """Takes anything."""

    values: dict[str, Any]


class OpenDict(TypedDict):
    """Takes anything."""

    values: dict[str, int]


def open_function(values: dict) -> str:
    """Takes anything."""
    return str(values)


OPEN_SCHEMA = {
    "title": "deep",
    "description": "Open further down.",
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "object", "additionalProperties": True}}},
}


@pytest.mark.parametrize("tool", [Open, OpenDict, open_function, OPEN_SCHEMA])
def test_a_tool_schema_that_is_not_closed(stored: MPlusChat, tool: Any) -> None:
    for choice in (None, "any"):
        with pytest.raises(ValueError, match=r"is open \(additionalProperties.*Use a model with fields"):
            stored.bind_tools([tool], tool_choice=choice)


@pytest.mark.parametrize("schema", [Open, OpenDict, OPEN_SCHEMA])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_structured_answer_that_is_not_closed(stored: MPlusChat, schema: Any, method: Any) -> None:
    with pytest.raises(ValueError, match="is open"):
        stored.with_structured_output(schema, method=method)


def test_a_tool_that_raises(stored: MPlusChat, processed: Callable[..., None]) -> None:
    def pay(amount: int) -> str:
        """Pay somebody."""
        raise RuntimeError(f"the bank refused {amount}")

    class Forced(MPlusMemoryMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return super().wrap_model_call(request.override(tool_choice="pay"), handler)

    chat = stored.model_copy(update={"max_tokens": 200})
    agent = create_agent(chat, tools=[pay], middleware=[Forced(chat)])
    with pytest.raises(RuntimeError, match="the bank refused"):
        agent.invoke({"messages": [HumanMessage("Pay 5.")]}, ANNA)


def dictated(said: str) -> Callable[[list[int], torch.Tensor], torch.Tensor]:
    """A processor after which the model says just this."""
    wanted = [*MODEL.tokenizer(said)["input_ids"], MODEL.tokenizer.eos_token_id]

    def dictate(tokens: list[int], logits: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(logits, float("-inf"))
        forced[wanted[len(tokens)]] = 0
        return forced

    return dictate


@pytest.mark.parametrize(
    ("call", "name", "match"),
    [
        ('{"name": "pay", "arguments": {"amount":', None, "not valid JSON"),
        ('["pay", 5]', None, "expected an object with 'name'"),
        ('{"arguments": {"amount": 5}}', None, "expected an object with 'name'"),
        ('{"name": "pay", "arguments": "5"}', "pay", "expected 'arguments' to be an object"),
    ],
)
def test_invalid_tool_json_from_the_model(
    stored: MPlusChat,
    processed: Callable[[MPlus, Any], None],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    name: str | None,
    match: str,
) -> None:
    def pay(amount: int) -> str:
        """Pay somebody."""
        return pytest.fail("called")

    # The grammar would not let it through, so it is asked without.
    monkeypatch.setattr(Constraint, "tool_calls", lambda *_: None)
    processed(MODEL, dictated(f"Well.\n<tool_call>\n{call}\n</tool_call>"))
    bound = stored.bind_tools([pay], tool_choice="auto").with_config(ANNA).bind(max_tokens=200)
    answer = bound.invoke("Pay 5.")
    total = AIMessageChunk("")
    for chunk in bound.stream("Pay 5."):
        total += chunk
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls == [] and [c["name"] for c in answer.invalid_tool_calls] == [name]
    assert answer.invalid_tool_calls[0]["args"] == f"<tool_call>\n{call}" and match in str(
        answer.invalid_tool_calls[0]["error"]
    )
    assert answer.content == total.content == "Well.\n"
    assert total.tool_calls == [] and [c["args"] for c in total.invalid_tool_calls] == [f"<tool_call>\n{call}"]


def test_a_call_of_an_unknown_tool_or_a_bad_choice(stored: MPlusChat) -> None:
    def pay(amount: int) -> str:
        """Pay somebody."""
        return "paid"

    with pytest.raises(ValueError, match="tool choice 'steal': expected 'auto', 'required' or one of pay"):
        stored.bind_tools([pay], tool_choice="steal")
    with pytest.raises(ValueError, match="tool_choice="):
        stored.bind_tools([pay], tool_choice={"type": "any"})
    with pytest.raises(ValueError, match="method='yaml'"):
        stored.with_structured_output(OPEN_SCHEMA, method="yaml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="response_format="):
        stored.invoke("hi", config=ANNA, response_format={"type": "yaml"})


# --- names of memories --------------------------------------------------------------------------------

DOORS: dict[str, Callable[[MPlusChat, Any], Any]] = {
    "invoke": lambda chat, key: chat.invoke("hi", memory_key=key),
    "config": lambda chat, key: chat.invoke("hi", config={"configurable": {"memory_key": key}}),
    "stream": lambda chat, key: list(chat.stream("hi", memory_key=key)),
    "ainvoke": lambda chat, key: asyncio.run(chat.ainvoke("hi", memory_key=key)),
    "batch": lambda chat, key: chat.batch(["hi"], memory_key=key),
    "construction": lambda chat, key: MPlusChat(model=MODEL, store=chat.store, memory_key=key).invoke("hi"),
    "memorize": lambda chat, key: chat.memorize("A text.", memory_key=key),
    "forget": lambda chat, key: chat.forget("text-1", memory_key=key),
    "vector store": lambda chat, key: MPlusVectorStore(chat, memory_key=key).add_texts(["A text."]),
    "search": lambda chat, key: MPlusVectorStore(chat, memory_key=key).similarity_search("text"),
    "retriever": lambda chat, key: MPlusRetriever(chat=chat, memory_key=key).invoke("text"),
    "store": lambda chat, key: MPlusStore(chat, memory_key=key).put(("a",), "k", {"x": 1}),
    "middleware": lambda chat, key: create_agent(chat, tools=[], middleware=[MPlusMemoryMiddleware(chat)]).invoke(
        {"messages": [HumanMessage("hi")]}, {"configurable": {"thread_id": key}}
    ),
}
KEYS = ["", " ", "\n"]
FOREIGN = [
    "telegram:12345",
    "auth0|x",
    "../up",
    "..",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".hidden",
    "a" * 10_000,
    "☃",
    "e\u0301",
    "a\nb",
    "a\x00b",
    "-rf",
    "con",
    12345,
    uuid.UUID(int=7),
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key[:8]))
def test_a_wrong_memory_key(stored: MPlusChat, key: str) -> None:
    for door, enter in DOORS.items():
        with pytest.raises(ValueError, match=r"memory_key=.*expected at least one character") as error:
            enter(stored, key)
        assert len(str(error.value)) < 400, door
    with pytest.raises(ValueError, match=r"memory_key=.*expected at least one character"):
        MPlusChat(model=MODEL).memorize("A text.", memory_key=key)


@pytest.mark.parametrize("key", FOREIGN, ids=lambda key: ascii(str(key)[:8]))
def test_an_id_that_we_did_not_choose_is_never_refused_and_listed_as_it_was(tmp_path: Path, key: Any) -> None:
    store = MemoryStore(tmp_path)
    chat = MPlusChat(model=MODEL, store=store, max_tokens=2)
    chat.memorize("A text.", memory_key=key)
    MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=2, memory_key=key).memorize("More.")
    assert chat.invoke("hi", {"configurable": {"memory_key": key}}).response_metadata["prefix_tokens"] > 0
    (stored,) = store.list()
    assert stored.id == str(key) or len(str(key)) > 1000
    assert {path.parent for path in tmp_path.rglob("memory.json")} == {tmp_path / stored.name}


@pytest.mark.parametrize("key", [True, 1.5, ["anna"]])
def test_a_memory_key_that_is_no_string(stored: MPlusChat, key: Any) -> None:
    with pytest.raises(ValueError, match="expected a string"):
        stored.invoke("hi", memory_key=key)
    with pytest.raises(ValueError, match="string"):
        MPlusChat(model=MODEL, memory_key=key)


@pytest.mark.parametrize("key", ["Jürgen", "名前", "anna@example.org", "thread+1", "a" * 128, "b3d1f6a0-1c2d"])
def test_names_that_people_have_are_good(tmp_path: Path, key: str) -> None:
    for chat in (MPlusChat(model=MODEL, store=MemoryStore(tmp_path)), MPlusChat(model=MODEL)):
        chat.memorize("A text.", memory_key=key)
        with chat.opened(key) as memory:
            assert len(memory.sources()) == 1


def test_tools_for_memory_tell_the_model_what_is_wrong(stored: MPlusChat) -> None:
    chat = MPlusChat(model=MODEL)
    remember, recall, forget = memory_tools(chat)
    assert "Nothing is remembered" in forget.invoke({"source": "no such thing"})
    assert "Nothing is remembered" in recall.invoke({"query": "anything"})
    with pytest.raises(ValueError, match="nothing to write"):
        remember.invoke({"text": " "})
