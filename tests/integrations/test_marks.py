"""What says what a source is comes from us alone: nobody's metadata makes a turn, an item or a document of a text."""

import asyncio
from typing import Any

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode

from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusStore, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM
from mplus_integrations.server.memories_wire import Document as Sent
from mplus_integrations.server.memories_wire import Writing
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY)
MARKS: dict[str, Any] = {
    "mplus_conversation": "x",
    "mplus_conversation_id": "t",
    "mplus_thread": "t",
    "mplus_item": {"key": "k"},
    "mplus_document": False,
    "mplus_anything": 1,
}


def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=3)


@pytest.mark.parametrize("mark", MARKS)
def test_marks_are_refused_wherever_metadata_is_given(mark: str) -> None:
    about = {mark: MARKS[mark]}
    found, llm = chat(), MPlusLLM(model=MODEL)
    store = MPlusVectorStore(found)
    for write in (
        lambda: store.add_texts(["A text."], [about]),
        lambda: store.add_documents([Document("A text.", metadata=about)]),
        lambda: MPlusVectorStore.from_texts(["A text."], metadatas=[about], chat=found),
        lambda: found.memorize("A text.", metadata=about),
        lambda: found.memorize(Document("A text.", metadata=about)),
        lambda: llm.memorize("A text.", metadata=about),
        lambda: MPlusIndex([TextNode(text="A text.", metadata=about)], llm=llm),
        lambda: Sent(text="A text.", metadata=about),
        lambda: Writing(text="A text.", metadata=about),
    ):
        with pytest.raises(ValueError, match=f"Metadata '{mark}'.*Leave it out"):
            write()
    for memory in (found.latents().read(MODEL), llm.latents().read(MODEL)):
        assert not memory.sources()


def test_what_was_found_can_be_put_elsewhere() -> None:
    found = chat()
    MPlusVectorStore.from_texts(["The key is under the pot."], ids=["key"], chat=found)
    found.memorize("The pot is blue.", source="pot")
    documents = MPlusRetriever(chat=found, k=4).invoke("key")
    assert not any(key.startswith("mplus_") for document in documents for key in document.metadata)
    other = MPlusVectorStore.from_documents(documents, chat=chat())
    assert {d.id for d in other.get_by_ids(["key", "pot"])} == {"key", "pot"}


@pytest.mark.parametrize("poison", ["x", {"key": "k"}, {"namespace": 3, "key": "k"}, None, []])
def test_what_is_no_item_of_ours_does_not_break_a_store(poison: Any) -> None:
    found = chat()
    store = MPlusStore(found)
    store.put(("users", "anna"), "music", {"text": "Plays the cello."})
    with found.opened(None) as memory:
        MODEL.write(memory, "A page.", source="page", metadata={"mplus_item": poison})
    item = store.get(("users", "anna"), "music")
    assert item is not None and item.value == {"text": "Plays the cello."}
    assert [one.key for one in store.search(("users",), query="cello")] == ["music"]


async def never(_document: Any) -> bool:
    return False


@pytest.mark.parametrize("test", [never, lambda _: "no", lambda _: (x for x in ()), lambda _: never(_)])
def test_a_test_that_is_none_deletes_nothing(test: Any) -> None:
    store = MPlusVectorStore.from_texts(["A.", "B."], ids=["a", "b"], chat=chat())
    for ask in (
        lambda: store.delete(filter=test),
        lambda: asyncio.run(store.adelete(filter=test)),
        lambda: store.similarity_search("A", filter=test),
    ):
        with pytest.raises(ValueError, match="filter.*True or False"):
            ask()
    assert len(store.get_by_ids(["a", "b"])) == 2


def test_a_test_of_sources_that_is_none_reads_nothing() -> None:
    found = chat()
    found.memorize("Secret.", source="a")

    async def low(*_: Any) -> bool:
        return False

    for where in (low, lambda name: True, lambda *_: "no"):
        with pytest.raises(ValueError, match="where.*True or False"):
            found.invoke("Secret?", where=where)
