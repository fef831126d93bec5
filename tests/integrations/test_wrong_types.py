"""What is no id, document, query, folder or tool is refused by name, before anything is changed, in both frameworks."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.schema import TextNode

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware, MPlusStore, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusWriter
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
TEXT = "The library opens at nine."
NO_ID: list[Any] = [None, 5, 2.5, b"x", True, "", ["d"], {"d": 1}, object()]
NO_DOCUMENT: list[Any] = [None, 5, "text", [Document(text=TEXT)], {"text": TEXT}]
NO_SEVERAL: list[Any] = [None, 5, "text", [None], ["text"], {"a": Document(text=TEXT)}]


@pytest.fixture
def index() -> MPlusIndex:
    llm = MPlusLLM(model=MODEL, max_tokens=1)
    return MPlusIndex.from_documents([Document(text=TEXT, doc_id="d"), Document(text="5.", doc_id="5")], llm=llm)


Call = Callable[[MPlusIndex, Any], Any]
OF_INDEX: dict[str, tuple[Call, list[Any]]] = {
    "delete_ref_doc": (lambda index, bad: index.delete_ref_doc(bad), NO_ID),
    "adelete_ref_doc": (lambda index, bad: asyncio.run(index.adelete_ref_doc(bad)), NO_ID),
    "delete": (lambda index, bad: index.delete(bad), NO_ID),
    "delete_nodes": (lambda index, bad: index.delete_nodes(bad), [None, 5, "d", [None], [5], {"d": 1}]),
    "insert": (lambda index, bad: index.insert(bad), NO_DOCUMENT),
    "ainsert": (lambda index, bad: asyncio.run(index.ainsert(bad)), NO_DOCUMENT),
    "update_ref_doc": (lambda index, bad: index.update_ref_doc(bad), NO_DOCUMENT),
    "aupdate_ref_doc": (lambda index, bad: asyncio.run(index.aupdate_ref_doc(bad)), NO_DOCUMENT),
    "update": (lambda index, bad: index.update(bad), NO_DOCUMENT),
    "refresh": (lambda index, bad: index.refresh(bad), NO_SEVERAL),
    "refresh_ref_docs": (lambda index, bad: index.refresh_ref_docs(bad), NO_SEVERAL),
    "arefresh_ref_docs": (lambda index, bad: asyncio.run(index.arefresh_ref_docs(bad)), NO_SEVERAL),
    "insert_nodes": (lambda index, bad: index.insert_nodes(bad), [*NO_SEVERAL, TextNode(text=TEXT)]),
    "build_index_from_nodes": (lambda index, bad: index.build_index_from_nodes(bad), NO_SEVERAL),
    "from_documents": (lambda index, bad: MPlusIndex.from_documents(bad, llm=index.llm), NO_SEVERAL),
    "persist": (lambda index, bad: index.persist(bad), [None, 5, b"x", True, "", ["folder"]]),
    "set_index_id": (lambda index, bad: index.set_index_id(bad), NO_ID),
    "load": (lambda index, bad: MPlusIndex.load(bad, index.llm), [None, 5, True, ""]),
    "as_chat_engine": (lambda index, bad: index.as_chat_engine(bad), [5, "", ["best"], {"best": 1}]),
    "as_query_engine": (lambda index, bad: index.as_query_engine(llm=bad), [5, 2.5, ["llm"], object()]),
    "retrieve": (lambda index, bad: index.as_retriever().retrieve(bad), [None, 5, b"x", ["query"]]),
    "aretrieve": (lambda index, bad: asyncio.run(index.as_retriever().aretrieve(bad)), [None, 5, b"x", ["query"]]),
    "query": (lambda index, bad: index.as_query_engine().query(bad), [None, 5, b"x", ["query"]]),
    "aquery": (lambda index, bad: asyncio.run(index.as_query_engine().aquery(bad)), [None, 5, b"x"]),
    "query of text": (lambda index, bad: index.as_query_engine(recall="text").query(bad), [None, 5, b"x"]),
    "chat": (lambda index, bad: index.as_chat_engine().chat(bad), [None, 5, b"x", ["query"]]),
    "reading": (lambda index, bad: index.llm.reading(bad), [None, 5, "anna", object()]),
    "writer": (lambda index, bad: MPlusWriter(llm=index.llm).vector_store.delete(bad), NO_ID),
    "chat_with_tools": (lambda index, bad: index.llm.chat_with_tools(bad, "Hello?"), [5, "tool", [None], [5]]),
}


@pytest.mark.parametrize("name", OF_INDEX)
def test_an_index_refuses_what_is_of_another_type(
    name: str, index: MPlusIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, bads = OF_INDEX[name]
    before = index.latents.read(index.llm.loaded).fingerprint
    for bad in bads:
        with pytest.raises(ValueError, match="expected"):
            call(index, bad)
    assert index.latents.read(index.llm.loaded).fingerprint == before
    assert set(index.ref_doc_info) == {"d", "5"}
    assert not list(tmp_path.iterdir())


def test_a_memory_refuses_what_is_of_another_type() -> None:
    memory = MPlusMemory.from_defaults(llm=MPlusLLM(model=MODEL))
    memory.put_messages([])
    for bad in ("", " ", True, 2.5, ["a"]):
        with pytest.raises(ValueError, match="expected"):
            memory.forget_conversation(bad)  # pyright: ignore[reportArgumentType]
    for bad in (None, 5, "text", [None], ["text"]):
        for call in (memory.set, memory.put_messages):
            with pytest.raises(ValueError, match="expected"):
                call(bad)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="expected"):
            memory.put(bad)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def chat(tmp_path: Path) -> MPlusChat:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), max_tokens=1)
    MPlusVectorStore.from_texts([TEXT], ids=["d"], chat=chat)
    return chat


OF_CHAT: dict[str, tuple[Callable[[MPlusChat, Any], Any], list[Any]]] = {
    "delete": (lambda chat, bad: MPlusVectorStore(chat).delete(bad), ["d", 5, [None], [""], [["d"]], [2.5]]),
    "get_by_ids": (lambda chat, bad: MPlusVectorStore(chat).get_by_ids(bad), ["d", None, 5, [None], [""], [2.5]]),
    "similarity_search": (lambda chat, bad: MPlusVectorStore(chat).similarity_search(bad), [None, 5, b"x"]),
    "bind_tools": (lambda chat, bad: chat.bind_tools(bad), [None, 5, "tool", "", {"name": "tool"}, [None], [5]]),
    "get_num_tokens_from_messages": (lambda chat, bad: chat.get_num_tokens_from_messages(bad), [None, 5, {}, [None]]),
    "forget": (lambda chat, bad: chat.forget(bad), [None, 2.5, b"x", True, "", ["d"]]),
    "forget_conversation": (lambda chat, bad: chat.forget_conversation(bad), [None, 2.5, b"x", True, "", ["d"]]),
    "memorize": (lambda chat, bad: chat.memorize(bad), [None, 5, b"x", [None], [5], {"a": 1}]),
    "forget_thread": (
        lambda chat, bad: MPlusMemoryMiddleware(chat).forget_thread(bad),
        [None, 2.5, b"x", True, "", ["d"]],
    ),
    "put": (lambda chat, bad: MPlusStore(chat).put(bad, "key", {"a": "b"}), [None, 5, "users", [5], ("a", None)]),
    "put under a key": (lambda chat, bad: MPlusStore(chat).put(("a",), bad, {"a": "b"}), [None, "", ["key"], 2.5]),
    "get": (lambda chat, bad: MPlusStore(chat).get(bad, "key"), [None, 5, "users", [5], ("a", None)]),
    "get of a key": (lambda chat, bad: MPlusStore(chat).get(("a",), bad), [None, "", ["key"], 2.5]),
    "delete of a key": (lambda chat, bad: MPlusStore(chat).delete(("a",), bad), [None, "", ["key"], 2.5]),
    "aget of a key": (lambda chat, bad: asyncio.run(MPlusStore(chat).aget(("a",), bad)), [None, "", ["key"]]),
    "search": (lambda chat, bad: MPlusStore(chat).search(bad), [None, 5, "users", [5], ("a", None)]),
    "batch": (lambda chat, bad: MPlusStore(chat).batch(bad), [None, 5, "get", [None], [5]]),
}


@pytest.mark.parametrize("name", OF_CHAT)
def test_a_chat_and_its_stores_refuse_what_is_of_another_type(name: str, chat: MPlusChat) -> None:
    call, bads = OF_CHAT[name]
    with chat.opened() as memory:
        before = memory.fingerprint
    for bad in bads:
        with pytest.raises(ValueError, match=r"expected|Expected|Namespace|namespace"):
            call(chat, bad)
    with chat.opened() as memory:
        assert memory.fingerprint == before
