"""Memories that nobody has written into: asking them leaves nothing in a store, in both frameworks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import Item
from llama_index.core.llms import ChatMessage

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import (
    MPlusChat,
    MPlusMemoryMiddleware,
    MPlusRetriever,
    MPlusStore,
    MPlusVectorStore,
)
from mplus_integrations.langchain.agent_tools import memory_tools
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusWriter
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY)


def _chat(store: MemoryStore, **given: Any) -> MPlusChat:
    return MPlusChat(model=MODEL, store=store, max_tokens=2, **given)


def _llm(store: MemoryStore, **given: Any) -> MPlusLLM:
    return MPlusLLM(model=MODEL, store=store, max_tokens=2, **given)


def _documents(store: MemoryStore) -> MPlusVectorStore:
    return MPlusVectorStore(_chat(store), memory_key="anna")


def _conversation(store: MemoryStore) -> MPlusMemory:
    return MPlusMemory.from_defaults(llm=_llm(store), store=store, memory_key="anna", conversation_id="monday")


FORGETTING: dict[str, Callable[[MemoryStore], Any]] = {
    "chat.forget_conversation": lambda s: _chat(s).forget_conversation("monday"),
    "chat.forget_conversation of a user": lambda s: _chat(s).forget_conversation("monday", memory_key="anna"),
    "chat.forget": lambda s: _chat(s).forget("note", memory_key="anna"),
    "forget_thread": lambda s: MPlusMemoryMiddleware(_chat(s)).forget_thread("monday"),
    "llm.forget_conversation": lambda s: _llm(s).forget_conversation("monday"),
    "llm.forget": lambda s: _llm(s, memory_key="anna").forget("note"),
    "memory.forget_conversation": lambda s: _conversation(s).forget_conversation(),
    "memory.forget_conversation of another": lambda s: _conversation(s).forget_conversation("tuesday"),
}
ASKING: dict[str, Callable[[MemoryStore], Any]] = {
    "chat.invoke": lambda s: _chat(s, memory_key="anna", shared="handbook").invoke("Hi"),
    "chat.stream": lambda s: list(_chat(s, memory_key="anna").stream("Hi")),
    "documents.similarity_search": lambda s: _documents(s).similarity_search("x"),
    "documents.get_by_ids": lambda s: _documents(s).get_by_ids(["x"]),
    "documents.delete": lambda s: _documents(s).delete(delete_all=True),
    "retriever": lambda s: MPlusRetriever(chat=_chat(s), memory_key="anna").invoke("x"),
    "store.get": lambda s: MPlusStore(_chat(s)).get(("a",), "b"),
    "store.delete": lambda s: MPlusStore(_chat(s)).delete(("a",), "b"),
    "store.search": lambda s: MPlusStore(_chat(s)).search(("a",), query="b"),
    "recall tool": lambda s: memory_tools(_chat(s, memory_key="anna"))[1].invoke({"query": "x"}),
    "llm.complete": lambda s: _llm(s, memory_key="anna").complete("Hi"),
    "llm.chat": lambda s: _llm(s, memory_key="anna").chat([ChatMessage(content="Hi")]),
    "index": lambda s: MPlusIndex.from_latents(_llm(s), store=s, memory_key="anna").as_query_engine().query("x"),
    "writer.delete": lambda s: MPlusWriter(llm=_llm(s), memory_key="anna").vector_store.delete("x"),
    "memory.set": lambda s: _conversation(s).set([]),
    "memory.reset": lambda s: _conversation(s).reset(forget=True),
}


@pytest.mark.parametrize("way", FORGETTING)
def test_forgetting_in_a_memory_that_there_is_not_says_0_and_makes_none(way: str, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    assert FORGETTING[way](store) == 0
    assert store.list() == []


@pytest.mark.parametrize("way", ASKING)
def test_asking_a_memory_that_there_is_not_makes_none(way: str, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    ASKING[way](store)
    assert store.list() == []


def test_what_is_written_is_kept_from_the_first_text_on(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    _chat(store).memorize("Pears.", memory_key="anna")
    MPlusStore(_chat(store)).put(("a",), "b", {"text": "Plums."})
    _conversation(store).put(ChatMessage(content="Quinces."))
    assert [memory.name for memory in store.list()] == ["anna", "langgraph-store"]
    assert isinstance(MPlusStore(_chat(store)).get(("a",), "b"), Item)


@pytest.mark.parametrize("kind", [MPlusChat, MPlusLLM])
def test_a_path_is_no_store_and_a_name_no_memory(kind: Any, tmp_path: Path) -> None:
    for path in (str(tmp_path), tmp_path):
        with pytest.raises(ValueError, match=r"store= is a path.*Write store=mplus.MemoryStore\(path\)"):
            kind(model=MODEL, store=path)
    with pytest.raises(ValueError, match="The name of a memory goes into memory_key="):
        kind(model=MODEL, memory="anna")
