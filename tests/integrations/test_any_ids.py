"""Ids that others chose, in every place that takes one: used as they are, or refused with what to write instead."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms import ChatMessage
from llama_index.core.settings import Settings

import mplus
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusWriter
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
IDS: list[Any] = ["telegram:12345", "x" * 5000, "é☃\U0001f600", "\ud83d", "a/b", "..", "a\nb", 0, -1, UUID(int=7)]
WRONG: list[Any] = [b"ab", 1.5, True, ("a",)]
CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


def short(id: object) -> str:
    return f"{id!r:.20}"


@pytest.fixture(autouse=True)
def _nothing_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=2))


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=2)


@pytest.fixture
def llm() -> MPlusLLM:
    return MPlusLLM(model=MODEL, max_tokens=2)


@pytest.mark.parametrize("id", IDS, ids=short)
def test_a_document_of_any_id_is_found_replaced_and_deleted(chat: MPlusChat, llm: MPlusLLM, id: Any) -> None:
    store = MPlusVectorStore(chat)
    assert store.add_texts(["Ann has a red box."], ids=[id]) == store.add_texts(["Ann has a blue box."], ids=[id])
    (found,) = store.get_by_ids([id])
    assert found.page_content == "Ann has a blue box." and found.id == str(id)
    assert store.delete([id]) and not store.similarity_search("Ann")
    assert llm.memorize("Ann has a box.", source=id) > 0 and llm.forget(id) > 0
    if isinstance(id, str):
        index = MPlusIndex.from_documents([Document(text="Ann has a red box.", id_=id)], llm=llm)
        index.update_ref_doc(Document(text="Ann has a blue box.", id_=id))
        assert [node.get_content() for node in index.as_retriever().retrieve("Ann")] == ["Ann has a blue box."]
        index.delete_ref_doc(id, delete_from_docstore=True)
        assert not index.as_retriever().retrieve("Ann") and index.ref_doc_info == {}


@pytest.mark.parametrize("id", IDS, ids=short)
def test_a_memory_of_any_key_is_its_own_and_listed_by_it(tmp_path: Path, id: Any) -> None:
    store = mplus.MemoryStore(tmp_path)
    chat, llm = MPlusChat(model=MODEL, store=store, max_tokens=2), MPlusLLM(model=MODEL, store=store, max_tokens=2)
    chat.memorize("Ann has a box.", source="ann", memory_key=id)
    read = chat.invoke("Who?", config={"configurable": {"memory_key": id}}).response_metadata["recalled"]
    assert [one["source"] for one in read] == ["ann"]
    assert [one["source"] for one in llm.complete("Who?", memory_key=id).raw["recalled"]] == ["ann"]
    memory = MPlusMemory.from_defaults(llm=llm, memory_key=id)
    memory.put(ChatMessage(role="user", content="I like red.", additional_kwargs={"id": id}))
    assert [one.id for one in store.list()] == [str(id)]


@pytest.mark.parametrize("id", WRONG, ids=short)
def test_what_is_no_id_is_refused_by_name(chat: MPlusChat, llm: MPlusLLM, id: Any) -> None:
    store = MPlusVectorStore(chat)
    tries = [
        lambda: store.add_texts(["Ann has a box."], ids=[id]),
        lambda: store.delete([id]),
        lambda: store.get_by_ids([id]),
        lambda: chat.memorize("Ann has a box.", source=id),
        lambda: llm.memorize("Ann has a box.", source=id),
        lambda: chat.memorize("Ann has a box.", memory_key=id),
        lambda: llm.complete("Who?", memory_key=id),
        lambda: MPlusMemory.from_defaults(llm=llm, conversation_id=id),
    ]
    for attempt in tries:
        with pytest.raises(ValueError, match="expected (text|a string)"):
            attempt()
    assert not store.similarity_search("Ann")


def test_an_empty_id_of_a_document_gets_one_made_or_is_refused(chat: MPlusChat, llm: MPlusLLM) -> None:
    store = MPlusVectorStore(chat)
    (made,) = store.add_documents([LangChainDocument("Ann has a box.", id="")])
    assert made and store.delete([made]) and not store.similarity_search("Ann")
    index = MPlusIndex.from_documents([Document(text="Bob has a cat.")], llm=llm)
    nameless = Document(text="Ann has a box.", id_="")
    writes = (
        lambda: MPlusIndex.from_documents([nameless], llm=llm),
        lambda: index.insert(nameless),
        lambda: index.update_ref_doc(nameless),
        lambda: index.refresh_ref_docs([nameless]),
        lambda: MPlusWriter(llm=llm)([nameless]),
    )
    for write in writes:
        with pytest.raises(ValueError, match=r"Number 0 \('Ann has a box.'\) has the id ''"):
            write()
    assert [node.get_content() for node in index.as_retriever().retrieve("Ann")] == ["Bob has a cat."]


@pytest.mark.parametrize("depth", [5000, None], ids=["deep", "cyclic"])
def test_metadata_without_an_end_is_refused_before_anything_is_written(
    chat: MPlusChat, llm: MPlusLLM, depth: int | None
) -> None:
    about = CYCLE
    if depth is not None:
        about = {}
        for _ in range(depth):
            about = {"a": about}
    store = MPlusVectorStore(chat)
    index = MPlusIndex.from_documents([Document(text="Bob has a cat.")], llm=llm)
    tries = [
        lambda: store.add_texts(["Ann has a box."], [about]),
        lambda: chat.memorize("Ann has a box.", metadata=about),
        lambda: store.similarity_search("Ann", filter=about),
        lambda: chat.invoke("Ann?", where=about),
        lambda: llm.complete("Ann?", where=about),
        lambda: index.insert(Document(text="Ann has a box.", metadata=about)),
        lambda: index.refresh_ref_docs([Document(text="Ann has a box.", metadata=about)]),
        lambda: MPlusIndex.from_documents([Document(text="Ann has a box.", metadata=about)], llm=llm),
    ]
    for attempt in tries:
        with pytest.raises(ValueError, match=r"metadata|Metadata|filter"):
            attempt()
    assert not store.similarity_search("Ann") and len(index.as_retriever().retrieve("Ann")) == 1


@pytest.mark.parametrize("about", [[1], "a", 3], ids=str)
def test_metadata_that_is_no_mapping_is_named(chat: MPlusChat, llm: MPlusLLM, about: Any) -> None:
    for one in (chat, llm):
        with pytest.raises(ValueError, match="expected a mapping"):
            one.memorize("Ann has a box.", metadata=about)
        assert one.forget("text-1") == 0


@pytest.mark.parametrize("count", [0, -1, 1.5, "3"])
def test_a_number_of_results_is_a_whole_one(chat: MPlusChat, llm: MPlusLLM, count: Any) -> None:
    store, index = MPlusVectorStore(chat), MPlusIndex.from_documents([Document(text="Bob has a cat.")], llm=llm)
    for attempt in (
        lambda: store.similarity_search("Ann", k=count),
        lambda: store.max_marginal_relevance_search("Ann", fetch_k=count),
        lambda: index.as_retriever(similarity_top_k=count),
    ):
        with pytest.raises(ValueError, match="expected at least 1"):
            attempt()


def test_an_encrypted_store_is_never_reopened_as_a_plain_one(llm: MPlusLLM, tmp_path: Path) -> None:
    store = mplus.MemoryStore(tmp_path / "store", vault=mplus.KeyVault(tmp_path / "keys"))
    index = MPlusIndex.from_documents([Document(text="Ann has a box.")], llm=llm, store=store, memory_key="docs")
    index.persist(tmp_path / "index")
    with pytest.raises(mplus.MemoryKeyError, match=r"vault=mplus.KeyVault"):
        MPlusIndex.load(tmp_path / "index", llm=llm)
    again = MPlusIndex.load(tmp_path / "index", llm=llm, store=store, memory_key="docs")
    assert again.as_retriever().retrieve("Ann")
    memory = MPlusMemory.from_defaults(llm=llm, store=store, memory_key="ann")
    restored = MPlusMemory.from_json(memory.to_json())
    with pytest.raises(mplus.MemoryKeyError, match=r"MPlusMemory.from_defaults\(store="):
        restored.put(ChatMessage(role="user", content="I live in Graz."))
    assert not (tmp_path / "store" / "ann" / "memory.json").exists()
