"""Whose memory a call reads, whichever way it comes, and that an unnamed memory goes with copies of its chat."""

import asyncio
import copy
import pickle
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.prompt_values import StringPromptValue
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel
from langchain_core.runnables.history import RunnableWithMessageHistory
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel

from mplus import KeyVault, Memory, MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusStore, MPlusVectorStore
from tests.conftest import TINY
from tests.integrations.langchain.conftest import codes_of_users

MODEL = tiny_model(1, memory=TINY)
ANNA: Any = {"configurable": {"memory_key": "anna"}}
ASKED = [StringPromptValue(text="What is my code?")]
MESSAGES = [[HumanMessage("What is my code?")]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a memory for each user."""
    return codes_of_users(tmp_path_factory.mktemp("written") / "memories", MODEL)


@pytest.fixture
def chat(written: Path, tmp_path: Path) -> MPlusChat:
    return MPlusChat(model=MODEL, store=MemoryStore(shutil.copytree(written, tmp_path / "memories")), max_tokens=4)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that each answer may read."""
    seen: list[str] = []
    real = MODEL.stream

    def stream(memory: Memory, prompt: Any, **options: Any) -> Any:
        seen.append(" ".join(text for source in memory.sources() for text in source.texts))
        return real(memory, prompt, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    return seen


def in_chain(kind: type[Any] = CallbackManager, **metadata: Any) -> Any:
    """The callbacks that a chain such as LLMChain or RetrievalQA passes on, which is all that it passes on."""
    return kind([], parent_run_id=uuid.uuid4(), inheritable_metadata=metadata)


async def astreamed(chat: Any, config: Any) -> None:
    async for _ in chat.astream("What is my code?", config):
        pass


async def events(chat: Any, config: Any) -> None:
    async for _ in chat.astream_events("What is my code?", config, version="v2"):
        pass


def spell(text: str) -> str:
    """Spell."""
    return text


class Code(BaseModel):
    """A code."""

    digits: str


def failing(_: Any) -> Any:
    raise ValueError("not today")


IN_SESSION: Any = {"configurable": {"memory_key": "anna", "session_id": "first"}}


def with_history(chat: MPlusChat) -> Any:
    said = InMemoryChatMessageHistory()
    return RunnableWithMessageHistory(chat, lambda session_id: said)


def graph(node: Any) -> Any:
    built: Any = StateGraph(MessagesState)
    built.add_node("answer", node)
    built.add_edge(START, "answer")
    return built.compile()


def anode(chat: MPlusChat) -> Any:
    async def answer(state: Any) -> Any:
        return {"messages": [await chat.ainvoke(state["messages"])]}

    return answer


WITH_A_KEY: dict[str, Callable[[MPlusChat], Any]] = {
    "invoke": lambda chat: chat.invoke("What is my code?", ANNA),
    "stream": lambda chat: list(chat.stream("What is my code?", ANNA)),
    "batch": lambda chat: chat.batch(["What is my code?"], ANNA),
    "ainvoke": lambda chat: asyncio.run(chat.ainvoke("What is my code?", ANNA)),
    "astream": lambda chat: asyncio.run(astreamed(chat, ANNA)),
    "with_config": lambda chat: chat.with_config(ANNA).invoke("What is my code?"),
    "metadata of a config": lambda chat: chat.invoke("What is my code?", {"metadata": {"memory_key": "anna"}}),
    "generate": lambda chat: chat.generate(MESSAGES, memory_key="anna"),
    "generate with metadata": lambda chat: chat.generate(MESSAGES, metadata={"memory_key": "anna"}),
    "generate_prompt": lambda chat: chat.generate_prompt(ASKED, callbacks=in_chain(memory_key="anna")),
    "agenerate_prompt": lambda chat: asyncio.run(
        chat.agenerate_prompt(ASKED, callbacks=in_chain(AsyncCallbackManager, memory_key="anna"))
    ),
    "a chain in a chain": lambda chat: RunnableLambda(lambda _: chat.generate_prompt(ASKED)).invoke("", ANNA),
    "a chain in a chain, async": lambda chat: asyncio.run(
        RunnableLambda(lambda _: None, afunc=lambda _: chat.agenerate_prompt(ASKED)).ainvoke("", ANNA)
    ),
    "batch with configs": lambda chat: chat.batch(["What is my code?"], [ANNA]),
    "abatch": lambda chat: asyncio.run(chat.abatch(["What is my code?"], ANNA)),
    "batch_as_completed": lambda chat: list(chat.batch_as_completed(["What is my code?"], [ANNA])),
    "astream_events": lambda chat: asyncio.run(events(chat, ANNA)),
    "bind": lambda chat: chat.bind(memory_key="anna").invoke("What is my code?"),
    "bind_tools": lambda chat: chat.bind_tools([spell]).invoke("What is my code?", ANNA),
    "with_structured_output": lambda chat: chat.with_structured_output(Code, include_raw=True).invoke("Code?", ANNA),
    "a key bound to a form": lambda chat: chat.with_structured_output(Code, include_raw=True, memory_key="anna").invoke(
        "Code?"
    ),
    "with_retry": lambda chat: chat.with_retry().invoke("What is my code?", ANNA),
    "with_fallbacks": lambda chat: RunnableLambda(failing).with_fallbacks([chat]).invoke("What is my code?", ANNA),
    "RunnableParallel": lambda chat: RunnableParallel(one=chat).invoke("What is my code?", ANNA),
    "configurable_fields": lambda chat: (
        chat.configurable_fields(memory_key=ConfigurableField("who"))
        .with_config(configurable={"who": "anna"})
        .invoke("What is my code?")
    ),
    "RunnableWithMessageHistory": lambda chat: with_history(chat).invoke(MESSAGES[0], IN_SESSION),
    "RunnableWithMessageHistory, streamed": lambda chat: list(with_history(chat).stream(MESSAGES[0], IN_SESSION)),
    "a node of LangGraph": lambda chat: graph(lambda state: {"messages": [chat.invoke(state["messages"])]}).invoke(
        {"messages": MESSAGES[0]}, ANNA
    ),
    "an async node": lambda chat: asyncio.run(graph(anode(chat)).ainvoke({"messages": MESSAGES[0]}, ANNA)),
    "a node that asks by generate": lambda chat: graph(
        lambda state: {"messages": [chat.generate([state["messages"]]).generations[0][0].message]}
    ).invoke({"messages": MESSAGES[0]}, ANNA),
    "a graph in a graph": lambda chat: graph(
        graph(lambda state: {"messages": [chat.invoke(state["messages"])]})
    ).invoke({"messages": MESSAGES[0]}, ANNA),
    "an object with a key": lambda chat: chat.model_copy(update={"memory_key": "anna"}).generate_prompt(
        ASKED, callbacks=in_chain()
    ),
}


@pytest.mark.parametrize("way", WITH_A_KEY)
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
def test_a_memory_key_counts_on_every_path(chat: MPlusChat, read: list[str], way: str) -> None:
    WITH_A_KEY[way](chat)
    assert read == ["My code is 4711."]


@pytest.mark.parametrize("way", WITH_A_KEY)
@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")
def test_a_cached_answer_is_of_the_memory_that_the_key_names(chat: MPlusChat, read: list[str], way: str) -> None:
    chat.cache = InMemoryCache()
    chat.invoke("What is my code?", memory_key="bob")
    WITH_A_KEY[way](chat)
    assert read == ["My code is 0815.", "My code is 4711."]


WITHOUT_A_KEY: dict[str, Callable[[MPlusChat], Any]] = {
    "invoke": lambda chat: chat.invoke("What is my code?"),
    "stream": lambda chat: list(chat.stream("What is my code?")),
    "ainvoke": lambda chat: asyncio.run(chat.ainvoke("What is my code?")),
    "astream": lambda chat: asyncio.run(astreamed(chat, None)),
    "generate": lambda chat: chat.generate(MESSAGES),
    "generate_prompt": lambda chat: chat.generate_prompt(ASKED),
    "agenerate_prompt": lambda chat: asyncio.run(chat.agenerate_prompt(ASKED)),
    "memorize": lambda chat: chat.memorize("A text."),
    "forget": lambda chat: chat.forget("code"),
    "retriever": lambda chat: MPlusRetriever(chat=chat).invoke("code"),
}


@pytest.mark.parametrize("way", WITHOUT_A_KEY)
def test_require_key_refuses_where_a_store_is_set_and_no_key_arrives(chat: MPlusChat, way: str) -> None:
    with pytest.raises(ValueError, match=r"No memory_key= was given.*require_key=False"):
        WITHOUT_A_KEY[way](chat.model_copy(update={"require_key": True}))
    WITHOUT_A_KEY[way](chat)


def test_a_server_requires_a_key_unless_told_otherwise(chat: MPlusChat) -> None:
    with MODEL.serve() as scheduler:
        server = chat.model_copy(update={"scheduler": scheduler})
        with pytest.raises(ValueError, match="No memory_key= was given"):
            server.invoke("What is my code?")
        server.invoke("What is my code?", memory_key="anna")
        server.model_copy(update={"require_key": False}).invoke("What is my code?")
        MPlusChat(model=MODEL, scheduler=scheduler, max_tokens=2).invoke("No store, no names.")


def test_a_chain_that_passes_no_config_on_is_refused_since_a_key_may_be_lost(chat: MPlusChat, read: list[str]) -> None:
    with pytest.raises(ValueError, match="A chain asked that passes no config on"):
        chat.generate_prompt(ASKED, callbacks=in_chain())
    assert read == []
    chat.model_copy(update={"require_key": False}).generate_prompt(ASKED, callbacks=in_chain())
    assert read == ["My code is 9999."]
    (chat | RunnableLambda(str)).invoke("What is my code?")
    assert read[1:] == ["My code is 9999."], "a chain that passes its config on has lost nothing"


def test_a_retriever_searches_the_memory_that_the_config_names(chat: MPlusChat) -> None:
    found = MPlusRetriever(chat=chat).invoke("code", ANNA)
    assert [d.page_content for d in found] == ["My code is 4711."]
    chained = RunnableLambda(lambda text: text) | MPlusRetriever(chat=chat)
    assert [d.page_content for d in chained.invoke("code", ANNA)] == ["My code is 4711."]
    own = MPlusRetriever(chat=chat, memory_key="bob")
    assert [d.page_content for d in own.invoke("code", ANNA)] == ["My code is 0815."]
    assert [d.page_content for d in own.invoke("code", memory_key="anna")] == ["My code is 4711."], "of this call"
    with pytest.raises(ValueError, match="was made with memory="):
        MPlusRetriever(chat=MPlusChat(model=MODEL, memory=MODEL.new_memory()), memory_key="bob").invoke("code")


def test_a_retriever_finds_the_same_without_blocking(chat: MPlusChat) -> None:
    async def found() -> list[list[Document]]:
        retriever = MPlusRetriever(chat=chat)
        (batched,) = await retriever.abatch(["code"], ANNA)
        in_chain = await (RunnableLambda(str) | retriever).ainvoke("code", ANNA)
        bob = await retriever.ainvoke("code", memory_key="bob", k=1)
        return [batched, in_chain, await retriever.bind(memory_key="anna").ainvoke("code"), bob]

    texts = [[d.page_content for d in documents] for documents in asyncio.run(found())]
    assert texts == [["My code is 4711."]] * 3 + [["My code is 0815."]]


def test_what_a_step_of_a_chain_memorizes_or_forgets_is_of_the_memory_that_the_config_names(chat: MPlusChat) -> None:
    def texts(key: str) -> set[str]:
        return {text for source in chat.latents(key).read(MODEL).sources() for text in source.texts}

    async def anote(_: Any) -> Any:
        return await chat.amemorize("My dog is called Rex.", source="dog")

    RunnableLambda(lambda _: chat.memorize("My cat is called Mimi.", source="cat")).invoke("", ANNA)
    asyncio.run(RunnableLambda(lambda _: None, afunc=anote).ainvoke("", ANNA))
    assert texts("anna") == {"My code is 4711.", "My cat is called Mimi.", "My dog is called Rex."}
    RunnableLambda(lambda _: chat.forget("code")).invoke("", ANNA)
    assert texts("anna") == {"My cat is called Mimi.", "My dog is called Rex."}
    RunnableLambda(lambda _: chat.memorize("A note.", memory_key="bob")).invoke("", ANNA)
    assert texts("bob") == {"My code is 0815.", "A note."} and texts("default") == {"My code is 9999."}
    single = MPlusChat(model=MODEL, memory=MODEL.new_memory())
    assert RunnableLambda(lambda _: single.memorize("A note.")).invoke("", ANNA) > 0, "it has no names"


COPIES: dict[str, Callable[[MPlusChat], Any]] = {
    "configurable_fields": lambda chat: chat.configurable_fields(temperature=ConfigurableField("t")).with_config(
        {"configurable": {"t": 0.0}}
    ),
    "configurable_alternatives": lambda chat: chat.configurable_alternatives(
        ConfigurableField("who"), default_key="me"
    ).with_config({"configurable": {"who": "me"}}),
    "with_config": lambda chat: chat.with_config(tags=["x"]),
    "bind": lambda chat: chat.bind(temperature=0.0),
    "model_copy": lambda chat: chat.model_copy(update={"max_tokens": 3}),
    "deep model_copy": lambda chat: chat.model_copy(deep=True),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "its own fields": lambda chat: MPlusChat(**chat.__dict__),
}


@pytest.mark.parametrize("way", COPIES)
def test_an_unnamed_memory_goes_with_its_copies(read: list[str], way: str) -> None:
    chat = MPlusChat(model=MODEL, max_tokens=4)
    chat.memorize("My code is 4711.", source="code")
    chat.memorize("My code is 0815.", source="code", memory_key="bob")
    made = COPIES[way](chat)
    made.invoke("What is my code?")
    made.invoke("What is my code?", {"configurable": {"memory_key": "bob"}})
    assert read == ["My code is 4711.", "My code is 0815."]
    chat.memorize("My dog is called Rex.", source="dog")
    made.invoke("What is my code?")
    assert read[-1] == "My code is 4711. My dog is called Rex.", "what is written later too"


def test_a_copy_with_another_embedder_uses_that_one() -> None:
    def short(texts: list[str]) -> list[list[float]]:
        return [[1.0, float(len(text))] for text in texts]

    def long(texts: list[str]) -> list[list[float]]:
        return [[1.0, float(len(text)), 0.5] for text in texts]

    chat = MPlusChat(model=MODEL, embedder=short)
    assert chat.loaded.memory_config.has_vectors
    other = chat.model_copy(update={"embedder": MPlusChat(model=MODEL, embedder=long).embedder})
    assert other.loaded is not chat.loaded


# --- pickles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [lambda chat: chat, MPlusVectorStore, lambda chat: MPlusRetriever(chat=chat), MPlusStore]
)
def test_pickling_names_weights_and_store_and_leaves_the_living_object_alone(
    chat: MPlusChat, read: list[str], build: Callable[[MPlusChat], Any]
) -> None:
    before = dict(chat.__dict__)
    content = pickle.dumps(build(chat))
    assert chat.__dict__ == before and chat.store is before["store"]
    assert len(content) < 10_000, "no weights"
    made = pickle.loads(content)
    again = made if isinstance(made, MPlusChat) else made.chat
    assert again.loaded is MODEL and again.store is not None and chat.store is not None
    assert again.store.root == chat.store.root
    again.invoke("What is my code?", ANNA)
    assert read == ["My code is 4711."]


def test_an_unnamed_memory_goes_with_a_pickle(read: list[str]) -> None:
    chat = MPlusChat(model=MODEL, max_tokens=4)
    chat.memorize("My code is 4711.", source="code")
    made = pickle.loads(pickle.dumps(chat))
    chat.memorize("My dog is called Rex.", source="dog")
    made.invoke("What is my code?")
    chat.invoke("What is my code?")
    assert read == ["My code is 4711.", "My code is 4711. My dog is called Rex."]


def test_what_cannot_be_pickled_is_an_error_and_harms_nothing(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path / "s", vault=KeyVault(tmp_path / "k")), max_tokens=4)
    with pytest.raises(ValueError, match="vault"):
        pickle.dumps(chat)
    assert chat.store is not None and chat.store.vault is not None
    chat.memorize("My code is 4711.", memory_key="anna")
