"""MPlusIndex and LlamaIndex's own engines on it: documents are read as memory, cited, changed and forgotten."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.response.schema import AsyncStreamingResponse, PydanticResponse, StreamingResponse
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from pydantic import BaseModel, Field

import mplus
from mplus import MemoryStore
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory
from tests.conftest import TINY
from tests.integrations.llama_index.conftest import MODEL, Saying

PLACES = ["hall", "cellar", "attic", "barn"]
MODES = [ChatMode.BEST, ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.CONDENSE_QUESTION]


def documents(*places: str) -> list[Document]:
    return [
        Document(
            text=f"Box {n} is in the {place}, as before.",
            id_=f"d{n}",
            metadata={"even": "no" if n % 2 else "yes", "n": n},
        )
        for n, place in enumerate(places or PLACES)
    ]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", None)


@pytest.fixture
def index(llm: MPlusLLM) -> MPlusIndex:
    return MPlusIndex.from_documents(documents(), llm=llm)


def found(index: MPlusIndex, query: str, **kwargs: Any) -> list[str]:
    return [node.node.ref_doc_id or "" for node in index.as_retriever(**kwargs).retrieve(query)]


def logits(index: MPlusIndex) -> torch.Tensor:
    request = MODEL.read_request(index.latents.read(MODEL), "Where is box 2?")
    return prefill(MODEL.weights, [request]).logits


# --- acceptance 8 -------------------------------------------------------------------------------------


def test_acceptance_8_a_query_engine_calls_the_llm_and_embeds_nothing(index: MPlusIndex, asked: list[Any]) -> None:
    """That nothing is embedded is seen to by a fixture of every test here."""
    response = index.as_query_engine().query("Where is box 2?")
    assert asked == [[{"role": "user", "content": "Where is box 2?"}]]
    assert "Empty Response" not in str(response) and len(response.source_nodes) == 4  # all of them are read
    assert "Empty Response" not in str(asyncio.run(index.as_query_engine().aquery("Where is box 2?")))
    stream = index.as_query_engine(streaming=True).query("Where is box 2?")
    assert isinstance(stream, StreamingResponse) and "".join(stream.response_gen) == str(response)
    assert len(asked) == 3


@pytest.mark.parametrize("mode", MODES)
def test_acceptance_8_chat_engines_answer_from_latent_memory(
    index: MPlusIndex, say: Saying, asked: list[Any], mode: ChatMode
) -> None:
    engine = index.as_chat_engine(chat_mode=mode)
    say("In the attic.")
    response = engine.chat("Where is box {2}?")
    condensed = mode in (ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.CONDENSE_QUESTION)
    # With CONDENSE_PLUS_CONTEXT what was found for the rephrased question is read, else every document.
    read = 2 if mode == ChatMode.CONDENSE_PLUS_CONTEXT else 4
    assert response.response == "In the attic." and len(response.source_nodes) == read
    assert not any(place in str(asked) for place in PLACES)
    say(*["Where is box 1?"] * condensed, "In the cellar.")
    stream = engine.stream_chat("And box 1?")
    assert "".join(stream.response_gen) == "In the cellar."
    assert [m.content for m in engine.chat_history] == [
        "Where is box {2}?",
        "In the attic.",
        "And box 1?",
        "In the cellar.",
    ]

    async def more() -> tuple[str, str]:
        say(*["Where is box 0?"] * condensed, "In the hall.")
        one = await engine.achat("And box 0?")
        say(*["Where is box 3?"] * condensed, "In the barn.")
        stream = await engine.astream_chat("And box 3?")
        return one.response, "".join([piece async for piece in stream.async_response_gen()])

    assert asyncio.run(more()) == ("In the hall.", "In the barn.")
    engine.reset()
    assert engine.chat_history == []


def test_a_stock_memory_that_is_reset_takes_what_was_said_with_it(index: MPlusIndex, asked: list[Any]) -> None:
    buffer = ChatMemoryBuffer.from_defaults()
    engine = index.as_chat_engine(memory=buffer)
    for question in ("My code is 4719.", "And my dog is Rex."):
        engine.chat(question)
    said = engine._own.read(index.llm.loaded).sources()  # type: ignore[attr-defined]
    assert said or len(asked[-1]) > 1
    engine.reset()
    assert engine._own.read(index.llm.loaded).sources() == []  # type: ignore[attr-defined]
    engine.chat("What is my code?")
    assert len(asked[-1]) == 1


def test_the_simple_chat_engine_is_without_the_documents(index: MPlusIndex) -> None:
    engine = index.as_chat_engine(chat_mode=ChatMode.SIMPLE, system_prompt="Be brief.")
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(content="Hello?")]
    assert engine.chat("Hello?").response == index.llm.chat(messages).message.content
    for mode in ("react", ChatMode.REACT):
        with pytest.raises(ValueError, match="FunctionAgent"):
            index.as_chat_engine(chat_mode=mode)


# --- the retriever ------------------------------------------------------------------------------------


def test_source_nodes_come_with_scores_best_first(llm: MPlusLLM) -> None:
    index = MPlusIndex.from_documents([Document(text=d.text, id_=d.id_) for d in documents()], llm=llm)
    for n, place in enumerate(PLACES):
        nodes = index.as_retriever(similarity_top_k=3).retrieve(f"Box {n} is in the {place}, as before.")
        assert nodes[0].node.ref_doc_id == f"d{n}" and len(nodes) == 3
        assert [node.score for node in nodes] == sorted((node.score for node in nodes), reverse=True)
    assert asyncio.run(index.as_retriever().aretrieve("box"))[0].node.get_content().startswith("Box")


def test_filters_limit_what_is_found_and_what_is_read(index: MPlusIndex, llm: MPlusLLM) -> None:
    even = MetadataFilters(filters=[MetadataFilter(key="even", value="yes")])
    late = MetadataFilters(filters=[MetadataFilter(key="n", value=1, operator=FilterOperator.GT)])
    assert set(found(index, "box", filters=even, similarity_top_k=9)) == {"d0", "d2"}
    assert set(found(index, "box", filters=late, similarity_top_k=9)) == {"d2", "d3"}
    assert found(index, "box", doc_ids=["d1", "d9"], similarity_top_k=9) == ["d1"]
    node = index.ref_doc_info["d3"].node_ids[0]
    assert found(index, "box", node_ids=[node], similarity_top_k=9) == ["d3"]
    only = MPlusIndex.from_documents(documents()[::2], llm=llm)
    answer = str(index.as_query_engine(filters=even).query("Where is box 2?"))
    assert answer == str(only.as_query_engine().query("Where is box 2?"))


def test_the_stock_query_engine_takes_our_retriever(index: MPlusIndex, asked: list[Any]) -> None:
    engine = RetrieverQueryEngine.from_args(index.as_retriever(similarity_top_k=4), llm=index.llm)
    assert len(engine.query("Where is box 2?").source_nodes) == 4
    assert "attic" in str(asked[0])  # the stock engine pastes text


@pytest.mark.parametrize("recall", ["hybrid", "text"])
def test_text_may_stand_in_the_prompt(index: MPlusIndex, asked: list[Any], recall: Any) -> None:
    engine = index.as_query_engine(recall=recall, response_mode="compact", similarity_top_k=4)
    engine.query("Where is box 2?")
    assert "attic" in str(asked[0])
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4)  # what reads no latents is given text
    assert "attic" in str(engine.query("Box 2 is in the attic, as before."))


def test_postprocessors_decide_what_is_cited_and_read(index: MPlusIndex, llm: MPlusLLM) -> None:
    class First(SimilarityPostprocessor):
        def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
            return nodes[:1]

    response = index.as_query_engine(node_postprocessors=[First()]).query("Box 2 is in the attic, as before.")
    (cited,) = response.source_nodes
    only = MPlusIndex.from_documents([d for d in documents() if d.id_ == cited.node.ref_doc_id], llm=llm)
    assert str(response) == str(only.as_query_engine().query("Box 2 is in the attic, as before."))


def test_answers_may_be_of_a_class(index: MPlusIndex) -> None:
    class Place(BaseModel):
        room: str = Field(max_length=8)

    llm = index.llm.model_copy(update={"max_tokens": 120})
    engine = index.as_query_engine(llm=llm, output_cls=Place)
    response = engine.query("Where is box 2?")
    assert isinstance(response, PydanticResponse) and isinstance(response.response, Place)
    assert asyncio.run(engine.aquery("Where is box 2?")).response == response.response


async def test_async_streams(index: MPlusIndex) -> None:
    response = await index.as_query_engine(streaming=True).aquery("Where is box 2?")
    assert isinstance(response, AsyncStreamingResponse)
    text = "".join([piece async for piece in response.async_response_gen()])
    assert text == str(await index.as_query_engine().aquery("Where is box 2?"))


# --- changing documents -------------------------------------------------------------------------------


def test_refresh_inserts_updates_and_leaves_alone(index: MPlusIndex) -> None:
    changed = [*documents()[:1], Document(text="Box 1 was sold.", id_="d1"), Document(text="Box 9 is new.", id_="d9")]
    assert index.refresh_ref_docs(changed) == [False, True, True]
    assert index.refresh_ref_docs(changed) == [False] * 3
    assert set(index.ref_doc_info) == {"d0", "d1", "d2", "d3", "d9"}
    assert found(index, "Box 1 was sold.")[0] == "d1" and found(index, "Box 9 is new.")[0] == "d9"
    texts = [" ".join(s.texts) for s in index.latents.read(MODEL).sources()]
    assert len(texts) == 5 and not any("Box 1 is in the cellar" in text for text in texts)


@pytest.mark.parametrize("is_async", [False, True])
def test_after_a_delete_logits_equal_a_rebuild_that_never_had_the_document(llm: MPlusLLM, is_async: bool) -> None:
    index = MPlusIndex.from_documents(documents(), llm=llm)
    index.insert(Document(text="A last document, about pears.", id_="last"))
    if is_async:
        asyncio.run(index.adelete_ref_doc("d2"))
    else:
        index.delete_ref_doc("d2")
    never = MPlusIndex.from_documents([d for d in documents() if d.id_ != "d2"], llm=llm)
    asyncio.run(never.ainsert(Document(text="A last document, about pears.", id_="last")))
    torch.testing.assert_close(logits(index), logits(never), atol=1e-4, rtol=1e-4)
    assert "d2" not in index.ref_doc_info and index.docstore.get_ref_doc_info("d2") is None
    assert "attic" not in str(index.docstore.docs)
    assert index.refresh_ref_docs([documents()[2]]) == [True]  # and a refresh takes it again


def test_nodes_can_be_inserted_and_deleted_by_id(index: MPlusIndex) -> None:
    nodes = [TextNode(text=f"Note {n} is about pears.", id_=f"note-{n}") for n in range(3)]
    index.insert_nodes(nodes)
    assert found(index, "Note 1 is about pears.", similarity_top_k=1) == [""]
    index.delete_nodes(["note-0", "no such node"])
    asyncio.run(index.adelete_nodes(["note-1"], delete_from_docstore=True))
    names = [source.name for source in index.latents.read(MODEL).sources()]
    assert "note-2" in names and not {"note-0", "note-1"} & set(names)


def test_a_failed_insert_changes_nothing(index: MPlusIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    before, known = index.latents.read(MODEL).fingerprint, dict(index.ref_doc_info)
    real = MODEL.write

    def fails_in_the_end(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(MODEL, "write", fails_in_the_end)
    with pytest.raises(OSError, match="disk full"):
        index.insert_nodes([TextNode(text="one", id_="one"), TextNode(text="two", id_="two")])
    assert index.latents.read(MODEL).fingerprint == before and index.ref_doc_info == known
    assert not index.docstore.document_exists("one")


def test_an_open_chat_follows_the_index(index: MPlusIndex, say: Saying, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = MODEL.stream

    def stream(memory: Any, prompt: Any, **options: Any) -> Any:
        memories = memory if isinstance(memory, list) else [memory]
        read.append(str([prompt, *(s.texts for one in memories for s in one.sources())]))
        return real(memory, prompt, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    engine = index.as_chat_engine()
    say("I see.")
    engine.chat("My name is Ann.")
    index.insert(Document(text="Box 7 is in the tower.", id_="d7"))
    index.delete_ref_doc("d0")
    say("In the tower.")
    engine.chat("Where is box 7?")
    assert "My name is Ann." in read[-1] and "Box 7 is in the tower." in read[-1] and "hall" not in read[-1]
    other = index.as_chat_engine()
    other.chat("Hello?")
    assert "Ann" not in read[-1] and "Box 7 is in the tower." in read[-1]
    assert "Ann" not in str([s.texts for s in index.latents.read(MODEL).sources()])


def test_a_chat_may_have_a_memory_of_its_own_and_a_history(index: MPlusIndex, say: Saying) -> None:
    memory = MPlusMemory.from_defaults(llm=index.llm)
    history = [ChatMessage(content="Hi, I am Ann."), ChatMessage(role="assistant", content="Hello!")]
    engine = index.as_chat_engine(memory=memory, chat_history=history)
    say("In the hall.")
    assert len(engine.chat("Where is box 0?").source_nodes) == 4
    assert len(memory.get_all()) == 4
    say("Ann.")
    engine.chat("Who am I?", chat_history=history)
    assert [m.content for m in engine.chat_history] == ["Hi, I am Ann.", "Hello!", "Who am I?", "Ann."]


# --- keeping it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["load", "storage context", "moved", "another model"])
def test_an_index_is_persisted_and_loaded(index: MPlusIndex, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "index"
    index.storage_context.persist(persist_dir=str(folder))
    llm, expected = index.llm, index.latents.read(MODEL).fingerprint
    if how == "moved":
        shutil.move(folder, tmp_path / "elsewhere")
        folder = tmp_path / "elsewhere"
    if how == "another model":
        llm = MPlusLLM(model=tiny_model(3, memory=TINY), max_tokens=4)
    if how in ("load", "another model"):
        again = MPlusIndex.load(folder, llm=llm)
    else:
        again = load_index_from_storage(StorageContext.from_defaults(persist_dir=str(folder)), llm=llm)
    assert isinstance(again, MPlusIndex)
    assert (again.latents.read(llm.loaded).fingerprint == expected) is (how != "another model")
    assert set(again.ref_doc_info) == {"d0", "d1", "d2", "d3"}
    assert found(again, "Box 2 is in the attic, as before.")[0] == "d2"
    again.delete_ref_doc("d1")
    again.persist(folder)
    assert set(MPlusIndex.load(folder, llm=llm).ref_doc_info) == {"d0", "d2", "d3"}


def test_a_store_keeps_the_latents(llm: MPlusLLM, tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "memories")
    index = MPlusIndex.from_documents(documents(), llm=llm, store=store, memory_key="boxes")
    index.set_index_id("my index")
    index.persist(tmp_path / "index")
    again = MPlusIndex.load(tmp_path / "index", llm=llm, index_id="my index")
    assert found(again, "Box 2 is in the attic, as before.")[0] == "d2"
    assert [memory.name for memory in store.list()] == ["boxes"]
    third = MPlusIndex.from_latents(llm=llm, store=store, memory_key="boxes")
    assert found(third, "Box 2 is in the attic, as before.")[0] == "d2" and set(third.ref_doc_info) == set(
        again.ref_doc_info
    )
    assert third.as_retriever().retrieve("box")[0].node.metadata.keys() == {"even", "n"}


def test_an_index_may_share_the_memory_of_an_llm() -> None:
    memory = MODEL.new_memory()
    llm = MPlusLLM(model=MODEL, memory=memory, max_tokens=6)
    llm.memorize("A note of its own.", source="note")
    index = MPlusIndex.from_documents(documents(), llm=llm, memory=memory)
    assert llm.complete("Where?").raw["prefix_tokens"] > 0 and len(memory.sources()) == 5
    assert len(index.as_retriever(similarity_top_k=9).retrieve("note")) == 4
    alone = MPlusIndex.from_documents(documents(), llm=MPlusLLM(model=MODEL, max_tokens=6))
    question = "Where is box 2?"
    assert str(index.as_query_engine().query(question)) == str(alone.as_query_engine().query(question))
    assert index.as_chat_engine().chat(question).source_nodes


# --- bad input, and the swap --------------------------------------------------------------------------


def test_two_lines_swap_a_vector_store_index(llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def application(index_class: Any) -> set[str]:
        index = index_class.from_documents(
            documents(), transformations=[SentenceSplitter()], embed_model=Settings.embed_model
        )
        index.insert(Document(text="More.", id_="more"))
        index.delete_ref_doc("d0", delete_from_docstore=True)
        index.update_ref_doc(Document(text="Changed.", id_="d1"))
        engine = index.as_query_engine(similarity_top_k=3)
        return {node.node.ref_doc_id for node in engine.query("What?").source_nodes}

    from llama_index.core.embeddings import MockEmbedding

    monkeypatch.setattr(Settings, "_llm", MockLLM())
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=2))
    before = application(VectorStoreIndex)
    monkeypatch.setattr(Settings, "_llm", llm)
    after = application(MPlusIndex)
    assert len(before) == 3 and after == {"d1", "d2", "d3", "more"}  # what was found, and what is read beside it


def test_bad_arguments_are_named(index: MPlusIndex, llm: MPlusLLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'top_k'"):
        index.as_query_engine(top_k=3)
    with pytest.raises(ValueError, match="'top_k'"):
        index.as_retriever(top_k=3)
    with pytest.raises(ValueError, match="'top_k'"):
        index.as_chat_engine(top_k=3)
    with pytest.raises(ValueError, match="similarity_top_k=0"):
        index.as_retriever(similarity_top_k=0)
    with pytest.raises(ValueError, match="recall"):
        index.as_query_engine(recall="vectors")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MockLLM"):
        index.as_query_engine(llm=MockLLM(), recall="latent")
    with pytest.raises(ValueError, match="MockLLM"):
        MPlusIndex.from_documents(documents(), llm=MockLLM())
    with pytest.raises(ValueError, match="store= without"):
        MPlusIndex.from_documents(documents(), llm=llm, store=MemoryStore(tmp_path))
    with pytest.raises(ValueError, match="without store="):
        MPlusIndex.from_documents(documents(), llm=llm, memory_key="a")
    with pytest.raises(ValueError, match="memory_key"):
        MPlusIndex.from_documents(documents(), llm=llm, store=MemoryStore(tmp_path), memory_key=" ")
    with pytest.raises(ValueError, match="'speed'"):
        MPlusIndex(nodes=[], llm=llm, speed=3)
    with pytest.raises(ValueError, match="expected text to search for"):
        index.as_query_engine().query(" ")
    assert list(tmp_path.iterdir()) == []


def test_nodes_without_text_are_left_out_and_nothing_but_them_is_an_error(llm: MPlusLLM) -> None:
    index = MPlusIndex.from_documents([*documents()[:1], Document(text="  ", id_="blank")], llm=llm)
    assert set(index.ref_doc_info) == {"d0"}
    with pytest.raises(ValueError, match="none of them with text"):
        MPlusIndex.from_documents([Document(text="", id_="blank")], llm=llm)


@pytest.mark.default_model
def test_the_default_model_answers_with_a_citation(default_model: mplus.MPlus) -> None:
    llm = MPlusLLM(model=default_model, max_tokens=24)
    texts = ["The spare key is in the blue teapot.", "The library opens at nine.", "Ingrid lives in Toronto."]
    index = MPlusIndex.from_documents([Document(text=t, id_=f"d{n}") for n, t in enumerate(texts)], llm=llm)
    response = index.as_query_engine(similarity_top_k=1).query("Where is the spare key?")
    assert "teapot" in str(response) and response.source_nodes[0].node.ref_doc_id == "d0"
