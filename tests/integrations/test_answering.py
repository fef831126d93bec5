"""What an answer says of itself, the same in both frameworks."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document as LangChainDocument
from langgraph.store.base import PutOp
from llama_index.core import Document
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

from mplus import MemoryLockedError, MemoryStore
from mplus.testing import tiny_model
from mplus.write import absorb
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusStore, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusWriter
from mplus_integrations.sources import is_heading
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY.model_copy(update={"recalled_tokens": 128}))


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
def test_the_source_that_answers_is_named_before_one_that_was_merely_read(framework: str) -> None:
    llm = MPlusChat(model=MODEL, max_tokens=1) if framework == "langchain" else MPlusLLM(model=MODEL, max_tokens=1)
    llm.memorize("Invoices are paid to account 1111, says Biscuit.", source="notes")
    llm.memorize("A long text about pears, plums and figs, without end. " * 9, source="handbook")
    asked = "To which account are invoices paid, says Biscuit?"
    answer: Any = llm.invoke(asked) if isinstance(llm, MPlusChat) else llm.complete(asked)
    found = (answer.response_metadata if framework == "langchain" else answer.raw)["recalled"]
    assert [one["source"] for one in found] == ["notes", "handbook"]
    assert found[0]["pool"] == "long_term" and found[1]["share"] > found[0]["share"]
    assert found[0]["relevance"] > found[1]["relevance"]


@pytest.mark.parametrize(
    "heading", ["# Which account?", "## A\n\n### Account\n", "Account\n=======", "<h2>Account</h2>"]
)
def test_a_heading_alone_is_never_the_answer(heading: str) -> None:
    texts = {"h": heading, "text": "Invoices are paid to account 1111, says Biscuit."}
    chat = MPlusChat(model=MODEL, max_tokens=1)
    store = MPlusVectorStore(chat)
    store.add_texts(list(texts.values()), ids=list(texts))
    answer = chat.invoke("Which account?")
    for retriever in (
        store.as_retriever(),
        store.as_retriever(search_type="mmr"),
        MPlusRetriever(chat=chat),
        MPlusRetriever(chat=chat, where=lambda name, _: True),
    ):
        assert [one.id for one in retriever.invoke("Which account?")] == ["text"]
    assert store.get_by_ids(["h"])[0].page_content == heading
    nodes = [TextNode(text=text, id_=name) for name, text in texts.items()]
    index = MPlusIndex(nodes, llm=MPlusLLM(model=MODEL, max_tokens=1))
    assert [one["source"] for one in answer.response_metadata["recalled"]] == ["text"]
    found = index.as_query_engine().query("Which account?")
    assert [one.node_id for one in found.source_nodes] == ["text"]
    with chat.opened() as memory:
        assert [source.name for source in memory.sources()] == ["h", "text"], "it is kept"


@pytest.mark.parametrize("text", ["#hashtag", "# A\nAt nine.", "a # b", "Line\n\nLine", "-----"])
def test_other_texts_are_no_headings(text: str) -> None:
    assert not is_heading(text)


def test_an_id_of_any_length_is_listed(tmp_path: Path) -> None:
    store, id = MemoryStore(tmp_path), "auth0|" + "x" * 200
    MPlusChat(model=MODEL, store=store, memory_key=id).memorize("I live in Graz.")
    MPlusLLM(model=MODEL, store=store, memory_key=f"{id}-2").memorize("I live in Linz.")
    assert sorted(one.id for one in store.list()) == [id, f"{id}-2"]


@pytest.mark.parametrize("way", ["chat", "complete", "async"])
def test_a_stream_that_is_left_early_has_told_its_usage(way: str) -> None:
    llm = MPlusLLM(model=MODEL, max_tokens=8)

    async def first() -> Any:
        async for chunk in await llm.astream_chat([ChatMessage(content="Hello")]):
            return chunk

    if way == "async":
        chunk = asyncio.run(first())
    else:
        chunks = llm.stream_chat([ChatMessage(content="Hello")]) if way == "chat" else llm.stream_complete("Hello")
        chunk = next(iter(chunks))
    usage = chunk.raw["usage"]
    assert usage["prompt_tokens"] > 0 and 0 < usage["completion_tokens"] <= 8
    assert chunk.additional_kwargs == usage
    whole = list(llm.stream_chat([ChatMessage(content="Hello")]))
    counted = [chunk.raw["usage"]["completion_tokens"] for chunk in whole]
    assert counted == sorted(counted) and whole[-1].raw["usage"]["prompt_tokens"] == usage["prompt_tokens"]


SMALL = [f"Thing {n} is kept in drawer {n % 3}." for n in range(6)]


@pytest.mark.parametrize("way", ["vector store", "index", "writer", "memorize", "langgraph"])
def test_small_writes_one_by_one_go_through_the_model_as_often_as_all_at_once(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = absorb.encode_states
    monkeypatch.setattr(absorb, "encode_states", lambda *a, **k: passes.append(1) or real(*a, **k))
    documents = [Document(text=text, id_=f"d{n}") for n, text in enumerate(SMALL)]
    llm, memory = MPlusLLM(model=MODEL, max_tokens=1), MODEL.new_memory()

    def write(parts: list[list[int]]) -> Any:
        if way == "vector store":
            store = MPlusVectorStore(MPlusChat(model=MODEL, max_tokens=1))
            for part in parts:
                store.add_texts([SMALL[n] for n in part], ids=[f"d{n}" for n in part])
            return store.latents
        if way == "index":
            index = MPlusIndex([], llm=llm)
            for part in parts:
                for n in part if len(part) == 1 else ():
                    index.insert(documents[n])
                if len(part) > 1:
                    index.insert_nodes([TextNode(text=SMALL[n], id_=f"d{n}") for n in part])
            return index.latents
        if way == "writer":
            writer = MPlusWriter(llm=llm, memory=memory.fork())
            for part in parts:
                writer([TextNode(text=SMALL[n], id_=f"d{n}") for n in part])
            return writer.latents
        chat = MPlusChat(model=MODEL, memory=memory.fork())
        if way == "langgraph":
            items = MPlusStore(chat)
            for part in parts:
                items.batch([PutOp(("anna",), str(n), {"text": SMALL[n]}) for n in part])
            assert items.get(("anna",), "0").value == {"text": SMALL[0]}  # type: ignore[union-attr]
            return chat.latents()
        for part in parts:
            chat.memorize([LangChainDocument(SMALL[n], id=f"d{n}") for n in part])
        return chat.latents()

    counts: list[int] = []
    for parts in ([list(range(6))], [[n] for n in range(6)]):
        passes.clear()
        assert len(write(parts).read(MODEL).sources()) == 6
        counts.append(len(passes))
    assert counts[1] == counts[0], "as many passes one by one as all at once"


def test_a_replacement_of_what_waits_replaces_it() -> None:
    store = MPlusVectorStore(MPlusChat(model=MODEL, max_tokens=1))
    store.add_texts(["Thing 1 is red."], ids=["a"])
    store.add_texts(["Thing 1 is blue."], ids=["a"])
    assert [document.page_content for document in store.get_by_ids(["a"])] == ["Thing 1 is blue."]
    store.add_texts(["Thing 2 is red."], ids=["b"])
    store.delete(["b"])
    assert store.get_by_ids(["b"]) == []


def test_an_index_that_is_persisted_has_what_waited(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL, max_tokens=1)
    index = MPlusIndex([], llm=llm)
    for n, text in enumerate(SMALL):
        index.insert(Document(text=text, id_=f"d{n}"))
    index.persist(tmp_path)
    again = MPlusIndex.load(tmp_path, llm=llm)
    assert len(again.latents.read(MODEL).sources()) == 6 and len(again.ref_doc_info) == 6


def asked_of(store: MemoryStore, framework: str) -> list[str]:
    if framework == "langchain":
        chat = MPlusChat(model=MODEL, max_tokens=1, store=store, memory_key="anna")
        found = chat.invoke("Where is the key?").response_metadata["recalled"]
    else:
        llm = MPlusLLM(model=MODEL, max_tokens=1, store=store, memory_key="anna")
        found = llm.chat([ChatMessage("Where is the key?")]).raw["recalled"]
    return [one["source"] for one in found]


@pytest.mark.parametrize("framework", ["langchain", "llama_index"])
def test_a_question_does_not_wait_while_its_memory_is_written(framework: str, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    with store.open("anna", MODEL) as memory:
        MODEL.write(memory, "The key is under the mat.", source="note")
    with store.open("anna", MODEL) as memory, ThreadPoolExecutor(1) as other:
        MODEL.write(memory, "The key is gone.", source="later")
        assert other.submit(asked_of, store, framework).result() == ["note"]
        with pytest.raises(MemoryLockedError, match="Use the one that is open"):
            asked_of(store, framework)  # here, where it has changed


def test_a_question_to_a_memory_that_is_not_there_makes_none(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, max_tokens=1, store=MemoryStore(tmp_path), memory_key="anna")
    assert chat.invoke("Where is the key?").response_metadata["recalled"] == []
    assert chat.store is not None and not chat.store.list() and not list(tmp_path.glob("anna*"))
