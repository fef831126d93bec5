"""Arguments of what is built around a model: none that does not exist, none out of range, and None for the default."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from pydantic import BaseModel

from mplus import MemoryNotFoundError, UnknownNameError
from mplus.testing import tiny_model
from mplus_integrations import MPlusChat, MPlusIndex, MPlusLLM, MPlusMemory, MPlusRetriever, MPlusVectorStore
from mplus_integrations.langchain import MPlusMemoryMiddleware, MPlusStore
from mplus_integrations.llama_index import MPlusMemoryBlock, MPlusWriter
from mplus_integrations.llama_index.synthesizer import MPlusSynthesizer
from mplus_integrations.server.keys import KeyRing
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)


@pytest.fixture
def built() -> "Built":
    return Built()


class Built:
    """One of each, with three documents."""

    def __init__(self) -> None:
        self.chat, self.llm = MPlusChat(model=MODEL, max_tokens=4), MPlusLLM(model=MODEL, max_tokens=4)
        self.store = MPlusVectorStore(self.chat)
        self.store.add_texts(
            ["Pears are sweet.", "Plums are blue.", "Figs are soft."],
            [{"kind": "pear"}, {"kind": "plum"}, {"kind": "fig"}],
            ids=["pear", "plum", "fig"],
        )
        self.index = MPlusIndex.from_documents([Document(text="Pears are sweet.", id_="pear")], llm=self.llm)
        self.synthesizer = MPlusSynthesizer(self.llm, self.index.latents)
        self.memory = MPlusMemory.from_defaults(llm=self.llm)
        self.writer = MPlusWriter(llm=self.llm)
        self.retriever = MPlusRetriever(chat=self.chat)
        self.items = MPlusStore(MPlusChat(model=MODEL))


class Fruit(BaseModel):
    """A fruit."""

    name: str = ""


def test_an_index_is_not_persisted_behind_a_url(
    built: "Built", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/index", Path("s3://bucket/index")):
        calls: list[Callable[[], Any]] = [
            lambda url=url: built.index.persist(url),
            lambda url=url: MPlusIndex.load(url, built.llm),
            lambda url=url: MPlusIndex(nodes=[], llm=built.llm, persist_dir=url),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"persist_dir=.*not a url.*UrlStore"):
                call()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"persist_dir=.*not a url.*UrlStore"):
        built.index.storage_context.persist("s3://bucket/index")
    with pytest.raises(ValueError, match=r"keys=.*not a url"):
        KeyRing("s3://bucket/keys.json")


NODE = TextNode(text="Plums are blue.", id_="plum")
CHANGED = Document(text="Pears are green.", id_="pear")
FOUND = [NodeWithScore(node=NODE)]

MEMBERS: dict[str, Callable[..., Any]] = {
    "insert": lambda on, **given: on.index.insert(CHANGED, **given),
    "ainsert": lambda on, **given: on.index.ainsert(CHANGED, **given),
    "insert_nodes": lambda on, **given: on.index.insert_nodes([NODE], **given),
    "ainsert_nodes": lambda on, **given: on.index.ainsert_nodes([NODE], **given),
    "delete": lambda on, **given: on.index.delete("pear", **given),
    "delete_nodes": lambda on, **given: on.index.delete_nodes(["pear"], **given),
    "adelete_nodes": lambda on, **given: on.index.adelete_nodes(["pear"], **given),
    "delete_ref_doc": lambda on, **given: on.index.delete_ref_doc("pear", **given),
    "delete_ref_doc of none": lambda on, **given: on.index.delete_ref_doc("nothing", **given),
    "adelete_ref_doc": lambda on, **given: on.index.adelete_ref_doc("pear", **given),
    "update_ref_doc": lambda on, **given: on.index.update_ref_doc(CHANGED, **given),
    "its insert_kwargs": lambda on, **given: on.index.update_ref_doc(CHANGED, insert_kwargs=given),
    "its delete_kwargs": lambda on, **given: on.index.update_ref_doc(CHANGED, delete_kwargs=given),
    "aupdate_ref_doc": lambda on, **given: on.index.aupdate_ref_doc(CHANGED, **given),
    "refresh_ref_docs": lambda on, **given: on.index.refresh_ref_docs([CHANGED], **given),
    "its update_kwargs": lambda on, **given: on.index.refresh_ref_docs([CHANGED], update_kwargs=given),
    "arefresh_ref_docs": lambda on, **given: on.index.arefresh_ref_docs([CHANGED], **given),
    "as_retriever": lambda on, **given: on.index.as_retriever(**given),
    "as_query_engine": lambda on, **given: on.index.as_query_engine(**given),
    "as_chat_engine": lambda on, **given: on.index.as_chat_engine(**given),
    "synthesize": lambda on, **given: on.synthesizer.synthesize("Hello?", FOUND, **given),
    "synthesize without nodes": lambda on, **given: on.synthesizer.synthesize("Hello?", [], **given),
    "asynthesize": lambda on, **given: on.synthesizer.asynthesize("Hello?", FOUND, **given),
    "get_response": lambda on, **given: on.synthesizer.get_response("Hello?", [], **given),
    "aget_response": lambda on, **given: on.synthesizer.aget_response("Hello?", [], **given),
    "writer": lambda on, **given: on.writer([NODE], **given),
    "writer.acall": lambda on, **given: on.writer.acall([NODE], **given),
    "memory.get": lambda on, **given: on.memory.get("Hello?", **given),
    "memory.aget": lambda on, **given: on.memory.aget("Hello?", **given),
    "get_tool_calls_from_response": lambda on, **given: on.llm.get_tool_calls_from_response(
        on.llm.chat([ChatMessage("Hello?")]), error_on_no_tool_call=False, **given
    ),
    "store.as_retriever": lambda on, **given: on.store.as_retriever(**given),
    "its search_kwargs": lambda on, **given: on.store.as_retriever(search_kwargs=given).invoke("pears"),
    "add_texts": lambda on, **given: on.store.add_texts(["More."], **given),
    "add_documents": lambda on, **given: on.store.add_documents([LangChainDocument("More.")], **given),
    "store.delete": lambda on, **given: on.store.delete(["pear"], **given),
    "similarity_search": lambda on, **given: on.store.similarity_search("pears", **given),
    "search with relevance": lambda on, **given: on.store.similarity_search_with_relevance_scores("pears", **given),
    "max_marginal_relevance_search": lambda on, **given: on.store.max_marginal_relevance_search("pears", **given),
    "retriever": lambda on, **given: on.retriever.invoke("pears", **given),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_an_argument_that_does_not_exist_is_refused_and_nothing_is_changed(built: Built, member: str) -> None:
    def state() -> list[str]:
        memories = built.index.latents.read(MODEL), built.llm.latents().read(MODEL), built.chat.latents().read(MODEL)
        return [memory.fingerprint for memory in memories]

    before = state()
    with pytest.raises(UnknownNameError, match="does not take 'foo'"):
        found = MEMBERS[member](built, foo=1)
        asyncio.run(found)
    assert state() == before


def test_an_index_takes_what_llama_index_passes_on(built: Built) -> None:
    built.index.update_ref_doc(CHANGED, insert_kwargs={}, delete_kwargs={})
    again = Document(text="Pears are brown.", id_="pear")
    assert built.index.refresh_ref_docs([again], insert_kwargs={}, update_kwargs={"insert_kwargs": {}}) == [True]
    assert asyncio.run(built.index.arefresh_ref_docs([again])) == [False]
    assert built.memory.get(initial_token_count=3) == []


# --- how many, and None for the default ---------------------------------------------------------------

SEARCHES: dict[str, Callable[..., list[Any]]] = {
    "similarity_search": lambda on, k: on.store.similarity_search("pears", k=k),
    "with score": lambda on, k: on.store.similarity_search_with_score("pears", k),
    "with relevance": lambda on, k: on.store.similarity_search_with_relevance_scores("pears", k=k),
    "max_marginal_relevance": lambda on, k: on.store.max_marginal_relevance_search("pears", k=k),
    "as_retriever": lambda on, k: on.store.as_retriever(search_kwargs={"k": k}).invoke("pears"),
    "retriever": lambda on, k: on.retriever.invoke("pears", k=k),
    "retriever's own": lambda on, k: MPlusRetriever(chat=on.chat, k=k).invoke("pears"),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_finds_at_least_one_and_without_a_number_four(built: Built, search: str) -> None:
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k={k}: expected at least 1"):
            SEARCHES[search](built, k)
    assert len(SEARCHES[search](built, 2)) == 2
    built.store.add_texts(["Apples are red.", "Limes are sour."])
    assert len(SEARCHES[search](built, None)) == 4


def test_none_is_the_default_of_recall_and_of_chat_mode(built: Built) -> None:
    assert MPlusVectorStore(built.chat, recall=None).recall == MPlusVectorStore(built.chat).recall == "hybrid"
    assert type(built.index.as_query_engine(recall=None)) is type(built.index.as_query_engine())
    engines = [built.index.as_chat_engine(chat_mode=mode) for mode in (None, ChatMode.BEST)]
    assert type(engines[0]) is type(engines[1])
    assert MPlusStore(built.chat, memory_key=None).memory_key == MPlusStore(built.chat).memory_key


# --- names of memories, sources, tools ----------------------------------------------------------------

NAMED: dict[str, Callable[[str], Any]] = {
    "vector store": lambda key: MPlusVectorStore(MPlusChat(model=MODEL), memory_key=key),
    "retriever": lambda key: MPlusRetriever(chat=MPlusChat(model=MODEL), memory_key=key),
    "store": lambda key: MPlusStore(MPlusChat(model=MODEL), memory_key=key),
    "writer": lambda key: MPlusWriter(llm=MPlusLLM(model=MODEL), memory_key=key),
    "memory": lambda key: MPlusMemory(memory_key=key),
    "chat": lambda key: MPlusChat(model=MODEL, memory_key=key),
    "llm": lambda key: MPlusLLM(model=MODEL, memory_key=key),
}


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("key", ["", " "])
def test_a_bad_name_is_refused_when_the_object_is_made(kind: str, key: str) -> None:
    with pytest.raises(ValueError, match="memory_key="):
        NAMED[kind](key)
    assert NAMED[kind]("anna").memory_key == "anna"


def test_a_mapping_means_the_same_wherever_sources_are_chosen(built: Built) -> None:
    assert [d.id for d in built.store.similarity_search("pears", filter={"kind": "plum"})] == ["plum"]
    assert built.store.similarity_search("pears", filter={"colour": None}) == [], "what is not there is not None"
    for where in ({"kind": "plum"}, lambda name, _: name == "plum"):
        assert [d.id for d in MPlusRetriever(chat=built.chat, where=where).invoke("pears")] == ["plum"]
        assert built.chat.invoke("Hello?", where=where).response_metadata["prefix_tokens"] > 0
    for empty in ({"colour": None}, lambda *_: False):
        assert MPlusRetriever(chat=built.chat, where=empty).invoke("pears") == []
        assert built.chat.invoke("Hello?", where=empty).response_metadata["prefix_tokens"] == 0


@pytest.mark.parametrize("choice", ["zzz", "required", "any", True, {"type": "function", "function": {"name": "zzz"}}])
def test_a_call_cannot_be_asked_for_without_tools(built: Built, choice: Any) -> None:
    asked = [ChatMessage("Hello?")]
    ways: list[Callable[[], Any]] = [
        lambda: built.chat.invoke("Hello?", tool_choice=choice),
        lambda: list(built.chat.stream("Hello?", tool_choice=choice)),
        lambda: built.chat.bind_tools([], tool_choice=choice),
        lambda: built.llm.chat(asked, tool_choice=choice),
        lambda: list(built.llm.stream_complete("Hello?", tool_choice=choice)),
        lambda: built.llm.chat_with_tools([], "Hello?", tool_choice=choice),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="without tools: expected 'auto' or 'none', or tools to call"):
            way()
    for nothing in ("auto", "none", None, False):
        assert built.chat.invoke("Hello?", tool_choice=nothing).tool_calls == []
        assert built.llm.chat_with_tools([], "Hello?", tool_choice=nothing) is not None


PLACES: dict[str, Callable[..., Any]] = {
    "MPlusChat": lambda on, **given: MPlusChat(model=MODEL, **given),
    "MPlusVectorStore": lambda on, **given: MPlusVectorStore(on.chat, **given),
    "MPlusRetriever": lambda on, **given: MPlusRetriever(chat=on.chat, **given),
    "MPlusStore": lambda on, **given: MPlusStore(on.chat, **given),
    "MPlusMemoryMiddleware": lambda on, **given: MPlusMemoryMiddleware(on.chat, **given),
    "invoke": lambda on, **given: on.chat.invoke("Hi", **given),
    "MPlusLLM": lambda on, **given: MPlusLLM(model=MODEL, **given),
    "complete": lambda on, **given: on.llm.complete("Hi", **given),
    "MPlusMemory": lambda on, **given: MPlusMemory.from_defaults(llm=on.llm, **given),
    "MPlusMemoryBlock": lambda on, **given: MPlusMemoryBlock(llm=on.llm, **given),
    "MPlusIndex": lambda on, **given: MPlusIndex.from_documents([CHANGED], llm=on.llm, **given),
    "MPlusIndex.load": lambda on, **given: MPlusIndex.load("nowhere", llm=on.llm, **given),
    "MPlusWriter": lambda on, **given: MPlusWriter(llm=on.llm, **given),
    "as_query_engine": lambda on, **given: on.index.as_query_engine(**given),
    "as_chat_engine": lambda on, **given: on.index.as_chat_engine(**given),
}


@pytest.mark.parametrize("name", ["persist_directory", "collection_name", "session_id", "chat_store"])
@pytest.mark.parametrize("place", PLACES)
def test_what_other_libraries_call_otherwise_is_answered_with_what_to_write(
    built: "Built", place: str, name: str
) -> None:
    """And what is to be written exists there."""
    with pytest.raises(ValueError, match=f"does not take '{name}'") as refused:
        PLACES[place](built, **{name: "x"})
    said = re.search(rf"does not take '{name}'\. Use (.*?)\. It takes: (.*?)\.", str(refused.value))
    assert said is not None, refused.value
    advice, takes = said[1], said[2].split(", ")
    assert not advice.isidentifier() or advice in takes
    assert any(word in advice for word in ("memory_key", "store", "Store"))


def test_a_folder_without_a_saved_index_is_named(built: "Built", tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFoundError, match="no saved index"):
        MPlusIndex.load(tmp_path, llm=built.llm)


# --- values of another type ---------------------------------------------------------------------------

GREEN = MetadataFilter(key="kind", value="pear")
WRONG: dict[str, tuple[Callable[[Built], Any], str]] = {
    "delete_all=": (lambda on: on.store.delete(delete_all="no"), "delete_all='no': expected True or False"),
    "delete_all=1": (lambda on: on.store.delete(delete_all=1), "delete_all=1: expected True or False"),
    "delete of one id": (lambda on: on.store.delete("pear"), r"ids='pear' is str: expected a list; .* in \[\]"),
    "delete of a number": (lambda on: on.store.delete(5), "ids=5 is int: expected a list"),
    "get_by_ids of one id": (lambda on: on.store.get_by_ids("pear"), "ids='pear' is str"),
    "a text for texts": (lambda on: on.store.add_texts("Hello."), "texts='Hello.' is str: expected a list"),
    "a number for a text": (lambda on: on.store.add_texts([5]), r"texts has 5 \(int\) in it: expected a list of str"),
    "a text for ids": (lambda on: on.store.add_texts(["a", "b"], ids="ab"), "ids='ab' is str"),
    "a mapping for metadatas": (lambda on: on.store.add_texts(["a"], {"a": 1}), "metadatas={'a': 1} is dict"),
    "a number for metadata": (lambda on: on.store.add_texts(["a"], [5]), r"metadatas has 5 \(int\)"),
    "texts for documents": (lambda on: on.store.add_documents(["a"]), "documents has 'a' .*list of Document"),
    "no ids for documents": (
        lambda on: on.store.add_documents([LangChainDocument("More.")], ids=[]),
        "1 texts, 1 metadatas, 0 ids",
    ),
    "one id for two texts": (lambda on: on.store.add_texts(["One.", "Two."], ids=["x", "x"]), "ids has 'x' twice"),
    "k": (lambda on: on.store.similarity_search("pears", k=2.5), "k=2.5: expected at least 1, as a whole number"),
    "k as text": (lambda on: on.retriever.invoke("pears", k="2"), "k='2': expected at least 1, as a whole"),
    "k of a retriever": (lambda on: MPlusRetriever(chat=on.chat, k=True), "k=True: expected at least 1, as a whole"),
    "lambda_mult": (
        lambda on: on.store.max_marginal_relevance_search("pears", lambda_mult=5),
        "lambda_mult=5: expected 0",
    ),
    "no query": (lambda on: on.store.similarity_search(None), "query=None is NoneType: expected text"),
    "no query for a retriever": (lambda on: on.retriever.invoke(5), "query=5 is int: expected text"),
    "a namespace as text": (lambda on: on.items.search("users"), "namespace_prefix='users'.*a tuple of labels"),
    "a negative limit": (lambda on: on.items.search((), limit=-1), "limit=-1.*not negative"),
    "a number as a key": (lambda on: on.items.put(("a",), "k", {1: "x"}), "come back as {'1': 'x'}"),
    "a text as a value": (lambda on: on.items.put(("a",), "k", "x"), "come back as 'x'"),
    "one field": (lambda on: on.items.put(("a",), "k", {"a": "x"}, index="a"), "index='a' is str"),
    "one field of all": (lambda on: MPlusStore(on.chat, fields="a"), "fields='a' is str"),
    "similarity_top_k": (
        lambda on: on.index.as_retriever(similarity_top_k=2.5),
        "similarity_top_k=2.5: expected at least 1, as a whole number",
    ),
    "one node id": (lambda on: on.index.as_retriever(node_ids="pear"), "node_ids='pear' is str"),
    "one document id": (lambda on: on.index.as_query_engine(doc_ids="pear"), "doc_ids='pear' is str"),
    "a mapping as filters": (
        lambda on: on.index.as_retriever(filters={"kind": "pear"}),
        "is dict: expected MetadataFilters.*from_dict",
    ),
    "a list as filters": (lambda on: on.index.as_retriever(filters=[GREEN]), "is list: expected MetadataFilters"),
    "any of a text": (lambda on: on.index.as_retriever(filters=filtered("any", "ab")), "'any' expects a list"),
    "any of a number": (lambda on: on.index.as_retriever(filters=filtered("any", 5)), "'any' expects a list"),
    "all of a text": (lambda on: on.index.as_retriever(filters=filtered("all", "ab")), "expected a list of values"),
    "a number in a text": (
        lambda on: on.index.as_retriever(filters=filtered("text_match", 5)),
        "'text_match' expects text",
    ),
    "one node to delete": (lambda on: on.index.delete_nodes("pear"), "node_ids='pear' is str"),
    "delete_from_docstore": (
        lambda on: on.index.delete_ref_doc("pear", delete_from_docstore="no"),
        "delete_from_docstore='no': expected True or False",
    ),
    "texts as documents": (lambda on: MPlusIndex.from_documents(["a"], llm=on.llm), "documents has 'a'"),
    "a text as documents": (lambda on: MPlusIndex.from_documents("a", llm=on.llm), "documents='a' is str"),
    "a text to insert": (lambda on: on.index.insert("a"), "document has 'a'"),
    "texts as nodes": (lambda on: on.index.insert_nodes(["a"]), "nodes has 'a'"),
    "a text to refresh": (lambda on: on.index.refresh_ref_docs(["a"]), "documents has 'a'"),
    "texts for the writer": (lambda on: on.writer(["a"]), "nodes has 'a'"),
    "two nodes of one id": (
        lambda on: on.index.insert_nodes([NODE, TextNode(text="Plums are red.", id_="plum")]),
        "nodes has 'plum' twice",
    ),
    "a text as memory": (lambda on: MPlusIndex(nodes=[], llm=on.llm, memory="x"), "memory='x' is str"),
    "a folder as store": (
        lambda on: MPlusIndex(nodes=[], llm=on.llm, store="x", memory_key="a"),
        r"store='x' is str: expected mplus.MemoryStore\(folder\)",
    ),
    "a text as chat memory": (lambda on: MPlusMemory.from_defaults(llm=on.llm, memory="x"), "memory='x' is str"),
    "forget=": (lambda on: on.memory.reset(forget="no"), "forget='no': expected True or False"),
    "a text as a message": (lambda on: on.memory.put("Hello."), "messages has 'Hello.'"),
    "a text as a history": (lambda on: on.memory.set("Hello."), "messages='Hello.' is str"),
}


def filtered(operator: str, value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key="kind", operator=FilterOperator(operator), value=value)])


@pytest.fixture(scope="module")
def lasting() -> Built:
    return Built()


@pytest.mark.parametrize("case", WRONG)
def test_a_value_of_another_type_is_named_and_nothing_is_changed(lasting: Built, case: str) -> None:
    def state() -> list[str]:
        on = lasting
        return [one.read(MODEL).fingerprint for one in (on.index.latents, on.llm.latents(), on.chat.latents())]

    before = state()
    way, says = WRONG[case]
    with pytest.raises(ValueError, match=says):
        way(lasting)
    assert state() == before and lasting.items.get(("a",), "k") is None


def test_what_comes_twice_with_the_same_content_is_taken_once(built: Built) -> None:
    assert built.store.add_texts(["More.", "More."], ids=["m", "m"]) == ["m"]
    built.index.insert_nodes([NODE, NODE])
    assert [s.texts for s in built.index.latents.read(MODEL).sources()][-1] == ("Plums are blue.",)


def test_the_async_makers_of_a_store_take_what_the_others_take(built: Built) -> None:
    for made in (
        asyncio.run(MPlusVectorStore.afrom_texts(["A text."], chat=MPlusChat(model=MODEL))),
        asyncio.run(MPlusVectorStore.afrom_documents([LangChainDocument("A text.")], chat=MPlusChat(model=MODEL))),
    ):
        assert [d.page_content for d in made.similarity_search("text")] == ["A text."]
    for maker in (MPlusVectorStore.afrom_texts, MPlusVectorStore.afrom_documents):
        with pytest.raises(UnknownNameError, match="does not take 'foo'"):
            asyncio.run(maker([], chat=built.chat, foo=1))


# --- copies, prompts ----------------------------------------------------------------------------------

COPIED: dict[str, Callable[[Built], Any]] = {
    "chat": lambda on: on.chat,
    "llm": lambda on: on.llm,
    "retriever": lambda on: on.retriever,
    "memory": lambda on: on.memory,
    "writer": lambda on: on.writer,
}


@pytest.mark.parametrize("kind", COPIED)
def test_a_copy_has_no_fields_that_do_not_exist(lasting: Built, kind: str) -> None:
    made = COPIED[kind](lasting)
    with pytest.raises(UnknownNameError, match=f"{type(made).__name__} does not take 'max_new_tokens'"):
        made.model_copy(update={"max_new_tokens": 3})
    assert made.model_copy(update={"memory_key": "anna"}).memory_key == "anna"


def test_settings_of_a_call_are_no_values_of_a_prompt(lasting: Built) -> None:
    llm, prompt = lasting.llm, PromptTemplate("Hello {model}?")
    for way in (
        lambda: llm.predict(prompt, max_tokens=2),
        lambda: list(llm.stream(prompt, max_tokens=2)),
        lambda: asyncio.run(llm.apredict(prompt, max_tokens=2)),
        lambda: llm.structured_predict(Fruit, prompt, max_tokens=200),
        lambda: list(llm.stream_structured_predict(Fruit, prompt, temperature=0.5)),
    ):
        with pytest.raises(UnknownNameError, match=r"no variable 'm|no variable 'temperature'.*llm_kwargs"):
            way()
    assert llm.predict(prompt, model="there", colour="red"), "it has this one, and LlamaIndex lets others be"


def test_a_structured_llm_takes_no_argument_that_it_would_drop(lasting: Built) -> None:
    for name, says in (
        ("max_tokens", r"Use an argument of its calls.*max_tokens="),
        ("system_prompt", "does not take"),
    ):
        with pytest.raises(UnknownNameError, match=says):
            lasting.llm.as_structured_llm(Fruit, **{name: 5})
    with pytest.raises(UnknownNameError, match="'foo'"):
        lasting.llm.as_structured_llm(Fruit).chat([ChatMessage("Hello?")], foo=1)


def test_a_retriever_has_no_prompts_to_update(lasting: Built) -> None:
    with pytest.raises(UnknownNameError, match="a retriever, which has no prompt"):
        lasting.index.as_retriever().update_prompts({"text_qa_template": PromptTemplate("x")})


def test_a_tokenizer_of_the_users_own_counts(lasting: Built) -> None:
    chat = lasting.chat.model_copy(update={"custom_get_token_ids": lambda text: [len(text)]})
    assert chat.get_token_ids("four") == [4] and chat.get_num_tokens("four") == 1
