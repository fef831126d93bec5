"""The step of an IngestionPipeline that writes into memory."""

import pickle
from pathlib import Path

import pytest
from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode

from mplus import MemoryStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusWriter
from tests.integrations.llama_index.conftest import MODEL

DOCUMENTS = [Document(text=f"Box {n} is in room {n * 7}, as before.", id_=f"d{n}") for n in range(3)]


def texts(writer: MPlusWriter) -> list[str]:
    return [" ".join(s.texts) for s in writer.latents.read(MODEL).sources()]


def pipeline(writer: MPlusWriter) -> IngestionPipeline:
    return IngestionPipeline(transformations=[SentenceSplitter(), writer])


def test_a_pipeline_writes_and_an_index_finds(llm: MPlusLLM) -> None:
    writer = MPlusWriter(llm=llm, memory_key="boxes")
    nodes = pipeline(writer).run(documents=DOCUMENTS)
    assert [node.ref_doc_id for node in nodes] == ["d0", "d1", "d2"] and len(texts(writer)) == 3
    index = MPlusIndex.from_latents(llm=llm, memory=writer.latents)
    assert index.as_retriever().retrieve(DOCUMENTS[1].text)[0].node.ref_doc_id == "d1"
    assert len(index.as_query_engine().query("Where is box 1?").source_nodes) == 3
    again = MPlusIndex(nodes, llm=llm, memory=writer.latents)
    assert set(again.ref_doc_info) == {"d0", "d1", "d2"} and len(texts(writer)) == 3


def test_acceptance_5_the_pipelines_cache_never_hides_a_write(llm: MPlusLLM) -> None:
    writer = MPlusWriter(llm=llm, memory_key="boxes")
    work = pipeline(writer)
    work.run(documents=DOCUMENTS)
    work.run(documents=DOCUMENTS)  # everything is there already
    assert len(texts(writer)) == 3
    writer.latents.read(MODEL).reset()
    work.run(documents=DOCUMENTS)
    assert len(texts(writer)) == 3


def test_a_document_that_changed_replaces_what_was_written_of_it(llm: MPlusLLM) -> None:
    writer = MPlusWriter(llm=llm, memory_key="boxes")
    work = pipeline(writer)
    work.run(documents=DOCUMENTS)
    work.run(documents=[Document(text="Box 1 was sold.", id_="d1"), *DOCUMENTS[2:]])
    assert sorted(texts(writer)) == [
        "Box 0 is in room 0, as before.",
        "Box 1 was sold.",
        "Box 2 is in room 14, as before.",
    ]


async def test_async_pipelines_and_stores(llm: MPlusLLM, tmp_path: Path) -> None:
    stored = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), memory_key="boxes")
    await pipeline(MPlusWriter(llm=stored)).arun(documents=DOCUMENTS)
    assert len(texts(MPlusWriter(llm=stored))) == 3


def test_a_failed_run_writes_nothing(llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MODEL.new_memory()
    writer = MPlusWriter(llm=llm, memory=memory)
    writer([TextNode(text="fine", id_="a")])
    before = memory.fingerprint
    monkeypatch.setattr(MODEL, "write", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        writer([TextNode(text="also fine", id_="b")])
    assert memory.fingerprint == before
    with pytest.raises(ValueError, match="not both"):
        MPlusWriter(llm=llm, memory=memory, memory_key="a")


def test_it_refuses_other_processes_where_writes_would_be_lost(llm: MPlusLLM) -> None:
    with pytest.raises(ValueError, match="num_workers"):
        pickle.dumps(MPlusWriter(llm=llm))
