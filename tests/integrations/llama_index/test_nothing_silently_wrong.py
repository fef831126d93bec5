"""What was silently wrong: one test for each sentence of what users found."""

import asyncio
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_index.core import Document, Settings, StorageContext, load_index_from_storage
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.tools import FunctionTool
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery
from pydantic import BaseModel, RootModel

import mplus_integrations
from mplus import Constraint, MemoryStore
from mplus.generation.constrain import ConstrainedDecoding
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusWriter
from mplus_integrations.llama_index.index_storage import STRUCT_TYPE
from mplus_integrations.llama_index.messages import described
from mplus_integrations.sources import without_marks
from tests.integrations.llama_index.conftest import MODEL, Saying

DOCUMENTS = [
    "The spare key is in the blue teapot.",
    "The library opens at nine.",
    "The boiler is behind the green door.",
]
QUESTION = "Where is the spare key?"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", None)


@pytest.fixture
def index(llm: MPlusLLM) -> MPlusIndex:
    documents = [Document(text=text, id_=f"d{n}", metadata={"n": n}) for n, text in enumerate(DOCUMENTS)]
    return MPlusIndex.from_documents(documents, llm=llm)


# --- 4: users' turns and shared documents -------------------------------------------------------------


def test_turns_are_never_written_into_the_latents_of_an_index(index: MPlusIndex, llm: MPlusLLM, tmp_path: Path) -> None:
    stored = MPlusIndex(nodes=[TextNode(text="Pears.")], llm=llm, store=MemoryStore(tmp_path), memory_key="handbook")
    index.storage_context.persist(tmp_path / "saved")
    loaded = MPlusIndex.load(tmp_path / "saved", llm=llm)
    for given in (index.latents, index.latents.read(MODEL), stored.latents, loaded.latents):
        with pytest.raises(ValueError, match=r"documents of an index.*shared=index.latents"):
            MPlusMemory.from_defaults(llm=llm, memory=given)
    before = index.latents.read(MODEL).fingerprint
    beside = MPlusLLM(model=MODEL, shared=index.latents, max_tokens=4)
    memory = MPlusMemory.from_defaults(llm=beside)
    memory.put(ChatMessage(content="My code is 4711, keep it."))
    raw = beside.chat([*memory.get(), ChatMessage(content=QUESTION)]).raw
    assert {"shared"} == {entry["memory"] for entry in raw["recalled"]}, "the turn stands in the prompt"
    assert index.latents.read(MODEL).fingerprint == before


# --- 7: forms that were cut off -----------------------------------------------------------------------


class Person(BaseModel):
    """With fields that may be missing."""

    name: str = ""
    city: str = ""


class Number(RootModel[int]):
    """A number, whose first digits are a number too."""


def add(a: int, b: str) -> int:
    """Add."""
    return a


class Branch(BaseModel):
    """A recursive class."""

    name: str
    children: list["Branch"] = []


def test_truncated_structured_output_raises_and_names_the_reason(llm: MPlusLLM, say: Saying) -> None:
    cut = llm.model_copy(update={"max_tokens": 12})
    text = '{"name": "Anna", "city": "Graz"}'
    ways: list[Any] = [
        lambda: cut.structured_predict(Person, PromptTemplate("x")),
        lambda: list(cut.stream_structured_predict(Person, PromptTemplate("x"))),
        lambda: asyncio.run(cut.astructured_predict(Person, PromptTemplate("x"))),
        lambda: cut.as_structured_llm(Person).complete("x"),
        lambda: cut.chat([ChatMessage(content="x")], response_format=_form(Person)),
        lambda: list(cut.stream_chat([ChatMessage(content="x")], response_format=_form(Person))),
    ]
    for way in ways:
        say(text[:20])
        with pytest.raises(ValueError, match="is not whole JSON.*max_tokens"):
            way()
    say(text)
    assert llm.structured_predict(Person, PromptTemplate("x")) == Person(name="Anna", city="Graz")
    with pytest.raises(ValueError, match="'length'"):
        llm.structured_predict(Number, PromptTemplate("x"), {"max_tokens": 1})
    with pytest.raises(ValueError, match="is not whole JSON"):
        llm.structured_predict(Branch, PromptTemplate("x"), {"stop": ['"']})


