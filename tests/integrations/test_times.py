"""What is written with a time through a framework is read by it."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

from mplus import Memory
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY, num_hidden_layers=2)
OLD, NEW = "The key is under the third flowerpot.", "The key is with the neighbour now."


def names(memory: Memory, **times: Any) -> list[str]:
    return [source.name for source in memory.sources(**times)]


def recalled(answer: Any) -> set[str]:
    return {one["source"] for one in answer.response_metadata["recalled"]}


def test_messages_have_their_own_time_unless_one_is_given() -> None:
    chat = MPlusChat(model=MODEL)
    chat.memorize(
        [
            HumanMessage(OLD, id="a", additional_kwargs={"timestamp": "2023-05-01T10:00:00Z"}),
            AIMessage("Noted.", id="b", response_metadata={"created_at": 1714521600}),
            HumanMessage(NEW, id="c"),
        ]
    )
    with chat.opened() as memory:
        assert names(memory, as_of="2023-12-31") == ["a"]
        assert names(memory, as_of="2024-12-31") == ["a", "b"]
    assert recalled(chat.invoke("Where is the key?", as_of="2023-12-31", max_tokens=2, gate="always")) == {"a"}
    assert recalled(chat.invoke("Where?", since="2024-01-01", max_tokens=2, gate="always")) == {"b", "c"}
    found = MPlusRetriever(chat=chat, until=date(2023, 12, 31)).invoke("key")
    assert [document.id for document in found] == ["a"]
    with pytest.raises(ValueError, match="as_of='then'"):
        chat.invoke("Where?", as_of="then")

    other = MPlusChat(model=MODEL)
    other.memorize([OLD, NEW], source="key", at=["2023-05-01", "2024-05-01"], dated=True)
    with other.opened() as memory:
        (source,) = memory.sources(as_of="2023-05-01")
        assert source.texts == (OLD,)
    with pytest.raises(ValueError, match="1 times for 2 items"):
        other.memorize([OLD, NEW], at=["2023-05-01"])


def test_documents_of_a_vector_store_count_from_the_date_in_their_metadata() -> None:
    documents = [
        Document(OLD, id="old", metadata={"date": date(2023, 5, 1)}),
        Document(NEW, id="new", metadata={"date": "2024-05-01"}),
        Document("Pears are green.", id="now"),
    ]
    store = MPlusVectorStore.from_documents(documents, chat=MPlusChat(model=MODEL), time_key="date")
    assert {d.id for d in store.similarity_search("key", as_of="2024-05-01")} == {"old", "new"}
    assert [d.id for d in store.similarity_search("key", k=1, since="2024-01-01", until="2024-12-31")] == ["new"]
    assert [d.id for d in store.max_marginal_relevance_search("key", until="2023-12-31")] == ["old"]
    retriever = store.as_retriever(search_kwargs={"k": 3, "until": "2023-12-31"})
    assert [d.id for d in retriever.invoke("key")] == ["old"]
    with pytest.raises(ValueError, match="at='soon'"):
        store.add_documents([Document("x", id="x", metadata={"date": "soon"})])
    assert store.get_by_ids(["x"]) == []
    plain = MPlusVectorStore.from_documents(documents, chat=MPlusChat(model=MODEL))
    assert plain.similarity_search("key", as_of="2024-05-01") == []


def test_nodes_of_an_index_count_from_the_date_in_their_metadata(tmp_path: Path) -> None:
    def node(name: str, text: str, when: str) -> TextNode:
        return TextNode(id_=name, text=text, metadata={"creation_date": when})

    llm = MPlusLLM(model=MODEL, max_tokens=2)
    index = MPlusIndex([node("old", OLD, "2023-05-01")], llm=llm, time_key="creation_date")
    index.storage_context.persist(str(tmp_path))
    index = MPlusIndex.load(str(tmp_path), llm=llm)
    index.insert_nodes([node("new", NEW, "2024-05-01")])  # the key is kept with the index

    def found(**times: Any) -> set[str]:
        return {one.node.node_id for one in index.as_retriever(similarity_top_k=5, **times).retrieve("key")}

    assert found(as_of="2023-12-31") == {"old"}
    assert found(since="2024-01-01") == {"new"}
    assert found(until="2030-01-01") == {"old", "new"}
    answer = index.as_query_engine(as_of=date(2023, 12, 31), recall="latent").query("Where is the key?")
    assert {one.node.node_id for one in answer.source_nodes} == {"old"}
    engine = index.as_query_engine(since="2024-01-01", recall="latent", similarity_top_k=5)
    index.insert_nodes([node("newer", "The key is in the shed.", "2024-06-01")])  # said in the engine's period
    where = engine._response_synthesizer._bound([], ())._bound_where
    assert [name for name in ("old", "new", "newer") if where(name, {})] == ["new", "newer"]


def test_a_noted_time_that_is_none_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    chat = MPlusChat(model=MODEL)
    chat.memorize(
        [
            HumanMessage(OLD, id="a", additional_kwargs={"timestamp": 1682935200000}),  # milliseconds
            HumanMessage(NEW, id="b", additional_kwargs={"timestamp": "10:42"}),
        ]
    )
    with chat.opened() as memory:
        assert names(memory, as_of="2023-12-31") == ["a"]
        assert names(memory) == ["a", "b"]
    assert "10:42" in caplog.text


def test_chat_messages_of_llama_index_have_their_own_time() -> None:
    llm = MPlusLLM(model=MODEL, max_tokens=2, gate="always")
    llm.memorize([ChatMessage(OLD, additional_kwargs={"timestamp": 1682899200, "id": "a"})])
    llm.memorize(NEW, source="new", at="2024-05-01")
    with llm.opened() as memory:
        assert len(names(memory, as_of="2023-12-31")) == 1 and len(names(memory)) == 2
    answer = llm.complete("Where?", since="2024-01-01")
    assert {one["source"] for one in answer.raw["recalled"]} == {"new"}
