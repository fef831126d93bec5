"""Settings of answers, in both frameworks: an unknown name is an error, None is the default, every known one counts."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import RunnableLambda
from llama_index.core.llms import ChatMessage

from mplus import Constraint, MemoryStore, UnknownNameError
from mplus.testing import tiny_model
from mplus_integrations import (
    MPlusChat,
    MPlusIndex,
    MPlusLLM,
    MPlusMemory,
    MPlusMemoryBlock,
    MPlusRetriever,
    MPlusVectorStore,
)
from mplus_integrations.llama_index import MPlusWriter
from mplus_integrations.settings import AnswerSettings, Call
from tests.conftest import TINY
from tests.generation.test_sampling import NUMBERS as OF_SAMPLING

MODEL = tiny_model(memory=TINY)
ASKED = [ChatMessage(content="Hello?")]


NUMBERS = ("max_tokens", *(name for name in OF_SAMPLING if name != "max_new_tokens"))


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=12)


@pytest.fixture
def llm() -> MPlusLLM:
    return MPlusLLM(model=MODEL, max_tokens=12)


async def listed(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]


async def awaited(chunks: Any) -> list[Any]:
    return [chunk async for chunk in await chunks]


DOORS: dict[str, Callable[[MPlusChat, MPlusLLM, dict[str, Any]], Any]] = {
    "invoke": lambda chat, _, given: chat.invoke("Hello?", **given).content,
    "stream": lambda chat, _, given: "".join(str(c.content) for c in chat.stream("Hello?", **given)),
    "ainvoke": lambda chat, _, given: asyncio.run(chat.ainvoke("Hello?", **given)).content,
    "astream": lambda chat, _, given: "".join(
        str(c.content) for c in asyncio.run(listed(chat.astream("Hello?", **given)))
    ),
    "batch": lambda chat, _, given: chat.batch(["Hello?"], **given)[0].content,
    "bind": lambda chat, _, given: chat.bind(**given).invoke("Hello?").content,
    "bind_tools": lambda chat, _, given: chat.bind_tools([], **given).invoke("Hello?").content,
    "generate_prompt": lambda chat, _, given: (
        chat.generate_prompt([ChatPromptValue(messages=[HumanMessage("Hello?")])], **given).generations[0][0].text
    ),
    "chat": lambda _, llm, given: llm.chat(ASKED, **given).message.content,
    "stream_chat": lambda _, llm, given: list(llm.stream_chat(ASKED, **given))[-1].message.content,
    "achat": lambda _, llm, given: asyncio.run(llm.achat(ASKED, **given)).message.content,
    "astream_chat": lambda _, llm, given: asyncio.run(awaited(llm.astream_chat(ASKED, **given)))[-1].message.content,
    "complete": lambda _, llm, given: llm.complete("Hello?", **given).text,
    "stream_complete": lambda _, llm, given: list(llm.stream_complete("Hello?", **given))[-1].text,
    "acomplete": lambda _, llm, given: asyncio.run(llm.acomplete("Hello?", **given)).text,
    "astream_complete": lambda _, llm, given: asyncio.run(awaited(llm.astream_complete("Hello?", **given)))[-1].text,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temprature": 9}, r"does not take 'temprature'\. Use temperature\. It takes: .*top_p"),
        ({"max_new_tokens": 3}, r"does not take 'max_new_tokens'\. Use max_tokens\."),
        ({"colour": "red"}, r"does not take 'colour'\. It takes: .*memory_key"),
    ],
)
def test_an_unknown_setting_of_a_call_is_named_with_the_nearest(
    chat: MPlusChat, llm: MPlusLLM, door: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnknownNameError, match=said):
        DOORS[door](chat, llm, given)


@pytest.mark.parametrize("door", DOORS)
def test_none_is_as_if_not_given(chat: MPlusChat, llm: MPlusLLM, door: str) -> None:
    nothing = dict.fromkeys({*Call.model_fields} - {"tools", "tool_choice"})
    expected = DOORS["complete"](chat, llm, {})
    assert DOORS[door](chat, llm, nothing) == DOORS[door](chat, llm, {}) == expected


@pytest.mark.parametrize("door", ["invoke", "astream", "bind", "chat", "stream_complete", "acomplete"])
@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 2},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 1.5, "seed": 3, "top_k": 2},
        {"temperature": 1.5, "seed": 3, "top_p": 0.4},
        {"repetition_penalty": 1.8},
        {"abstain_below": 1.0},
        {"abstain_below": 1.0, "abstain_reply": "Who knows."},
    ],
)
def test_every_setting_counts_for_a_call_and_for_an_object(
    chat: MPlusChat, llm: MPlusLLM, door: str, given: dict[str, Any]
) -> None:
    own = {"max_tokens": 12, **given}
    names = {**own, "max_new_tokens": own["max_tokens"]}
    del names["max_tokens"]
    expected = MODEL.generate(MODEL.new_memory(), [{"role": "user", "content": "Hello?"}], **names).text
    assert DOORS[door](chat, llm, given) == expected != DOORS[door](chat, llm, {})
    assert DOORS[door](MPlusChat(model=MODEL, **own), MPlusLLM(model=MODEL, **own), {}) == expected


@pytest.mark.parametrize("kind", [MPlusChat, MPlusLLM])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temprature": 9}, "does not take 'temprature'. Use temperature."),
        ({"max_new_tokens": 3}, "Use max_tokens."),
        ({"model_name": "smol-135m"}, "Use model."),
        ({"context_window": 100}, "does not take 'context_window'."),
        ({"top_p": 2}, "top_p=2.0: Input should be less than or equal to 1"),
        ({"max_tokens": 0}, "max_tokens=0: Input should be greater than or equal to 1"),
        ({"temperature": float("nan")}, "temperature=nan: "),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [""]}, "stop"),
        *(({name: True}, "expected a number, not True") for name in NUMBERS),
    ],
)
def test_a_constructor_refuses_what_it_cannot_use(kind: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        kind(model=MODEL, **given)


@pytest.mark.parametrize("kind", [MPlusChat, MPlusLLM])
def test_none_is_the_default_of_a_constructor(kind: Any) -> None:
    made = kind(**dict.fromkeys([*AnswerSettings.model_fields, "model", "memory", "store", "memory_key", "scheduler"]))
    assert made._own_settings() == kind()._own_settings() and made.model == "smol-135m"


@pytest.mark.parametrize("door", ["invoke", "astream", "chat", "stream_complete"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_p": 2}, "top_p=2"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": True}, "expected a number, not True"),
        ({"temperature": False}, "expected a number, not False"),
        ({"where": 5}, "where"),
    ],
)
def test_a_setting_of_a_call_out_of_range_is_named(
    chat: MPlusChat, llm: MPlusLLM, door: str, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        DOORS[door](chat, llm, given)


@pytest.mark.parametrize("kind", [MPlusChat, MPlusLLM])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": -5}, "temperature=-5"),
        ({"temperature": True}, "not True"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"gate": "open"}, "gate"),
        ({"prompt_turns": -1}, "prompt_turns"),
    ],
)
def test_a_copy_refuses_a_setting_out_of_range(kind: Any, given: dict[str, Any], said: str) -> None:
    made = kind(model=MODEL)
    with pytest.raises(ValueError, match=said):
        made.model_copy(update=given)
    assert made.model_copy(update={"temperature": 0.5}).temperature == 0.5


MAKERS: dict[str, Callable[..., Any]] = {
    "retriever": lambda **given: MPlusRetriever(chat=MPlusChat(model=MODEL), **given),
    "block": lambda **given: MPlusMemoryBlock(llm=MPlusLLM(model=MODEL), **given),
    "writer": lambda **given: MPlusWriter(llm=MPlusLLM(model=MODEL), **given),
    "memory": lambda **given: MPlusMemory(**given),
    "memory from defaults": lambda **given: MPlusMemory.from_defaults(llm=MPlusLLM(model=MODEL), **given),
    "index": lambda **given: MPlusIndex(nodes=[], llm=MPlusLLM(model=MODEL), **given),
    "store": lambda **given: MPlusVectorStore.from_texts(["A text."], chat=MPlusChat(model=MODEL), **given),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_what_else_is_made_refuses_unknown_arguments(maker: str) -> None:
    with pytest.raises((ValueError, TypeError), match="memory_kye"):
        MAKERS[maker](memory_kye="anna")


def test_a_vector_store_refuses_what_it_would_not_do() -> None:
    store = MPlusVectorStore.from_texts(["Pears are sweet.", "Plums are blue."], chat=MPlusChat(model=MODEL))
    for call in (store.delete, store.adelete):
        with pytest.raises(UnknownNameError, match=r"delete does not take 'where'"):
            found = call(where={"a": 1})
            asyncio.run(found)  # type: ignore[arg-type]
    for search in (store.similarity_search, store.max_marginal_relevance_search, store.similarity_search_with_score):
        with pytest.raises(UnknownNameError, match=r"'filtr'. Use filter"):
            search("pears", filtr={})
    with pytest.raises(UnknownNameError, match="'idz'. Use ids"):
        store.add_texts(["x"], idz=["1"])
    assert len(store.similarity_search("pears", k=4)) == 2


# --- which sources are read ---------------------------------------------------------------------------


def test_where_counts_in_both_frameworks(chat: MPlusChat, llm: MPlusLLM) -> None:
    for one in (chat, llm):
        one.memorize("My dog is called Biscuit, and he likes bread.", source="a", metadata={"lang": "en"})
        one.memorize("Der Hund heißt Keks.", source="b", metadata={"lang": "de"})
    choices: list[Any] = [None, {"lang": "de"}, lambda name, _: name == "b", {"lang": "fr"}]
    in_chat = [chat.invoke("Hello?", where=where) for where in choices]
    sizes = [answer.response_metadata["prefix_tokens"] for answer in in_chat]
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3] == 0
    assert sizes == [llm.chat(ASKED, where=where).raw["prefix_tokens"] for where in choices]
    fresh = MPlusChat(model=MODEL, max_tokens=12)
    assert in_chat[3].content == fresh.invoke("Hello?").content, "nothing to read: exactly the backbone"


def test_a_cached_answer_is_one_of_the_same_sources(chat: MPlusChat) -> None:
    chat = MPlusChat(model=MODEL, max_tokens=12, cache=InMemoryCache())
    chat.memorize("My dog is called Biscuit, and he likes bread.", source="a")
    sizes = [
        chat.invoke("Hello?", where=where).response_metadata["prefix_tokens"]
        for where in (lambda name, _: name == "a", lambda name, _: name == "b", None, {"lang": "fr"})
    ]
    assert sizes[0] == sizes[2] > 0 and sizes[1] == sizes[3] == 0


def test_an_answer_may_have_one_call_only(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus.generation.streams import GenerationStream

    two = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' * 2
    real = GenerationStream.generation.fget
    assert real is not None
    monkeypatch.setattr(
        GenerationStream,
        "generation",
        property(lambda self: real(self).__class__(**{**vars(real(self)), "text": two})),
    )

    def f() -> None:
        """Do it."""

    monkeypatch.setattr(Constraint, "tool_calls", lambda *_: None)
    bound = chat.bind_tools([f], tool_choice="auto")
    assert len(bound.invoke("Go.").tool_calls) == 2
    assert len(bound.bind(parallel_tool_calls=False).invoke("Go.").tool_calls) == 1


# --- whose memory, on every path of LangChain ---------------------------------------------------------


def test_a_config_names_the_memory_on_every_path(tmp_path: Any) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=4)
    chat.memorize("The key is under the pot.", memory_key="anna")
    prompts = [ChatPromptValue(messages=[HumanMessage("Where?")])]
    config: Any = {"configurable": {"memory_key": "anna"}}

    def whole(result: Any) -> int:
        return result.generations[0][0].message.response_metadata["prefix_tokens"]

    async def agenerate(_: Any) -> int:
        return whole(await chat.agenerate_prompt(prompts))

    paths: list[Any] = [
        RunnableLambda(lambda _: whole(chat.generate_prompt(prompts))),
        RunnableLambda(lambda _: whole(chat.generate([[HumanMessage("Where?")]]))),
        RunnableLambda(lambda _: chat.invoke("Where?").response_metadata["prefix_tokens"]),
        chat | RunnableLambda(lambda answer: answer.response_metadata["prefix_tokens"]),
    ]
    for path in paths:
        assert path.invoke("Where?", config) > 0 and path.invoke("Where?") == 0
    assert asyncio.run(RunnableLambda(agenerate).ainvoke("Where?", config)) > 0
    assert asyncio.run(RunnableLambda(agenerate).ainvoke("Where?")) == 0
