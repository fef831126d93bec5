"""Filters with operators, the same wherever sources are chosen: both frameworks, LangGraph's store, ``where=``."""

from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from mplus import metadata_filter
from mplus.testing import tiny_model
from mplus_integrations.filters import of_metadata_filters
from mplus_integrations.langchain import MPlusChat, MPlusRetriever, MPlusStore, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
ABOUT: dict[str, dict[str, Any]] = {
    "pear": {"year": 2019, "colour": "green", "tags": ["tree", "sweet"]},
    "plum": {"year": 2021, "colour": "blue", "tags": ["tree"]},
    "fig": {"year": 2023, "colour": "green"},
}
TEXTS = {name: f"A {name} is a fruit that people like." for name in ABOUT}
OURS: list[tuple[dict[str, Any], set[str]]] = [
    ({"year": {"$gt": 2020}}, {"plum", "fig"}),
    ({"year": {"$in": [2019, 2023]}}, {"pear", "fig"}),
    ({"$or": [{"year": {"$lt": 2020}}, {"colour": "blue"}]}, {"pear", "plum"}),
    ({"$and": [{"colour": "green"}, {"$not": {"year": 2019}}]}, {"fig"}),
    ({"tags": {"$contains": "sweet"}}, {"pear"}),
]


def one(key: str, operator: str, value: Any) -> MetadataFilter:
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def joined(*parts: Any, by: str = "and") -> MetadataFilters:
    return MetadataFilters(filters=list(parts), condition=FilterCondition(by))


THEIRS: list[tuple[MetadataFilters, set[str]]] = [
    (joined(one("year", ">", 2020)), {"plum", "fig"}),
    (joined(one("year", ">=", 2021), one("year", "<", 2023)), {"plum"}),
    (joined(one("year", "!=", 2021), one("year", "<=", 2023)), {"pear", "fig"}),
    (joined(one("year", "in", [2019, 2023])), {"pear", "fig"}),
    (joined(one("colour", "nin", ["green"])), {"plum"}),
    (joined(one("tags", "any", ["sweet", "blue"])), {"pear"}),
    (joined(one("tags", "all", ["sweet", "tree"])), {"pear"}),
    (joined(one("tags", "contains", "tree")), {"pear", "plum"}),
    (joined(one("tags", "is_empty", None)), {"fig"}),
    (joined(one("colour", "text_match", "ree")), {"pear", "fig"}),
    (joined(one("colour", "text_match_insensitive", "GREEN")), {"pear", "fig"}),
    (joined(one("year", "==", 2019), one("colour", "==", "blue"), by="or"), {"pear", "plum"}),
    (joined(one("year", "==", 2019), one("colour", "==", "blue"), by="not"), {"fig"}),
    (joined(one("colour", "==", "green"), joined(one("year", "==", 2019), one("year", "==", 2021), by="or")), {"pear"}),
]


@pytest.fixture(scope="module")
def chat() -> MPlusChat:
    chat = MPlusChat(model=MODEL, max_tokens=4)
    MPlusVectorStore(chat).add_texts(list(TEXTS.values()), list(ABOUT.values()), ids=list(TEXTS))
    return chat


@pytest.mark.parametrize(("wanted", "expected"), OURS, ids=str)
def test_filters_with_operators_choose_documents_of_langchain(
    chat: MPlusChat, wanted: dict[str, Any], expected: set[str]
) -> None:
    store = MPlusVectorStore(chat)
    assert {d.id for d in store.similarity_search("fruit", filter=wanted)} == expected
    assert {d.id for d in store.as_retriever(search_kwargs={"filter": wanted}).invoke("fruit")} == expected
    assert {d.id for d in store.max_marginal_relevance_search("fruit", filter=wanted)} == expected
    assert {d.id for d in MPlusRetriever(chat=chat, where=wanted).invoke("fruit")} == expected
    assert {s.source for s in MODEL.search(chat.latents().read(MODEL), "fruit", where=wanted)} == expected


def test_filters_with_operators_choose_what_an_answer_reads(chat: MPlusChat) -> None:
    read = chat.invoke("Well?", where={"year": {"$gt": 2020}}).response_metadata["prefix_tokens"]
    assert 0 < read < chat.invoke("Well?").response_metadata["prefix_tokens"]
    assert chat.invoke("Well?", where={"year": {"$gt": 2030}}).response_metadata["prefix_tokens"] == 0
    with pytest.raises(ValueError, match=r"\$like"):
        chat.invoke("Well?", where={"year": {"$like": 2030}})


@pytest.mark.parametrize(("wanted", "expected"), OURS, ids=str)
def test_filters_with_operators_choose_items_of_langgraphs_store(wanted: dict[str, Any], expected: set[str]) -> None:
    store = MPlusStore(MPlusChat(model=MODEL))
    for name, about in ABOUT.items():
        store.put(("fruit",), name, about)
    assert {item.key for item in store.search((), filter=wanted)} == expected
    assert {item.key for item in store.search((), query="fruit", filter=wanted)} == expected


@pytest.fixture(scope="module")
def index() -> MPlusIndex:
    documents = [Document(text=text, id_=name, metadata=ABOUT[name]) for name, text in TEXTS.items()]
    return MPlusIndex.from_documents(documents, llm=MPlusLLM(model=MODEL, max_tokens=4))


@pytest.mark.parametrize(("filters", "expected"), THEIRS, ids=lambda part: str(part)[:60])
def test_every_operator_and_nested_filters_choose_nodes_of_llama_index(
    index: MPlusIndex, filters: MetadataFilters, expected: set[str]
) -> None:
    retriever = index.as_retriever(filters=filters, similarity_top_k=9)
    assert {found.node.ref_doc_id for found in retriever.retrieve("fruit")} == expected


def test_both_frameworks_mean_the_same() -> None:
    nested = joined(one("colour", "==", "green"), joined(one("year", ">", 2020), by="or"))
    ours = metadata_filter({"colour": "green", "$or": [{"year": {"$gt": 2020}}]})
    theirs = metadata_filter(of_metadata_filters(nested))
    assert [ours(about) for about in ABOUT.values()] == [theirs(about) for about in ABOUT.values()]


def test_an_unknown_operator_is_an_error_when_the_retriever_is_made(index: MPlusIndex) -> None:
    class Filter:
        key, operator, value = "year", "near", 2020

    class Filters:
        filters, condition = (Filter(),), None

    with pytest.raises(ValueError, match="operator='near' of 'year'"):
        index.as_retriever(filters=Filters())
