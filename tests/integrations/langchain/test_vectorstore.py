"""The stores: LangChain's own suites, the swap, and forgetting for good."""

import asyncio
from collections.abc import Generator
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests
from langgraph.store.base import PutOp

from mplus import UnknownNameError
from mplus.read.prefill import prefill
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusStore, MPlusVectorStore
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
    assert found.id == "a" and TEXTS[0] not in found.page_content
    mixed = store.max_marginal_relevance_search(TEXTS[0], k=3)
    assert len(mixed) == 3 and not any(text in document.page_content for text in TEXTS for document in mixed)
    assert len({document.page_content for document in mixed}) == 3, (
        "EnsembleRetriever takes equal texts for one document"
    )
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
            store.add_texts([" ", ""], ids=["a", "x"])
        with pytest.raises(ValueError, match="is object"):
            store.add_texts(["fine", "bad"], [{}, {"x": object()}], ids=["a", "x"])
        with pytest.raises(ValueError, match="one of each"):
            store.add_texts(["fine"], ids=["a", "x"])
        with pytest.raises(ValueError, match="latent"):
            MPlusVectorStore(store.chat, recall="vectors")  # type: ignore[arg-type]
        assert memory.fingerprint == before


def test_it_works_as_a_retriever_in_a_chain(store: MPlusVectorStore) -> None:
    found = store.as_retriever(search_kwargs={"k": 2}).invoke(TEXTS[1])
    assert next(d.id for d in found) == "b" and len(found) == 2
    assert store.as_retriever(search_type="mmr", search_kwargs={"k": 2}).invoke(TEXTS[1])[0].id == "b"


# --- deleting -----------------------------------------------------------------------------------------


def kept(store: MPlusVectorStore) -> list[str | None]:
    return [d.id for d in store.get_by_ids(["a", "b", "c"])]


@pytest.mark.parametrize("wrong", [{}, {"ids": None}, {"filter": {}}, {"filter": None}])
def test_deleting_everything_is_asked_for_by_name(store: MPlusVectorStore, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="delete_all=True"):
        store.delete(**wrong)
    with pytest.raises(ValueError, match="delete_all=True"):
        asyncio.run(store.adelete(**wrong))
    assert kept(store) == ["a", "b", "c"]
    assert store.delete(delete_all=True) and kept(store) == []


@pytest.mark.parametrize(
    "wrong", [{"where": {"x": 1}}, {"where_document": {}}, {"collection": "x"}, {"namespace": "x"}]
)
def test_delete_refuses_unknown_keywords(store: MPlusVectorStore, wrong: dict[str, Any]) -> None:
    for ids in (None, ["a"]):
        with pytest.raises(UnknownNameError, match=f"does not take '{next(iter(wrong))}'"):
            store.delete(ids, **wrong)
        with pytest.raises(UnknownNameError, match="does not take"):
            asyncio.run(store.adelete(ids, **wrong))
    assert kept(store) == ["a", "b", "c"]


def test_delete_takes_a_filter(store: MPlusVectorStore) -> None:
    store.add_texts(["New year.", "Old year."], [{"year": 2024}, {"year": 1990}], ids=["new", "old"])
    assert store.delete(filter={"year": {"$lt": 2000}})
    assert [d.id for d in store.get_by_ids(["new", "old", "a"])] == ["new", "a"]
    assert asyncio.run(store.adelete(filter=lambda document: document.id == "b"))
    assert store.delete(["a", "new"], filter={"year": 2024})
    assert [d.id for d in store.get_by_ids(["new", "a", "b", "c"])] == ["a", "c"]
    with pytest.raises(ValueError, match="expected a list"):
        store.delete("ac")
    with pytest.raises(ValueError, match="mapping of metadata"):
        store.delete(filter=["a"])  # type: ignore[arg-type]
    store.delete([])
    assert kept(store) == ["a", "c"]


def test_a_note_and_a_document_of_one_name_neither_merge_nor_delete_each_other(store: MPlusVectorStore) -> None:
    store.chat.memorize("My note.", source="note")
    for change in (
        lambda: store.chat.memorize("Another note.", source="a"),
        lambda: store.add_texts(["A document."], ids=["note"]),
        lambda: store.add_documents([Document("A document.", id="note")]),
    ):
        with pytest.raises(ValueError, match=r"names a (note|document).*expected a name that is free"):
            change()
    store.delete(["note"])
    with store.chat.opened() as memory:
        assert {s.name: s.texts for s in memory.sources()}["note"] == ("My note.",)
    assert store.get_by_ids(["a"])[0].page_content == TEXTS[0] and store.get_by_ids(["note"]) == []