def _form(kind: type[BaseModel]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": kind.model_json_schema()}}


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether an answer of that form may begin with a text."""
    ids = MODEL.tokenizer(text, add_special_tokens=False)["input_ids"]
    form = ConstrainedDecoding(constraint, MODEL.tokenizer, frozenset({MODEL.tokenizer.eos_token_id}))
    return all(
        form(ids[:place], torch.zeros(len(MODEL.tokenizer)))[token] > float("-inf") for place, token in enumerate(ids)
    )


def test_recursive_schemas_are_enforced_in_tools_and_objects() -> None:
    tool = FunctionTool.from_defaults(fn=lambda **_: 0, name="plant", description="Plant.", fn_schema=Branch)
    parameters = described(tool)["function"]["parameters"]
    assert set(parameters["properties"]) == {"name", "children"} and "Branch" in parameters["$defs"]
    call = Constraint.tool_calls([described(tool)], "required")
    begin = '<tool_call>\n{"name": "plant", "arguments": '
    for constraint, lead in ((call, begin), (Constraint.json_schema(Branch.model_json_schema()), "")):
        assert accepts(constraint, lead + '{"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}]}')
        assert not accepts(constraint, lead + '{"name": "a", "children": [{"name": "b", "children": [{"nom": "c"}]}]}')
        assert not accepts(constraint, lead + "{}")


def test_a_forced_tool_with_few_tokens_raises(llm: MPlusLLM) -> None:
    tools = [FunctionTool.from_defaults(add)]
    for few in (3, 20):
        ways: list[Any] = [
            lambda few=few: llm.chat_with_tools(tools, "x", tool_required=True, max_tokens=few),
            lambda few=few: list(llm.stream_chat_with_tools(tools, "x", tool_required=True, max_tokens=few)),
            lambda few=few: asyncio.run(llm.achat_with_tools(tools, "x", tool_choice="add", max_tokens=few)),
        ]
        for way in ways:
            with pytest.raises(ValueError, match=r"'length'.*max_tokens"):
                way()


def test_of_several_calls_that_were_asked_for_a_cut_one_raises(llm: MPlusLLM, say: Saying) -> None:
    call = '<tool_call>\n{"name": "Person", "arguments": {"name": "Anna", "city": "Graz"}}\n</tool_call>\n'
    several = FunctionCallingProgram.from_defaults(Person, "x", llm=llm, allow_parallel_tool_calls=True)
    say(call + call[:60])
    with pytest.raises(ValueError, match=r"is not valid.*max_tokens"):
        several()
    say(call + call[:60])
    assert FunctionCallingProgram.from_defaults(Person, "x", llm=llm)() == Person(name="Anna", city="Graz")
    say(call + call)
    assert several() == [Person(name="Anna", city="Graz")] * 2


def test_a_form_beside_tools_is_of_answers_that_call_none(llm: MPlusLLM, say: Saying) -> None:
    tools = [described(FunctionTool.from_defaults(add))]
    form = Constraint.tool_calls_or_json(tools, Person.model_json_schema())
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "x"}}\n</tool_call>'
    marked = '{"name": "Anna", "city": "<tool_call>"}'
    assert accepts(form, call) and accepts(form, f"{call}\n{call}") and accepts(form, marked)
    assert not accepts(form, "Sure") and not accepts(form, '{"nom": "Anna"}') and not accepts(form, call[:20] + "sub")
    say(call, marked)
    asked: dict[str, Any] = {"tools": tools, "response_format": _form(Person)}
    called = llm.chat([ChatMessage(content="x")], **asked)
    assert [c.tool_kwargs for c in llm.get_tool_calls_from_response(called)] == [{"a": 1, "b": "x"}]
    assert list(llm.stream_chat([ChatMessage(content="x")], **asked))[-1].message.content == marked
    with pytest.raises(ValueError, match="'length'"):
        llm.chat([ChatMessage(content="x")], max_tokens=5, **asked)


# --- 8: settings that were dropped --------------------------------------------------------------------


def test_a_foreign_settings_llm_is_refused_and_ours_is_used(monkeypatch: pytest.MonkeyPatch, llm: MPlusLLM) -> None:
    monkeypatch.setattr(Settings, "_llm", MockLLM())
    for make in (lambda: MPlusIndex(nodes=[]), MPlusMemory.from_defaults, MPlusWriter):
        with pytest.raises(ValueError, match=r"Settings.llm=MockLLM.*llm=MPlusLLM"):
            make()
    monkeypatch.setattr(Settings, "_llm", llm)
    assert MPlusIndex(nodes=[]).llm is llm and MPlusWriter().llm is llm
    assert MPlusMemory.from_defaults().loaded is MODEL


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("model_name", "x", "Use model"),
        ("max_new_tokens", 3, "Use max_tokens"),
        ("context_window", 100, "does not take"),
        ("query_wrapper_prompt", PromptTemplate("{query_str}"), "chat template"),
        ("messages_to_prompt", str, "chat template"),
        ("completion_to_prompt", str, "chat template"),
        ("pydantic_program_mode", "function", "constrained decoding"),
    ],
)
def test_constructor_arguments_of_other_llms_are_answered(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MPlusLLM(model=MODEL, **{name: value})


def test_a_system_prompt_begins_every_conversation_once(llm: MPlusLLM, index: MPlusIndex, asked: list[Any]) -> None:
    told = llm.model_copy(update={"system_prompt": "Be brief."})
    told.chat([ChatMessage(content="x")])
    told.complete("x")
    told.predict(PromptTemplate("x"))
    list(told.stream_chat([ChatMessage(content="x")]))
    index.as_query_engine(llm=told).query("x")
    index.as_chat_engine(llm=told).chat("x")
    assert asked == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]] * 6


def test_settings_of_engines_are_honoured_or_a_clear_error(index: MPlusIndex) -> None:
    for refused in ("response_mode", "text_qa_template", "refine_template", "context_prompt"):
        with pytest.raises(ValueError, match=f"{refused}= says how text is put into prompts"):
            index.as_query_engine(**{refused: "compact"})
    for refused in ("context_prompt", "context_refine_prompt", "response_mode", "prefix_messages"):
        with pytest.raises(ValueError, match=f"{refused}= says how text is put into prompts"):
            index.as_chat_engine(**{refused: "x"})
    with pytest.raises(ValueError, match="aquery"):
        index.as_query_engine(use_async=True)
    with pytest.raises(ValueError, match="'verbose'"):
        index.as_query_engine(verbose=True)
    engine = index.as_query_engine(verbose=False, use_async=False, refine_template=None, response_mode=None)
    for name in ("response_synthesizer:text_qa_template", "text_qa_template"):
        with pytest.raises(ValueError, match="update_prompts"):
            engine.update_prompts({name: PromptTemplate("x")})
    hybrid = index.as_query_engine(recall="hybrid")
    hybrid.update_prompts({"response_synthesizer:text_qa_template": PromptTemplate("{query_str}!")})
    with pytest.raises(ValueError, match="similarity_cutoff.*SimilarityPostprocessor"):
        index.as_retriever(similarity_cutoff=0.5)


def test_a_chat_mode_refuses_what_it_does_not_use(index: MPlusIndex, asked: list[Any]) -> None:
    for mode, name in (
        (ChatMode.SIMPLE, "similarity_top_k"),
        (ChatMode.SIMPLE, "verbose"),
        (ChatMode.CONTEXT, "condense_prompt"),
        (ChatMode.CONDENSE_PLUS_CONTEXT, "condense_question_prompt"),
        (ChatMode.CONDENSE_QUESTION, "condense_prompt"),
    ):
        with pytest.raises(ValueError, match=f"with {mode.name} does not take '{name}'"):
            index.as_chat_engine(chat_mode=mode, **{name: 1})
    cut = [SimilarityPostprocessor(similarity_cutoff=1.1)]
    engine = index.as_chat_engine(ChatMode.CONDENSE_QUESTION, system_prompt="Be brief.", node_postprocessors=cut)
    assert engine.chat("x").response == "Empty Response" and not asked
    engine = index.as_chat_engine(ChatMode.CONDENSE_QUESTION, system_prompt="Be brief.")
    engine.chat("x")
    assert asked == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]]


CYCLE: dict[str, Any] = {}
CYCLE["self"] = CYCLE


@pytest.mark.parametrize(
    "value",
    [
        date(2026, 1, 2),
        datetime(2026, 1, 2, tzinfo=UTC),
        (1, 2),
        {1, 2},
        b"x",
        Path("a"),
        {1: "x"},
        float("nan"),
        CYCLE,
    ],
)
def test_metadata_that_would_not_survive_a_restart_is_refused_when_it_is_given(llm: MPlusLLM, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Metadata 'when' of d0 is {type(value).__name__}"):
        MPlusIndex(nodes=[TextNode(text="A note.", id_="d0", metadata={"when": value})], llm=llm)
    kept = {"when": "2026-01-02", "n": 1, "x": 0.5, "yes": True, "none": None, "list": [1, "a"], "in": {"a": [2]}}
    index = MPlusIndex(nodes=[TextNode(text="A note.", id_="d0", metadata=kept)], llm=llm)
    assert index.as_retriever().retrieve("note")[0].node.metadata == kept


# --- 9: nothing found, and scores ---------------------------------------------------------------------


@pytest.mark.parametrize("why", ["cutoff", "filter", "empty index"])
def test_an_engine_that_found_no_node_says_so(index: MPlusIndex, llm: MPlusLLM, asked: list[Any], why: str) -> None:
    options: dict[str, Any] = {
        "cutoff": {"node_postprocessors": [SimilarityPostprocessor(similarity_cutoff=1.1)]},
        "filter": {"filters": MetadataFilters(filters=[MetadataFilter(key="n", value=77)])},
        "empty index": {},
    }[why]
    on = MPlusIndex(nodes=[], llm=llm) if why == "empty index" else index
    assert str(on.as_query_engine(**options).query(QUESTION)) == "Empty Response"
    assert str(asyncio.run(on.as_query_engine(**options).aquery(QUESTION))) == "Empty Response"
    stream = on.as_query_engine(streaming=True, **options).query(QUESTION)
    assert "".join(stream.response_gen) == "Empty Response"  # pyright: ignore[reportAttributeAccessIssue]
    chat = on.as_chat_engine(**options)
    assert chat.chat(QUESTION).response == "Empty Response" and not asked
    memory = MPlusMemory.from_defaults(llm=llm)
    memory.put(ChatMessage(content="My name is Anna."))
    assert on.as_chat_engine(memory=memory, **options).chat("What is my name?").source_nodes == []
    assert len(asked) == 1, "a conversation is something to answer from"


def test_scores_are_between_0_and_1_and_do_not_need_other_documents(index: MPlusIndex, llm: MPlusLLM) -> None:
    scores = [found.score or 0.0 for found in index.as_retriever(similarity_top_k=3).retrieve(DOCUMENTS[0])]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    alone = MPlusIndex.from_documents([Document(text=DOCUMENTS[0])], llm=llm).as_retriever()
    assert (alone.retrieve(DOCUMENTS[0])[0].score or 0) > 0.7 > (alone.retrieve("Zxqv zxqv?")[0].score or 0)


# --- 12 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [DocstoreStrategy.UPSERTS, DocstoreStrategy.UPSERTS_AND_DELETE])
def test_a_pipeline_that_deletes_forgets_what_it_removed(llm: MPlusLLM, strategy: DocstoreStrategy) -> None:
    writer = MPlusWriter(llm=llm, memory=MODEL.new_memory())
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(), writer],
        vector_store=writer.vector_store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=strategy,
    )
    documents = [Document(text=text, id_=f"d{n}") for n, text in enumerate(DOCUMENTS)]
    pipeline.run(documents=documents)
    pipeline.run(documents=[Document(text="The key was moved to the vase.", id_="d0"), documents[1]])
    texts = [text for source in writer.latents.read(MODEL).sources() for text in source.texts]
    kept = ["The key was moved to the vase.", DOCUMENTS[1]]
    assert sorted(texts) == sorted(kept if strategy == DocstoreStrategy.UPSERTS_AND_DELETE else [*kept, DOCUMENTS[2]])


def test_a_pipeline_that_deletes_forgets_documents_that_no_parser_has_cut(llm: MPlusLLM) -> None:
    writer = MPlusWriter(llm=llm, memory=MODEL.new_memory())
    pipeline = IngestionPipeline(
        transformations=[writer],
        vector_store=writer.vector_store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    pipeline.run(documents=[Document(text=text, id_=f"d{n}") for n, text in enumerate(DOCUMENTS)])
    pipeline.run(documents=[Document(text=DOCUMENTS[1], id_="d1")])
    assert [source.name for source in writer.latents.read(MODEL).sources()] == ["d1"]


def test_the_store_of_a_writer_finds_what_was_written(llm: MPlusLLM) -> None:
    writer = MPlusWriter(llm=llm, memory=MODEL.new_memory())
    writer([TextNode(text=text, id_=f"n{n}", metadata={"n": n}) for n, text in enumerate(DOCUMENTS)])
    found = writer.vector_store.query(VectorStoreQuery(query_str=DOCUMENTS[1], similarity_top_k=2))
    assert found.ids is not None and found.ids[0] == "n1" and len(found.ids) == 2
    assert found.nodes is not None and found.nodes[0].get_content() == DOCUMENTS[1]
    only = MetadataFilters(filters=[MetadataFilter(key="n", value=2)])
    assert writer.vector_store.query(VectorStoreQuery(query_str=DOCUMENTS[1], filters=only)).ids == ["n2"]
    with pytest.raises(ValueError, match="query_str=None"):
        writer.vector_store.query(VectorStoreQuery(query_embedding=[0.0]))


def test_metadata_is_kept_and_not_written_into_the_text(index: MPlusIndex, llm: MPlusLLM) -> None:
    sources = index.latents.read(MODEL).sources()
    assert [source.texts for source in sources] == [(text,) for text in DOCUMENTS]
    assert [source.metadata["n"] for source in sources] == [0, 1, 2]
    llm.memorize(Document(text="A note.", metadata={"A": "x"}))
    assert llm.latents().read(MODEL).sources()[-1].texts == ("A note.",)


def test_a_node_of_the_same_id_and_text_with_other_metadata_replaces_it(llm: MPlusLLM) -> None:
    index = MPlusIndex(nodes=[TextNode(text="A note.", id_="n", metadata={"trust": "high"})], llm=llm)
    before = index.latents.read(MODEL).fingerprint
    index.insert_nodes([TextNode(text="A note.", id_="n", metadata={"trust": "high"})])
    assert index.latents.read(MODEL).fingerprint == before
    index.insert_nodes([TextNode(text="A note.", id_="n", metadata={"trust": "none"})])
    for trust, found in (("high", []), ("none", ["n"])):
        filters = MetadataFilters(filters=[MetadataFilter(key="trust", value=trust)])
        assert [one.node_id for one in index.as_retriever(filters=filters).retrieve("note")] == found
    writer = MPlusWriter(llm=llm, memory=MODEL.new_memory())
    for about in ({"trust": "high"}, {"trust": "none"}, {}):
        writer([TextNode(text="A note.", id_="n", metadata=about)])
    (source,) = writer.latents.read(MODEL).sources()
    assert without_marks(source.metadata) == {}


def test_a_note_and_a_node_of_one_name_do_not_meet(llm: MPlusLLM) -> None:
    llm = llm.model_copy(update={"own": type(llm.own)()})
    llm.memorize("A note of mine.", source="d0")
    before = llm.latents().read(MODEL).fingerprint
    node = TextNode(text=DOCUMENTS[0], id_="d0")
    with pytest.raises(ValueError, match="'d0' names"):
        MPlusIndex(nodes=[node], llm=llm, memory=llm.latents())
    with pytest.raises(ValueError, match="'d0' names"):
        MPlusWriter(llm=llm)([node])
    assert llm.latents().read(MODEL).fingerprint == before
    MPlusWriter(llm=llm)([TextNode(text=DOCUMENTS[1], id_="d1")])
    with pytest.raises(ValueError, match="'d1' names a node"):
        llm.memorize("Another note.", source="d1")


# --- 13 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [" \n", "\f", "\ufeff", "\u200b \xad", "\x00"])
def test_a_blank_page_is_left_out_and_named(llm: MPlusLLM, caplog: pytest.LogCaptureFixture, blank: str) -> None:
    pages = [
        Document(text=text, id_=f"p{n}", metadata={"page_label": n}) for n, text in enumerate(["One.", blank, "Three."])
    ]
    index = MPlusIndex.from_documents(pages, llm=llm)
    assert set(index.ref_doc_info) == {"p0", "p2"} and "p1 page_label=1" in caplog.text
    with pytest.raises(ValueError, match="none of them with text .*p1 page_label=1"):
        MPlusIndex(nodes=pages[1:2], llm=llm)


def test_a_saved_index_says_what_to_import(index: MPlusIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.storage_context.persist(tmp_path)
    with monkeypatch.context() as without:  # as where the package was not imported
        without.delitem(INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS, STRUCT_TYPE)
        with pytest.raises(KeyError, match="import mplus_integrations.llama_index before"):
            load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)))
    saved = json.loads((tmp_path / "index_store.json").read_text())
    text = json.dumps(saved).replace(MPlusIndex.index_struct_cls.get_type(), "mplus")
    (tmp_path / "index_store.json").write_text(text)
    assert len(MPlusIndex.load(tmp_path, llm=index.llm).ref_doc_info) == 3, "one of an earlier version"


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (MPlusIndex, "persist_directory", r"MemoryStore\(folder\)"),
        (MPlusIndex, "collection_name", "memory_key="),
        (MPlusIndex, "vector_store", r"MemoryStore\(folder\)"),
        (MPlusMemory.from_defaults, "session_id", "memory_key"),
        (MPlusMemory.from_defaults, "chat_store", r"MemoryStore\(folder\)"),
        (MPlusMemory.from_defaults, "memory_blocks", "reads all turns as latents"),
    ],
)
def test_names_of_other_libraries_are_answered_with_what_to_write(make: Any, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"does not take '{name}'. Use .*{says}"):
        make(**{name: "x"})


def test_the_writer_is_at_the_top() -> None:
    assert mplus_integrations.MPlusWriter is MPlusWriter


def test_a_call_without_memory_reads_and_writes_none(llm: MPlusLLM) -> None:
    llm = llm.model_copy(update={"own": type(llm.own)()})
    llm.memorize(DOCUMENTS[0])
    before = llm.latents().read(MODEL).fingerprint
    blank = llm.without_memory()
    history = [ChatMessage(content="Hi."), ChatMessage(role="assistant", content="Hello."), ChatMessage(content="x?")]
    response = blank.chat(history)
    assert response.raw["prefix_tokens"] == 0 and llm.latents().read(MODEL).fingerprint == before
    assert response.raw["usage"]["prompt_tokens"] == MODEL.count_tokens(
        [{"role": m.role.value, "content": m.content} for m in history]
    ), "all turns stand in the prompt"
    with pytest.raises(ValueError, match="without_memory"):
        blank.chat(history, memory_key="anna")
    assert llm.chat(history[-1:]).raw["prefix_tokens"] > 0


@pytest.mark.parametrize("key", ["telegram:12345", "auth0|x", "3f1c0c9e-0f6b-4b8f-9f6b-0c9e0f6b4b8f", 5, "a/b", "con"])
def test_names_that_others_chose_are_never_refused(tmp_path: Path, key: Any) -> None:
    store = MemoryStore(tmp_path / "memories")
    llm = MPlusLLM(model=MODEL, store=store, memory_key=key, max_tokens=4)
    llm.memorize("A note.")
    assert MPlusLLM(model=MODEL, store=store).chat([ChatMessage(content="x")], memory_key=key).raw["recalled"]
    memory = MPlusMemory.from_defaults(llm=llm)
    memory.put(ChatMessage(content="I live in Graz."))
    again = MPlusMemory.from_json(memory.to_json())
    assert len(again.latents.read(MODEL).sources()) == 2
    index = MPlusIndex(nodes=[TextNode(text="Pears.")], llm=llm, store=store, memory_key=f"{key}-index")
    index.storage_context.persist(tmp_path / "saved")
    assert MPlusIndex.load(tmp_path / "saved", llm=llm).as_retriever().retrieve("Pears")


@pytest.mark.parametrize("source", [5, "5"])
def test_a_source_may_be_a_number(llm: MPlusLLM, source: Any) -> None:
    llm = llm.model_copy(update={"own": type(llm.own)()})
    llm.memorize("A note.", source=source)
    assert [s.name for s in llm.latents().read(MODEL).sources()] == ["5"]


def test_values_that_mean_the_default_are_the_default(llm: MPlusLLM) -> None:
    asked = [ChatMessage(content="x")]
    plain = llm.chat(asked).message.content
    assert llm.chat(asked, temperature=None, max_tokens=None).message.content == plain
    for way in (lambda: llm.chat(asked, max_tokens=0), lambda: MPlusLLM(model=MODEL, max_tokens=0)):
        with pytest.raises(ValueError, match="max_tokens=0"):
            way()


def test_lone_surrogates_and_metadata_without_an_end_are_right_or_a_clear_error(llm: MPlusLLM) -> None:
    llm = llm.model_copy(update={"own": type(llm.own)()})
    assert llm.chat([ChatMessage(content="a \ud800 b")]).message is not None
    index = MPlusIndex(nodes=[TextNode(text="A lone \ud800 half.", id_="n")], llm=llm)
    assert index.as_retriever().retrieve("half \udc00")[0].node_id == "n"
    with pytest.raises(ValueError, match="metadata"):
        llm.memorize("A note.", metadata=CYCLE)


def test_what_is_pasted_into_a_prompt_is_not_read_a_second_time(index: MPlusIndex) -> None:
    llm = index.llm.reading(index.latents)
    read = llm.chat([ChatMessage(content=f"{DOCUMENTS[0]}\n\n{QUESTION}")]).raw["recalled"]
    texts = [index.docstore.get_node(entry["source"]).get_content() for entry in read]
    assert sorted(texts) == sorted(DOCUMENTS[1:])


# --- 14 -----------------------------------------------------------------------------------------------


def test_many_nodes_are_written_in_one_go(llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = MODEL.write

    def write(memory: Any, text: Any, **options: Any) -> Any:
        calls.append(len(text))
        return real(memory, text, **options)

    monkeypatch.setattr(MODEL, "write", write)
    documents = [Document(text=f"Box {n} is in the hall.", id_=f"d{n}") for n in range(42)]
    index = MPlusIndex.from_documents(documents, llm=llm)
    MPlusWriter(llm=llm, memory=MODEL.new_memory())([TextNode(text=f"Text {n}.") for n in range(9)])
    changed = [Document(text=f"Box {n} was sold.", id_=f"d{n}") for n in range(5)]
    index.insert_nodes([TextNode(text=d.text, id_=f"new-{d.id_}") for d in changed])
    assert calls == [42, 9, 5]


class LongForm(BaseModel):
    """A form that four tokens do not hold."""

    name: str
    note: str


@pytest.mark.parametrize("recall", ["latent", "hybrid", "text"])
@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize"])
def test_a_cut_form_of_an_engine_raises_and_is_no_empty_response(recall: Any, mode: str, llm: MPlusLLM) -> None:
    index = MPlusIndex.from_documents([Document(text="The library opens at nine.")], llm=llm)
    index.llm.max_tokens = 4
    modes = {} if recall == "latent" else {"response_mode": mode}
    engine = index.as_query_engine(recall=recall, output_cls=LongForm, **modes)
    with pytest.raises(ValueError, match="'length'"):
        engine.query("When?")
    with pytest.raises(ValueError, match="'length'"):
        asyncio.run(engine.aquery("When?"))


@pytest.mark.parametrize("recall", ["hybrid", "text"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_error_of_a_prompt_is_no_empty_response(
    recall: Any, streaming: bool, llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = MPlusIndex.from_documents([Document(text="The library opens at nine.")], llm=llm)
    engine = index.as_query_engine(recall=recall, streaming=streaming)
    monkeypatch.setattr(MODEL, "stream", lambda *_, **__: (_ for _ in ()).throw(ValueError("no room")))

    def asked() -> str:
        found = engine.query("When?")
        return "".join(found.response_gen) if streaming else str(found)

    with pytest.raises(ValueError, match="no room"):
        asked()


def test_a_vector_store_that_nothing_would_be_put_into_is_refused(llm: MPlusLLM) -> None:
    context = StorageContext.from_defaults(vector_store=MPlusWriter(llm=llm).vector_store)
    with pytest.raises(ValueError, match=r"vector_store=WrittenNodes.*MemoryStore"):
        MPlusIndex.from_documents([Document(text="A.")], llm=llm, storage_context=context)
    MPlusIndex.from_documents([Document(text="A.")], llm=llm, storage_context=StorageContext.from_defaults())
