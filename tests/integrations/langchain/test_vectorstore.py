"""The stores: LangChain's own suites, the swap, and forgetting for good."""

from collections.abc import Generator
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusVectorStore
from tests.conftest import TINY
from tests.integrations.langchain.conftest import nothing_is_deleted

MODEL = tiny_model(memory=TINY)
TEXTS = ["The red box is in the attic.", "The green box is in the cellar.", "Anna plays the cello on Mondays."]


class TestVectorStoreStandard(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self) -> Generator[VectorStore, None, None]:
        return MPlusVectorStore(MPlusChat(model=MODEL))


class TestRetrieverStandard(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return MPlusRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        chat = MPlusChat(model=MODEL)
        chat.memorize([Document(f"Note {n} is about box {n}.", id=f"n{n}") for n in range(6)])
        return {"chat": chat}

    @property
    def retriever_query_example(self) -> str:
        return "box"


@pytest.mark.parametrize("ours", [TestVectorStoreStandard, TestRetrieverStandard])
def test_acceptance_1_nothing_of_a_suite_of_stores_is_deleted_and_what_may_fail_says_why(ours: type) -> None:
    nothing_is_deleted(ours)


@pytest.fixture
def store() -> MPlusVectorStore:
    return MPlusVectorStore.from_texts(TEXTS, ids=["a", "b", "c"], chat=MPlusChat(model=MODEL))


def test_the_same_words_are_found_first_and_filters_hold(store: MPlusVectorStore) -> None:
    store.add_texts(["A fourth text, about something else."], [{"lang": "en"}], ids=["d"])
    for name, text in zip("abc", TEXTS, strict=True):
        document, score = store.similarity_search_with_score(text, k=1)[0]
        assert document.id == name and document.page_content == text and isinstance(score, float)
    assert [d.id for d in store.similarity_search("box", filter={"lang": "en"})] == ["d"]
    assert [d.id for d in store.similarity_search("box", filter=lambda d: d.id == "b")] == ["b"]


def test_latent_recall_keeps_the_text_out_of_the_prompt() -> None:
    store = MPlusVectorStore.from_texts(TEXTS, ids=["a", "b", "c"], chat=MPlusChat(model=MODEL), recall="latent")
    found = store.similarity_search(TEXTS[0], k=1)[0]
    assert found.id == "a" and found.page_content == ""
    assert store.get_by_ids(["a"])[0].page_content == TEXTS[0]


def test_the_chat_reads_what_the_store_holds(store: MPlusVectorStore) -> None:
    answer = store.chat.invoke("Where is the red box?", max_tokens=4)
    assert answer.response_metadata["prefix_tokens"] > 0


def test_after_a_delete_reads_equal_a_store_that_never_had_it(store: MPlusVectorStore) -> None:
    store.delete(["b"])
    never = MPlusVectorStore.from_texts([TEXTS[0], TEXTS[2]], ids=["a", "c"], chat=MPlusChat(model=MODEL))
    logits = []
    for one in (store, never):
        with one.chat.opened() as memory:
            request = MODEL.read_request(memory, "Where is the green box?")
            logits.append(prefill(MODEL.weights, [request]).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_index_skips_updates_and_deletes() -> None:
    store = MPlusVectorStore(MPlusChat(model=MODEL))
    records = InMemoryRecordManager("test")
    records.create_schema()

    def run(texts: list[str], cleanup: Any) -> dict[str, int]:
        documents = [Document(text, metadata={"source": f"s{n}"}) for n, text in enumerate(texts)]
        result = index(documents, records, store, cleanup=cleanup, source_id_key="source", key_encoder="sha256")
        return {key: value for key, value in dict(result).items() if value}  # type: ignore[arg-type]

    assert run(TEXTS, "incremental") == {"num_added": 3}
    assert run(TEXTS, "incremental") == {"num_skipped": 3}
    assert run([TEXTS[0], "The green box was sold."], "full") == {"num_added": 1, "num_skipped": 1, "num_deleted": 2}
    assert {d.page_content for d in store.similarity_search("box", k=9)} == {TEXTS[0], "The green box was sold."}


def test_a_text_comes_back_exactly_as_it_was_given() -> None:
    text = "  Tabs\tand  spaces, <|im_end|> and ünïcode ☃ .\n\n"
    store = MPlusVectorStore.from_texts([text], ids=["t"], chat=MPlusChat(model=MODEL))
    assert store.get_by_ids(["t"])[0].page_content == text


def test_documents_need_no_embedding() -> None:
    documents = [Document(text, id=name) for name, text in zip("abc", TEXTS, strict=True)]
    store = MPlusVectorStore.from_documents(documents, chat=MPlusChat(model=MODEL))
    assert [d.id for d in store.get_by_ids(["c", "a"])] == ["c", "a"]


def test_a_failed_add_writes_nothing(store: MPlusVectorStore) -> None:
    with store.chat.opened() as memory:
        before = memory.fingerprint
        with pytest.raises(ValueError, match="nothing to write"):
            store.add_texts(["fine", ""], ids=["a", "x"])
        with pytest.raises(ValueError, match="one of each"):
            store.add_texts(["fine"], ids=["a", "x"])
        with pytest.raises(ValueError, match="latent"):
            MPlusVectorStore(store.chat, recall="vectors")  # type: ignore[arg-type]
        assert memory.fingerprint == before


def test_it_works_as_a_retriever_in_a_chain(store: MPlusVectorStore) -> None:
    found = store.as_retriever(search_kwargs={"k": 2}).invoke(TEXTS[1])
    assert next(d.id for d in found) == "b" and len(found) == 2
    assert store.as_retriever(search_type="mmr", search_kwargs={"k": 2}).invoke(TEXTS[1])[0].id == "b"
