"""An application's own LangChain embeddings, used for recall."""

from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from mplus import MemoryStore
from mplus.testing import tiny_model, toy_embedder
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusVectorStore
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
DOCUMENTS = [
    Document("The red box is in the attic.", id="red"),
    Document("Anna plays the cello on Mondays.", id="anna"),
]


class Toy(Embeddings):
    """Counts what it is asked."""

    model = "toy"

    def __init__(self) -> None:
        self.questions: list[str] = []
        self.texts: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.texts += texts
        return toy_embedder(512)(texts)

    def embed_query(self, text: str) -> list[float]:
        self.questions.append(text)
        return toy_embedder(512)([text])[0]


def test_a_chat_recalls_by_its_embedder() -> None:
    toy = Toy()
    chat = MPlusChat(model=MODEL, embedder=toy, max_tokens=4)
    chat.memorize(DOCUMENTS)
    assert toy.texts == [document.page_content for document in DOCUMENTS]
    answer = chat.invoke([("system", "Be brief."), ("user", "Who plays the cello?")])
    assert toy.questions == ["Who plays the cello?"]
    assert answer.response_metadata["is_calibrated"] is False
    assert chat.loaded.memory_config.recall == "embedding+late"
    (found, *_) = MPlusRetriever(chat=chat, k=1).invoke("Who plays the cello?")
    assert found.metadata["source"] == "anna"


def test_a_store_takes_the_embedder_that_every_vector_store_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy()
    monkeypatch.setattr("mplus_integrations.models._LOADED", {"smol-135m": MODEL})
    store = MPlusVectorStore.from_documents(DOCUMENTS, toy)
    assert store.embeddings is toy
    assert store.similarity_search("Who plays the cello?", k=1)[0].id == "anna"
    assert len(toy.questions) == 1
    plain = MPlusVectorStore.from_documents(DOCUMENTS, toy, chat=MPlusChat(model=MODEL))
    assert plain.embeddings is None


def test_named_memories_keep_their_vectors(tmp_path: Path) -> None:
    toy = Toy()

    def chat() -> MPlusChat:
        return MPlusChat(model=MODEL, embedder=toy, store=MemoryStore(tmp_path), memory_key="anna")

    chat().memorize(DOCUMENTS)
    count = len(toy.texts)
    (found,) = MPlusVectorStore(chat()).chat.loaded.search(chat().latents().read(chat().loaded), "red box", limit=1)
    assert found.source == "red"
    assert len(toy.texts) == count


def test_what_is_no_embedder_is_refused() -> None:
    with pytest.raises(ValueError, match="embedder"):
        MPlusChat(model=MODEL, embedder="text-embedding-3-small")
