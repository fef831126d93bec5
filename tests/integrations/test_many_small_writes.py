"""Many small writes, in every way that the frameworks have, go through the model together."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from torch.nn.modules.module import register_module_forward_hook

from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusStore, MPlusVectorStore, memory_tools
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusWriter
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
TEXTS = [f"Box number {n} is {['red', 'blue', 'green'][n % 3]}." for n in range(12)]
DOCUMENTS = [Document(text=text, doc_id=f"d{n}") for n, text in enumerate(TEXTS)]
CHANGED = [Document(text=f"{text} So it is.", doc_id=f"d{n}") for n, text in enumerate(TEXTS)]


@pytest.fixture
def passes() -> Any:
    """How often text went through a whole model."""
    count = [0]

    def counted(module: Any, *_: Any) -> None:
        count[0] += type(module).__name__.endswith("MLP")

    handle = register_module_forward_hook(counted)
    yield lambda: count[0] / MODEL.weights.backbone.config.num_hidden_layers
    handle.remove()


def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=1)


def llm() -> MPlusLLM:
    return MPlusLLM(model=MODEL, max_tokens=1)


async def _inserted(index: MPlusIndex) -> None:
    for document in DOCUMENTS:
        await index.ainsert(document)


def said(memory: MPlusMemory) -> None:
    for n, text in enumerate(TEXTS):
        memory.put(ChatMessage(role="assistant" if n % 2 else "user", content=text))


def each(work: Callable[[Any, str, str], Any]) -> Callable[[Any], Any]:
    return lambda on: [work(on, f"d{n}", text) for n, text in enumerate(TEXTS)]


add = each(lambda store, name, text: store.add_texts([text], ids=[name]))
WAYS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "add_texts": (lambda: MPlusVectorStore(chat()), add),
    "add_texts, what is there already": (lambda: MPlusVectorStore(chat()), lambda store: (add(store), add(store))),
    "MPlusChat.memorize": (chat, each(lambda chat, name, text: chat.memorize(text, source=name))),
    "MPlusChat.memorize, without names": (chat, each(lambda chat, _, text: chat.memorize(text))),
    "MPlusLLM.memorize, without names": (llm, each(lambda llm, _, text: llm.memorize(Document(text=text)))),
    "MPlusLLM.memorize, messages": (
        llm,
        each(lambda llm, _, text: llm.memorize(ChatMessage(role="user", content=text))),
    ),
    "get_by_ids before each": (
        lambda: MPlusVectorStore(chat()),
        each(lambda store, name, text: (store.get_by_ids([name]), store.add_texts([text], ids=[name]))),
    ),
    "delete before each": (
        lambda: MPlusVectorStore(chat()),
        each(lambda store, name, text: (store.delete([name]), store.add_texts([text], ids=[name]))),
    ),
    "forget before each": (
        llm,
        each(lambda llm, name, text: (llm.forget(name), llm.memorize(text, source=name))),
    ),
    "delete_nodes before each": (
        lambda: MPlusIndex(nodes=[], llm=llm()),
        each(lambda index, n, text: (index.delete_nodes([n]), index.insert_nodes([TextNode(text=text, id_=n)]))),
    ),
    "the tool remember": (chat, each(lambda chat, _, text: memory_tools(chat)[0].invoke({"text": text}))),
    "put": (
        lambda: MPlusStore(chat()),
        each(lambda store, name, text: store.put(("boxes",), name, {"text": text})),
    ),
    "MPlusLLM.memorize": (llm, each(lambda llm, name, text: llm.memorize(text, source=name))),
    "insert": (lambda: MPlusIndex(nodes=[], llm=llm()), lambda index: [index.insert(one) for one in DOCUMENTS]),
    "ainsert": (lambda: MPlusIndex(nodes=[], llm=llm()), lambda index: asyncio.run(_inserted(index))),
    "insert_nodes": (
        lambda: MPlusIndex(nodes=[], llm=llm()),
        each(lambda index, name, text: index.insert_nodes([TextNode(text=text, id_=name)])),
    ),
    "refresh_ref_docs, what is new": (
        lambda: MPlusIndex(nodes=[], llm=llm()),
        lambda index: index.refresh_ref_docs(DOCUMENTS),
    ),
    "refresh_ref_docs, what has changed": (
        lambda: MPlusIndex.from_documents(DOCUMENTS, llm=llm()),
        lambda index: index.refresh_ref_docs(CHANGED),
    ),
    "arefresh_ref_docs, what has changed": (
        lambda: MPlusIndex.from_documents(DOCUMENTS, llm=llm()),
        lambda index: asyncio.run(index.arefresh_ref_docs(CHANGED)),
    ),
    "MPlusWriter": (
        lambda: MPlusWriter(llm=llm()),
        each(lambda writer, name, text: writer([TextNode(text=text, id_=name)])),
    ),
    "MPlusMemory.put": (lambda: MPlusMemory.from_defaults(llm=llm()), said),
}


@pytest.mark.parametrize("way", WAYS)
def test_many_small_writes_go_through_the_model_together(way: str, passes: Callable[[], float]) -> None:
    make, work = WAYS[way]
    on = make()
    before = passes()
    work(on)
    latents = on.chat.latents("langgraph-store") if isinstance(on, MPlusStore) else on.latents
    with (latents() if callable(latents) else latents).opened(MODEL) as memory:
        assert len(memory.sources()) == len(TEXTS)
    # Of a document that has changed, what was written before goes through it too.
    assert 0 < passes() - before <= 2


def test_a_refresh_writes_what_has_changed_and_an_error_of_a_splitter_leaves_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = MPlusIndex.from_documents(DOCUMENTS[:3], llm=llm())
    mixed = [DOCUMENTS[0], CHANGED[1], Document(text="It is new.", doc_id="new"), CHANGED[1]]
    with monkeypatch.context() as broken:
        broken.setattr("mplus_integrations.llama_index.documents.run_transformations", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.refresh_ref_docs(mixed[:3])
    assert set(index.ref_doc_info) == {"d0", "d1", "d2"}
    assert index.refresh_ref_docs(mixed[:3]) == [False, True, True]
    assert index.refresh_ref_docs(mixed) == [False] * 4
    with index.latents.opened(MODEL) as memory:
        told = {text for source in memory.sources() for text in source.texts}
    assert told == {TEXTS[0], CHANGED[1].text, TEXTS[2], "It is new."}


def test_a_text_of_the_same_id_with_other_metadata_replaces_it() -> None:
    store = MPlusVectorStore(chat())
    for about in ({}, {"team": "town"}, {"team": "town"}):
        store.add_texts(["Box 1 is red."], [about], ids=["box"])
    (found,) = store.get_by_ids(["box"])
    assert found.metadata == {"team": "town"}
