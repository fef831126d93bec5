"""What an answer says of itself, the same in both frameworks."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM
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
    MPlusVectorStore(chat).add_texts(list(texts.values()), ids=list(texts))
    answer = chat.invoke("Which account?")
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
