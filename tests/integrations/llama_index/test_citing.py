"""Whatever an answer reads is cited, in every engine, streamed or not."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.response_synthesizers import ResponseMode

from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory

QUESTION = "Where is the key?"
TEXTS = ["The key is in the teapot.", "The teapot is in the shed.", "The shed is behind the mill."]


@pytest.fixture
def index(llm: MPlusLLM) -> MPlusIndex:
    documents = [Document(text=text, id_=f"d{n}", metadata={"n": n}) for n, text in enumerate(TEXTS)]
    return MPlusIndex.from_documents(documents, llm=llm)


def cited(response: Any) -> list[Any]:
    return [one.node.ref_doc_id for one in response.source_nodes]


async def astreamed(engine: Any) -> Any:
    response = await engine.aquery(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()])
    return response


def streamed(engine: Any) -> Any:
    response = engine.query(QUESTION)
    assert "".join(response.response_gen)
    return response


ASK: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "query": ({}, lambda engine: engine.query(QUESTION)),
    "aquery": ({}, lambda engine: asyncio.run(engine.aquery(QUESTION))),
    "streamed": ({"streaming": True}, streamed),
    "astreamed": ({"streaming": True}, lambda engine: asyncio.run(astreamed(engine))),
    "hybrid": ({"recall": "hybrid"}, lambda engine: engine.query(QUESTION)),
    "hybrid, refined": ({"recall": "hybrid", "response_mode": ResponseMode.REFINE}, lambda e: e.query(QUESTION)),
    "hybrid, aquery": ({"recall": "hybrid"}, lambda engine: asyncio.run(engine.aquery(QUESTION))),
}


@pytest.mark.parametrize("how", ASK)
def test_what_was_read_and_not_found_is_cited_too(index: MPlusIndex, how: str) -> None:
    kwargs, ask = ASK[how]
    found = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)
    response = ask(index.as_query_engine(similarity_top_k=1, **kwargs))
    assert len(found) == 1
    assert cited(response)[0] == found[0].node.ref_doc_id
    assert sorted(cited(response)) == ["d0", "d1", "d2"]
    texts = {one.node.ref_doc_id: one.node.get_content() for one in response.source_nodes}
    assert texts == {f"d{n}": text for n, text in enumerate(TEXTS)}
    assert [response.metadata[one.node_id]["n"] for one in response.source_nodes] == [
        int(name.removeprefix("d")) for name in cited(response)
    ]
    about = response.metadata["mplus"]
    assert (about["used_memory"], about["abstained"]) == (True, False)
    assert 0 < about["confidence"] < 1


def test_a_response_says_that_memory_was_spared(index: MPlusIndex, llm: MPlusLLM) -> None:
    sparing = llm.model_copy(update={"gate": "never"})
    response = index.as_query_engine(llm=sparing).query(QUESTION)
    assert response.metadata["mplus"]["used_memory"] is False
    assert cited(response), "what was found stays cited"


@pytest.mark.parametrize("mode", [ChatMode.BEST, ChatMode.CONTEXT, ChatMode.CONDENSE_QUESTION])
def test_a_chat_engine_cites_what_it_reads(index: MPlusIndex, mode: ChatMode) -> None:
    engine = index.as_chat_engine(mode, similarity_top_k=1)
    assert sorted(cited(engine.chat(QUESTION))) == ["d0", "d1", "d2"]
    assert sorted(cited(asyncio.run(engine.achat(QUESTION)))) == ["d0", "d1", "d2"]
    response = engine.stream_chat(QUESTION)
    assert "".join(response.response_gen)
    assert sorted(cited(response)) == ["d0", "d1", "d2"]


def test_turns_of_a_conversation_are_no_nodes(index: MPlusIndex) -> None:
    memory = MPlusMemory.from_defaults(llm=index.llm)
    engine = index.as_chat_engine(ChatMode.BEST, memory=memory, similarity_top_k=1)
    engine.chat("My name is Ada.")
    assert set(cited(engine.chat(QUESTION))) == {"d0", "d1", "d2"}


def test_what_a_filter_took_away_is_neither_read_nor_cited(index: MPlusIndex) -> None:
    engine = index.as_query_engine(similarity_top_k=1, doc_ids=["d1", "d2"])
    assert set(cited(engine.query(QUESTION))) == {"d1", "d2"}
