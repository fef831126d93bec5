"""Chains of langchain-classic over a chat with a store: each reads the memory that its caller names, or refuses."""

import asyncio
import importlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManager
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnableLambda

from mplus import Memory, MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusVectorStore
from tests.conftest import TINY
from tests.integrations.langchain.conftest import codes_of_users

MODEL = tiny_model(1, memory=TINY, max_position_embeddings=4096)
CONFIGURED: Any = {"configurable": {"memory_key": "anna"}}
TOLD: Any = {"metadata": {"memory_key": "anna"}}
BOTH: Any = {**CONFIGURED, **TOLD}
PROMPT = PromptTemplate.from_template("{query}")
PROMPT_OF_ANSWER = PromptTemplate.from_template("{answer}")
STUFFED = ChatPromptTemplate.from_messages([("system", "Known: {context}"), ("human", "{input}")])
REPHRASED = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")])
ASKED = {
    "query": "What is my code?",
    "input": "What is my code?",
    "question": "What is my code?",
    "chat_history": [HumanMessage("Hello."), AIMessage("Hi.")],
}


def classic(name: str) -> Any:
    """A module of langchain-classic, which need not be there."""
    pytest.importorskip("langchain_classic", reason="langchain-classic is not installed")
    return importlib.import_module(f"langchain_classic.{name}")


def of_retriever(llm: Any, retriever: Any) -> Any:
    made = classic("chains").create_retrieval_chain
    return made(retriever, classic("chains.combine_documents").create_stuff_documents_chain(llm, STUFFED))


def aware_of_history(llm: Any, retriever: Any) -> Any:
    return of_retriever(llm, classic("chains").create_history_aware_retriever(llm, retriever, REPHRASED))


def question_answering(kind: str) -> Callable[[Any, Any], Any]:
    return lambda llm, retriever: classic("chains").RetrievalQA.from_chain_type(
        llm, retriever=retriever, chain_type=kind
    )


PASSING_ON: dict[str, Callable[[Any, Any], Any]] = {
    "create_retrieval_chain": of_retriever,
    "create_history_aware_retriever": aware_of_history,
}
LOSING: dict[str, Callable[[Any, Any], Any]] = {
    "LLMChain": lambda llm, retriever: classic("chains").LLMChain(llm=llm, prompt=PROMPT),
    "RetrievalQA": question_answering("stuff"),
    "RetrievalQA, refined": question_answering("refine"),
    "RetrievalQA, map_reduce": question_answering("map_reduce"),
    "ConversationalRetrievalChain": lambda llm, retriever: classic("chains").ConversationalRetrievalChain.from_llm(
        llm, retriever=retriever
    ),
}
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "invoke": lambda chain, config: chain.invoke(ASKED, config),
    "ainvoke": lambda chain, config: asyncio.run(chain.ainvoke(ASKED, config)),
    "batch": lambda chain, config: chain.batch([ASKED, ASKED], config),
    "stream": lambda chain, config: list(chain.stream(ASKED, config)),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a memory for each user, and one that nobody named."""
    return codes_of_users(tmp_path_factory.mktemp("written") / "memories", MODEL)


@pytest.fixture
def chat(written: Path, tmp_path: Path) -> MPlusChat:
    return MPlusChat(model=MODEL, store=MemoryStore(shutil.copytree(written, tmp_path / "memories")), max_tokens=2)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The texts of every memory that is read or searched."""
    seen: set[str] = set()
    read, searched = MODEL.stream, MODEL.search

    def stream(memory: Any, prompt: Any, **options: Any) -> Any:
        for one in [memory] if isinstance(memory, Memory) else memory:
            seen.update(text for source in one.sources() for text in source.texts)
        return read(memory, prompt, **options)

    def search(memory: Memory, query: str, **options: Any) -> Any:
        seen.update(text for source in memory.sources() for text in source.texts)
        return searched(memory, query, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    monkeypatch.setattr(MODEL, "search", search)
    return seen


pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainDeprecationWarning")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*PASSING_ON, *LOSING])
def test_a_chain_reads_the_memory_of_its_caller(name: str, way: str, chat: MPlusChat, looked_at: set[str]) -> None:
    made = {**PASSING_ON, **LOSING}[name]
    for required in (None, True):
        asking = chat.model_copy(update={"require_key": required})
        for config in (TOLD, BOTH, CONFIGURED) if name in PASSING_ON else (TOLD, BOTH):
            WAYS[way](made(asking, MPlusRetriever(chat=asking)), config)
    assert looked_at == {"My code is 4711."}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSING)
def test_a_chain_that_loses_the_name_is_refused(name: str, way: str, chat: MPlusChat, looked_at: set[str]) -> None:
    for required, says in ((None, "passes no config on"), (True, "as metadata too, where a chain passes no more on")):
        asking = chat.model_copy(update={"require_key": required})
        with pytest.raises(ValueError, match=says):
            WAYS[way](LOSING[name](asking, MPlusRetriever(chat=asking)), CONFIGURED)
    assert not looked_at


