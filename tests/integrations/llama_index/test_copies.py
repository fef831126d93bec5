"""Copies and pickles: neither loses a memory, and nothing that cannot be copied harms the living object."""

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.extractors import TitleExtractor
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import ChatMessage

from mplus import KeyVault, MemoryKeyError, MemoryStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusMemoryBlock, MPlusWriter
from tests.integrations.llama_index.conftest import MODEL

TOLD = "The spare key is in the blue teapot."


def held(llm: MPlusLLM | MPlusMemory) -> list[str]:
    latents = llm.latents if isinstance(llm, MPlusMemory) else llm.latents()
    return [text for source in latents.read(MODEL).sources() for text in source.texts]


@pytest.mark.parametrize("how", ["model_copy", "deep", "deepcopy", "update"])
def test_an_unnamed_memory_goes_with_its_copies(how: str) -> None:
    llm = MPlusLLM(model=MODEL, stop=["end"])
    copied = {
        "model_copy": lambda: llm.model_copy(),
        "deep": lambda: llm.model_copy(deep=True),
        "deepcopy": lambda: copy.deepcopy(llm),
        "update": lambda: llm.model_copy(update={"temperature": 0.5}),
    }[how]()
    llm.memorize(TOLD)
    copied.memorize("The boiler is behind the green door.")
    assert held(copied) == held(llm) and len(held(llm)) == 2 and copied.model is llm.model
    if how != "model_copy" and isinstance(copied.stop, list) and how != "update":
        copied.stop.append("more")
        assert llm.stop == ["end"]


def test_a_pickle_has_weights_by_name_a_store_by_its_folder_and_an_unnamed_memory_as_it_is(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path, max_memory_bytes=10**9), memory_key="anna", max_tokens=7)
    llm.memorize(TOLD)
    data = pickle.dumps(llm)
    assert len(data) < 20_000, "no weights"
    found = pickle.loads(data)
    assert found.model is MODEL and found.max_tokens == 7 and held(found) == [TOLD]
    assert found.store.max_memory_bytes == 10**9
    unnamed = MPlusLLM(model=MODEL)
    unnamed.memorize(TOLD)
    found = pickle.loads(pickle.dumps(unnamed))
    assert held(found) == [TOLD]
    assert held(pickle.loads(pickle.dumps(found))) == [TOLD]
    unnamed.memorize("More.")
    assert held(found) == [TOLD], "as it was then"
    given = MODEL.new_memory()
    MODEL.write(given, TOLD, keep_text=True)
    assert held(pickle.loads(pickle.dumps(MPlusLLM(model=MODEL, memory=given)))) == [TOLD]
    assert held(pickle.loads(pickle.dumps(MPlusLLM(model=MODEL).reading(given)))) == []
    assert pickle.loads(pickle.dumps(MPlusLLM(model="smol-135m"))).model == "smol-135m"


def test_pickling_never_changes_the_living_object(tmp_path: Path) -> None:
    vault = MemoryStore(tmp_path / "memories", vault=KeyVault(tmp_path / "keys"))
    for llm in (MPlusLLM(model=MODEL, store=vault, memory_key="anna"), MPlusLLM(model=MODEL, scheduler=MODEL.serve())):
        fields, private = dict(llm.__dict__), dict(llm.__pydantic_private__ or {})
        if llm.store is not None:
            with pytest.raises(ValueError, match="with store=MemoryStore.*cannot be pickled.*vault"):
                pickle.dumps(llm)
        else:
            assert pickle.loads(pickle.dumps(llm)).scheduler is None
            llm.scheduler.close()
        assert llm.__dict__ == fields and llm.__pydantic_private__ == private


def test_a_conversation_and_a_block_are_copied_with_their_memory(tmp_path: Path) -> None:
    llm = MPlusLLM(model=MODEL)
    memory = MPlusMemory.from_defaults(llm=llm)
    memory.put(ChatMessage(content=TOLD))
    for found in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert found.latents is memory.latents and [m.content for m in found.get_all()] == [TOLD]
        found.chat_history.clear()
        assert [m.content for m in memory.get_all()] == [TOLD] and held(memory)
    shared = MPlusMemory.from_defaults(llm=llm, memory=llm.latents())
    shared.put(ChatMessage(content=TOLD))
    data, _ = pickle.dumps(shared), shared.latents
    elsewhere = pickle.loads(data.replace(shared.live_id.encode(), b"0" * 32))  # as in another process
    assert held(elsewhere) == [f"User: {TOLD}"]
    block = MPlusMemoryBlock(llm=llm)
    assert copy.deepcopy(block).llm is llm and held(pickle.loads(pickle.dumps(block)).llm) == held(llm)
    assert copy.deepcopy(MPlusWriter(llm=llm)).latents.is_same(MPlusWriter(llm=llm).latents)


def test_an_index_and_a_writer_refuse_to_be_pickled_and_stay_whole() -> None:
    llm = MPlusLLM(model=MODEL)
    index, writer = MPlusIndex.from_documents([Document(text=TOLD)], llm=llm), MPlusWriter(llm=llm)
    for way in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ValueError, match=r"persist\(folder\)"):
            way(index)
    with pytest.raises(ValueError, match="num_workers=None"):
        pickle.dumps(writer)
    assert index.llm is llm and writer.llm is llm and llm.model is MODEL


class Pool:
    """Runs the work here, after it went through a pickle as it would to a process."""

    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: Any) -> None: ...
    def starmap(self, work: Any, arguments: Any) -> list[Any]:
        return [work(*pickle.loads(pickle.dumps(one))) for one in arguments]


class Context:
    """A context of multiprocessing."""

    Pool = Pool


def test_a_pipeline_with_workers_leaves_the_llm_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: Context())
    llm = MPlusLLM(model=MODEL, store=MemoryStore(tmp_path), memory_key="anna", max_tokens=4)
    llm.memorize(TOLD)
    extractor = TitleExtractor(llm=llm, nodes=1)
    documents = [Document(text=f"Text {n}.") for n in range(2)]
    IngestionPipeline(transformations=[extractor]).run(documents=documents, num_workers=2)
    assert extractor.llm is llm and llm.store is not None and llm.model is MODEL and held(llm) == [TOLD]


def test_a_saved_object_never_opens_an_encrypted_store_without_its_keys(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "memories", vault=KeyVault(tmp_path / "keys"))
    llm = MPlusLLM(model=MODEL, store=store, memory_key="anna")
    saved = MPlusMemory.from_defaults(llm=llm).to_json()  # before anything is written
    with pytest.raises(MemoryKeyError, match=r"encrypts its memories.*vault=mplus\.KeyVault"):
        MPlusMemory.from_json(saved).put(ChatMessage(content=TOLD))
    index = MPlusIndex.from_documents([Document(text=TOLD)], llm=llm, store=store, memory_key="handbook")
    index.persist(tmp_path / "saved")
    with pytest.raises(MemoryKeyError, match="encrypts its memories"):
        MPlusIndex.load(tmp_path / "saved", llm=llm)
    again = MPlusIndex.load(tmp_path / "saved", llm=llm, store=store, memory_key="handbook")
    assert again.as_retriever().retrieve("key")
