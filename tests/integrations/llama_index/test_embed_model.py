"""An application's own LlamaIndex embedding, used for recall."""

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.embeddings import BaseEmbedding
from pydantic import PrivateAttr

from mplus.testing import toy_embedder
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM
from tests.integrations.llama_index.conftest import MODEL

DOCUMENTS = [
    Document(text="The red box is in the attic.", id_="red"),
    Document(text="Anna plays the cello on Mondays.", id_="anna"),
]
QUESTION = "Who plays the cello?"


class Toy(BaseEmbedding):
    """Counts what it is asked."""

    model_name: str = "toy"
    _asked: list[str] = PrivateAttr(default_factory=list)

    def _get_text_embedding(self, text: str) -> list[float]:
        return toy_embedder(512)([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        self._asked.append(query)
        return toy_embedder(512)([query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def first(index: MPlusIndex) -> str | None:
    (found,) = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)
    return found.node.ref_doc_id


@pytest.mark.parametrize("embed_model", [Toy(), toy_embedder(512)])
def test_an_index_recalls_by_its_embed_model(llm: MPlusLLM, embed_model: Any) -> None:
    index = MPlusIndex.from_documents(DOCUMENTS, llm=llm, embed_model=embed_model)
    assert index.llm.loaded.memory_config.recall == "embedding+late"
    assert llm.embedder is None
    assert first(index) == "anna"
    for reader in (None, llm):
        answer = index.as_query_engine(llm=reader).query(QUESTION)
        assert answer.source_nodes
    assert index.as_chat_engine(llm=llm).chat(QUESTION).source_nodes
    if isinstance(embed_model, Toy):
        assert set(embed_model._asked) == {QUESTION}


def test_an_llm_with_an_embedder_is_enough() -> None:
    toy = Toy()
    index = MPlusIndex.from_documents(DOCUMENTS, llm=MPlusLLM(model=MODEL, embedder=toy, max_tokens=4))
    assert first(index) == "anna"
    assert toy._asked == [QUESTION]


def test_a_persisted_index_gets_vectors_when_it_is_loaded_with_one(llm: MPlusLLM, tmp_path: Path) -> None:
    MPlusIndex.from_documents(DOCUMENTS, llm=llm).persist(tmp_path)
    index = MPlusIndex.load(tmp_path, llm, embed_model=Toy())
    assert index.latents.read(index.llm.loaded).config.recall == "embedding+late"
    assert first(index) == "anna"
    index.persist(tmp_path)
    again = MPlusIndex.load(tmp_path, llm, embed_model=Toy())
    assert first(again) == "anna"