@pytest.mark.parametrize("name", [name for name in LOSING if name != "LLMChain"])
def test_a_retriever_is_not_asked_without_its_name_for_another_model(
    name: str, chat: MPlusChat, looked_at: set[str]
) -> None:
    other = FakeListChatModel(responses=["Yes."], custom_get_token_ids=lambda _: [0])
    with pytest.raises(ValueError, match="passes no config on"):
        LOSING[name](other, MPlusRetriever(chat=chat)).invoke(ASKED, CONFIGURED)
    assert not looked_at
    LOSING[name](other, MPlusRetriever(chat=chat)).invoke(ASKED, TOLD)
    assert looked_at == {"My code is 4711."}


@pytest.mark.parametrize("name", [*PASSING_ON, *LOSING])
def test_documents_for_all_are_read_beside_the_memory_of_the_caller(
    name: str, chat: MPlusChat, looked_at: set[str]
) -> None:
    store = MPlusVectorStore.from_documents([Document("The library opens at nine.")], chat=chat, memory_key="docs")
    {**PASSING_ON, **LOSING}[name](chat, store.as_retriever()).invoke(ASKED, TOLD)
    assert looked_at <= {"My code is 4711.", "The library opens at nine."} and "My code is 4711." in looked_at


def test_an_agent_reads_the_memory_that_its_metadata_names(chat: MPlusChat, looked_at: set[str]) -> None:
    agents = classic("agents")
    prompt = ChatPromptTemplate.from_messages([("human", "{input}"), MessagesPlaceholder("agent_scratchpad")])
    agent = agents.create_tool_calling_agent(chat, [], prompt)
    agents.AgentExecutor(agent=agent, tools=[]).invoke(ASKED, TOLD)
    assert looked_at == {"My code is 4711."}


def test_the_callbacks_of_a_config_name_a_memory(chat: MPlusChat, looked_at: set[str]) -> None:
    callbacks = CallbackManager([], inheritable_metadata={"memory_key": "anna"})
    chat.invoke("What is my code?", {"callbacks": callbacks})
    list(chat.stream("What is my code?", {"callbacks": callbacks}))
    MPlusRetriever(chat=chat).invoke("code", {"callbacks": callbacks})
    assert looked_at == {"My code is 4711."}


def test_a_retriever_refuses_a_config_that_has_nothing_but_callbacks_of_a_chain(chat: MPlusChat) -> None:
    lost: Any = {"callbacks": CallbackManager([], parent_run_id=uuid.uuid4())}
    retriever = MPlusRetriever(chat=chat)
    with pytest.raises(ValueError, match="passes no config on"):
        retriever.invoke("code", lost)
    with pytest.raises(ValueError, match="passes no config on"):
        asyncio.run(retriever.ainvoke("code", lost))
    free = MPlusRetriever(chat=chat.model_copy(update={"require_key": False}))
    assert [found.page_content for found in free.invoke("code", lost)] == ["My code is 9999."]
    own = MPlusRetriever(chat=chat, memory_key="bob")
    assert [found.page_content for found in own.invoke("code", lost)] == ["My code is 0815."]


WRAPPED: dict[str, Callable[[MPlusChat], Any]] = {
    "with_config": lambda chat: chat.with_config(tags=["mine"]),
    "bind": lambda chat: chat.bind(stop=["x"]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_hides_no_name_that_a_chain_loses(name: str, chat: MPlusChat, looked_at: set[str]) -> None:
    chain = classic("chains").LLMChain(llm=WRAPPED[name](chat), prompt=PROMPT)
    with pytest.raises(ValueError, match="passes no config on"):
        chain.invoke(ASKED, CONFIGURED)
    assert not looked_at
    chain.invoke(ASKED, TOLD)
    assert looked_at == {"My code is 4711."}
    looked_at.clear()
    for free in (WRAPPED[name](chat), WRAPPED[name](chat) | str, {"answer": WRAPPED[name](chat)} | PROMPT_OF_ANSWER):
        free.invoke("What is my code?")
        free.batch(["What is my code?", "And?"])
    assert looked_at == {"My code is 9999."}, "without any name, and without a chain that loses it"


def test_a_retriever_over_others_hides_no_name(chat: MPlusChat, looked_at: set[str]) -> None:
    retriever = classic("retrievers").EnsembleRetriever(retrievers=[MPlusRetriever(chat=chat)])
    with pytest.raises(ValueError, match="passes no config on"):
        question_answering("stuff")(FakeListChatModel(responses=["Yes."]), retriever).invoke(ASKED, CONFIGURED)
    assert not looked_at
    for asked in (retriever, RunnableLambda(str) | retriever):
        for config in (TOLD, CONFIGURED):
            assert [found.page_content for found in asked.invoke("code", config)] == ["My code is 4711."]