# --- ids, blank pages, metadata -----------------------------------------------------------------------


@pytest.mark.parametrize("blank", [" \n", "\f", "\ufeff", "\u200b \xad", "\x00"])
def test_one_blank_page_aborts_nothing_and_is_named(
    store: MPlusVectorStore, caplog: pytest.LogCaptureFixture, blank: str
) -> None:
    pages = [Document("Page one.", id="p1"), Document(blank, id="p2"), Document("Page three.", id="p3")]
    assert store.add_documents(pages) == ["p1", "p3"]
    assert "p2" in caplog.text and "p1" not in caplog.text
    caplog.clear()
    same = [Document(text, metadata={"source": "book.pdf"}) for text in ("One.", blank, "Two.", "Three.")]
    store.chat.memorize(same)
    with store.chat.opened() as memory:
        assert {s.name: s.texts for s in memory.sources()}["book.pdf"] == ("One.", "Two.", "Three.")
    assert "number 1" in caplog.text


def test_ids_may_be_numbers_and_missing_ones_are_made(store: MPlusVectorStore) -> None:
    ids: Any = [1, 2, None]
    assert store.add_texts(["One.", "Two.", "Three."], ids=ids)[:2] == ["1", "2"]
    one: Any = [1]
    assert store.get_by_ids(one)[0].page_content == "One."
    store.delete(one)
    assert store.get_by_ids(["1"]) == [] and store.get_by_ids(["2"]) != []
    with pytest.raises(ValueError, match="expected text, a number or a UUID"):
        store.add_texts(["x"], ids=[["x"]])  # type: ignore[list-item]


def test_lone_surrogates_are_written_and_come_back() -> None:
    store = MPlusVectorStore.from_texts(["half \ud83d of it"], ids=["s"], chat=MPlusChat(model=MODEL))
    assert store.get_by_ids(["s"])[0].page_content == "half \ud83d of it"
    assert store.similarity_search("half \ud83d")[0].id == "s"
    assert store.chat.invoke("What \ud83d?", max_tokens=2) is not None


def test_the_retriever_leaves_a_users_metadata_as_it_is() -> None:
    chat = MPlusChat(model=MODEL)
    chat.memorize(Document("A page about pears.", id="p1", metadata={"source": "book.pdf", "relevance": "high"}))
    chat.memorize("A note about pears.", source="n1")
    found = {d.id: d.metadata for d in MPlusRetriever(chat=chat).invoke("pears")}
    assert found["p1"]["source"] == "book.pdf" and found["p1"]["relevance"] == "high"
    assert found["n1"]["source"] == "n1" and isinstance(found["n1"]["relevance"], float)


@pytest.mark.parametrize(
    ("name", "instead"),
    [("persist_directory", "MemoryStore"), ("collection_name", "memory_key"), ("embedding_function", "embedder")],
)
def test_arguments_of_other_stores_are_answered_with_what_to_write_instead(name: str, instead: str) -> None:
    for make in (
        lambda: MPlusVectorStore(MPlusChat(model=MODEL), **{name: "x"}),
        lambda: MPlusVectorStore.from_texts(TEXTS, chat=MPlusChat(model=MODEL), **{name: "x"}),
        lambda: MPlusVectorStore.from_documents([Document("x")], chat=MPlusChat(model=MODEL), **{name: "x"}),
    ):
        with pytest.raises(UnknownNameError, match=rf"does not take '{name}'. Use .*{instead}"):
            make()


def test_many_small_documents_are_written_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real = MODEL.write
    monkeypatch.setattr(
        MODEL, "write", lambda memory, text, **k: (writes.append(len(text)), real(memory, text, **k))[1]
    )
    chat = MPlusChat(model=MODEL)
    MPlusVectorStore(chat).add_texts([f"Split {n}." for n in range(12)])
    chat.memorize([Document(f"Note {n}.", id=f"n{n}") for n in range(12)])
    items = MPlusStore(chat)
    items.batch([PutOp(("a",), f"k{n}", {"n": n}) for n in range(12)])
    assert writes == [12, 12, 12]
    assert len(items.search(("a",), limit=99)) == 12


def test_scores_are_from_0_to_1_and_cutoffs_hold(store: MPlusVectorStore) -> None:
    found = store.similarity_search_with_relevance_scores(TEXTS[0])
    scores = [score for _, score in found]
    assert len(found) == 3 and scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    cutoff = (scores[0] + scores[1]) / 2
    retriever = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": cutoff, "k": 3}
    )
    assert [d.id for d in retriever.invoke(TEXTS[0])] == ["a"]
