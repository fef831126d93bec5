"""Where no node is found, no engine answers from nothing, nor from what was filtered out."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from pydantic import BaseModel

from mplus_integrations.llama_index import MPlusIndex, MPlusLLM
from tests.integrations.saying import Saying

QUESTION = "Where is the key?"
WHY: dict[str, dict[str, Any]] = {
    "cutoff": {"node_postprocessors": [SimilarityPostprocessor(similarity_cutoff=1.1)]},
    "filter": {"filters": MetadataFilters(filters=[MetadataFilter(key="n", value=77)])},
    "no such node": {"node_ids": ["d9"]},
    "no such document": {"doc_ids": ["d9"]},
    "another time": {"until": "2001-01-01"},
    "empty index": {},
    "deleted": {},
}


class Answer(BaseModel):
    """An answer."""

    place: str


def index_where(why: str, llm: MPlusLLM) -> MPlusIndex:
    documents = [Document(text=f"Key {n} is in the teapot.", id_=f"d{n}", metadata={"n": n}) for n in range(2)]
    index = (
        MPlusIndex.from_documents([], llm=llm)
        if why == "empty index"
        else MPlusIndex.from_documents(documents, llm=llm)
    )
    if why == "deleted":
        for document in documents:
            index.delete_ref_doc(document.id_, delete_from_docstore=True)
    return index


async def streamed(engine: Any) -> str:
    response = await engine.aquery(QUESTION)
    return "".join([piece async for piece in response.async_response_gen()])


async def astreamed(engine: Any) -> str:
    response = await engine.astream_chat(QUESTION)
    return "".join([piece async for piece in response.async_response_gen()])


QUERIES: dict[str, Callable[[MPlusIndex, dict[str, Any]], Any]] = {
    "latent": lambda index, options: index.as_query_engine(**options).query(QUESTION),
    "latent, async": lambda index, options: asyncio.run(index.as_query_engine(**options).aquery(QUESTION)),
    "latent, streamed": lambda index, options: index.as_query_engine(streaming=True, **options).query(QUESTION),
    "latent, streamed async": lambda index, options: asyncio.run(
        streamed(index.as_query_engine(streaming=True, **options))
    ),
    "hybrid": lambda index, options: index.as_query_engine(recall="hybrid", **options).query(QUESTION),
    "text": lambda index, options: index.as_query_engine(recall="text", **options).query(QUESTION),
    "an object": lambda index, options: index.as_query_engine(output_cls=Answer, **options).query(QUESTION),
    "citations": lambda index, options: CitationQueryEngine.from_args(
        index,
        retriever=index.as_retriever(**{k: v for k, v in options.items() if k != "node_postprocessors"}),
        llm=index.llm,
        node_postprocessors=options.get("node_postprocessors"),
    ).query(QUESTION),
    "a stock engine": lambda index, options: RetrieverQueryEngine.from_args(
        index.as_retriever(**{k: v for k, v in options.items() if k != "node_postprocessors"}),
        llm=index.llm,
        node_postprocessors=options.get("node_postprocessors"),
    ).query(QUESTION),
}
CHATS: dict[str, Callable[[Any], str]] = {
    "chat": lambda engine: engine.chat(QUESTION).response,
    "achat": lambda engine: asyncio.run(engine.achat(QUESTION)).response,
    "stream_chat": lambda engine: "".join(engine.stream_chat(QUESTION).response_gen),
    "astream_chat": lambda engine: asyncio.run(astreamed(engine)),
}
MODES = [ChatMode.BEST, ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.CONDENSE_QUESTION]


@pytest.mark.parametrize("why", WHY)
def test_query_engines_say_so(llm: MPlusLLM, asked: list[Any], why: str) -> None:
    index = index_where(why, llm)
    said = {}
    for name, query in QUERIES.items():
        found = query(index, WHY[why])
        said[name] = "".join(found.response_gen) if hasattr(found, "response_gen") else str(found)
    assert said == dict.fromkeys(QUERIES, "Empty Response") and not asked


@pytest.mark.parametrize("why", WHY)
def test_chat_engines_say_so(llm: MPlusLLM, asked: list[Any], why: str) -> None:
    index, said = index_where(why, llm), {}
    for mode in MODES:
        for name, chat in CHATS.items():
            said[mode, name] = chat(index.as_chat_engine(mode, **WHY[why]))
    assert said == dict.fromkeys(said, "Empty Response") and not asked


@pytest.mark.parametrize("mode", [mode for mode in ResponseMode if mode != ResponseMode.GENERATION])
@pytest.mark.parametrize("recall", ["hybrid", "text"])
def test_every_response_mode_says_so(llm: MPlusLLM, asked: list[Any], mode: ResponseMode, recall: Any) -> None:
    engine = index_where("filter", llm).as_query_engine(recall=recall, response_mode=mode, **WHY["filter"])
    assert str(engine.query(QUESTION)) in ("Empty Response", "") and not asked
    assert str(asyncio.run(engine.aquery(QUESTION))) in ("Empty Response", "") and not asked


def test_a_router_passes_it_on(llm: MPlusLLM, asked: list[Any], say: Saying) -> None:
    index = index_where("filter", llm)
    tool = QueryEngineTool.from_defaults(index.as_query_engine(**WHY["filter"]), name="keys", description="About keys.")
    say('[{"choice": 1, "reason": "keys"}]')
    router = RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm.without_memory()), [tool], llm=llm)
    assert str(router.query(QUESTION)) == "Empty Response" and len(asked) == 1


def test_what_was_cut_off_is_not_read_beside_the_nodes_that_stay(
    llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.integrations.llama_index.conftest import MODEL

    reads: list[str] = []
    real = MODEL.stream

    def stream(memory: Any, prompt: Any, **options: Any) -> Any:
        memories = memory if isinstance(memory, list) else [memory]
        tests = options["where"] if isinstance(options["where"], list) else [options["where"]]
        found = [
            source.texts
            for one, test in zip(memories, tests, strict=True)
            for source in one.sources()
            if test is None or test(source.name, source.metadata)
        ]
        reads.append(str(found))
        return real(memory, prompt, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    index = index_where("cutoff", llm)

    class First(SimilarityPostprocessor):
        """Keeps the first node."""

        def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
            return [node for node in nodes if node.node_id == index_nodes[0]]

    index_nodes = sorted(index.index_struct.nodes, key=lambda n: index.docstore.get_node(n).ref_doc_id or "")
    for recall in ("latent", "hybrid"):
        index.as_query_engine(recall=recall, node_postprocessors=[First()]).query(QUESTION)
        assert "Key 1" not in reads[-1], recall
    for mode in MODES:
        index.as_chat_engine(mode, node_postprocessors=[First()]).chat(QUESTION)
        assert "Key 1" not in reads[-1], mode


def test_a_stock_chat_engine_reads_only_what_it_was_given(llm: MPlusLLM, asked: list[Any]) -> None:
    index = index_where("filter", llm)
    engine = CondensePlusContextChatEngine.from_defaults(index.as_retriever(**WHY["filter"]), llm=llm)
    assert engine.chat(QUESTION).source_nodes == []
    assert "teapot" not in str(asked)
