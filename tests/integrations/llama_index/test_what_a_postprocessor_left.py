"""What a postprocessor left of a node is what the model reads: as text, without the latents of what was written."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.postprocessor import MetadataReplacementPostProcessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from pydantic import BaseModel

from mplus import Memory, MemoryStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusSynthesizer
from tests.integrations.llama_index.conftest import MODEL, Saying

SECRET, MASKED = "The alarm code of Anna is 4711.", "The alarm code of [NAME] is [CODE]."
OTHER = "The library opens at nine."
QUESTION = "What is the alarm code?"


class Masks(BaseNodePostprocessor):
    """Replaces a name and a number, as postprocessors for personal data do."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        for one in nodes:
            one.node = one.node.model_copy()
            one.node.set_content(one.node.get_content().replace("Anna", "[NAME]").replace("4711", "[CODE]"))
        return nodes


class Adds(BaseNodePostprocessor):
    """Adds a node that was never written, as a search of the web does."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        return [*nodes, NodeWithScore(node=TextNode(text="Found on the web.", id_="web"))]


class Empties(BaseNodePostprocessor):
    """Leaves no text."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text="", id_=one.node_id)) for one in nodes]


class Form(BaseModel):
    """A form."""

    code: str = ""


class Reads:
    """What answers read: the texts of sources as latents, and their prompts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.latents: list[str] = []
        self.prompts: list[str] = []
        real = MODEL.stream

        def stream(memory: Memory | list[Memory], prompt: Any, **options: Any) -> Any:
            memories = [memory] if isinstance(memory, Memory) else memory
            tests = options["where"] if isinstance(options["where"], list) else [options["where"]] * len(memories)
            for one, test in zip(memories, tests, strict=True):
                self.latents += [
                    text for s in one.sources() for text in s.texts if test is None or test(s.name, s.metadata)
                ]
            self.prompts.append(str(prompt))
            return real(memory, prompt, **options)

        monkeypatch.setattr(MODEL, "stream", stream)

    def check(self) -> None:
        """Assert that only what is left was read."""
        assert self.prompts and all("4711" not in one and "Anna" not in one for one in (*self.latents, *self.prompts))
        assert any(MASKED in one for one in self.prompts), self.prompts


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def index(llm: MPlusLLM) -> MPlusIndex:
    return MPlusIndex(nodes=[TextNode(text=SECRET, id_="n0"), TextNode(text=OTHER, id_="n1")], llm=llm)


def _engine(index: MPlusIndex, *left: BaseNodePostprocessor, **given: Any) -> Any:
    return index.as_query_engine(node_postprocessors=list(left) or [Masks()], **given)


def _tokens(answer: Any) -> str:
    return "".join(answer.response_gen)


async def _atokens(engine: Any) -> None:
    answer = await engine.aquery(QUESTION)
    assert [token async for token in answer.response_gen]


WAYS: dict[str, Callable[[MPlusIndex], Any]] = {
    "latent": lambda index: _engine(index).query(QUESTION),
    "latent, async": lambda index: asyncio.run(_engine(index).aquery(QUESTION)),
    "latent, streamed": lambda index: _tokens(_engine(index, streaming=True).query(QUESTION)),
    "latent, streamed, async": lambda index: asyncio.run(_atokens(_engine(index, streaming=True))),
    "hybrid": lambda index: _engine(index, recall="hybrid").query(QUESTION),
    "hybrid, async": lambda index: asyncio.run(_engine(index, recall="hybrid").aquery(QUESTION)),
    "hybrid, streamed": lambda index: _tokens(_engine(index, recall="hybrid", streaming=True).query(QUESTION)),
    "hybrid, refined": lambda index: _engine(index, recall="hybrid", response_mode="refine").query(QUESTION),
    "hybrid, as a tree": lambda index: _engine(index, recall="hybrid", response_mode="tree_summarize").query(QUESTION),
    "hybrid, masked outside": lambda index: (engine := index.as_query_engine(recall="hybrid")).synthesize(
        QueryBundle(QUESTION), Masks().postprocess_nodes(engine.retrieve(QueryBundle(QUESTION)))
    ),
    "text": lambda index: _engine(index, recall="text").query(QUESTION),
    "context": lambda index: index.as_chat_engine(ChatMode.CONTEXT, node_postprocessors=[Masks()]).chat(QUESTION),
    "context, streamed": lambda index: _tokens(
        index.as_chat_engine(ChatMode.CONTEXT, node_postprocessors=[Masks()]).stream_chat(QUESTION)
    ),
    "context, async": lambda index: asyncio.run(
        index.as_chat_engine(ChatMode.CONTEXT, node_postprocessors=[Masks()]).achat(QUESTION)
    ),
    "condense and context": lambda index: index.as_chat_engine(
        ChatMode.CONDENSE_PLUS_CONTEXT, node_postprocessors=[Masks()], system_prompt="Be short."
    ).chat(QUESTION),
    "condensed": lambda index: index.as_chat_engine(ChatMode.CONDENSE_QUESTION, node_postprocessors=[Masks()]).chat(
        QUESTION
    ),
    "synthesizer": lambda index: MPlusSynthesizer(index.llm, index.latents).synthesize(
        QUESTION, Masks().postprocess_nodes(index.as_retriever().retrieve(QUESTION))
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_was_masked_is_read_masked_and_never_as_it_was_written(index: MPlusIndex, reads: Reads, way: str) -> None:
    WAYS[way](index)
    reads.check()
    if "latent" in way:
        assert OTHER in reads.latents, "what was left as it was is read as latents"


def test_a_form_is_filled_from_what_was_left(index: MPlusIndex, reads: Reads, say: Saying) -> None:
    for recall in ("latent", "hybrid"):
        say('{"code": "x"}')
        _engine(index, recall=recall, output_cls=Form).query(QUESTION)
    reads.check()


def test_a_store_is_read_as_it_was_left(tmp_path: Path, llm: MPlusLLM, reads: Reads) -> None:
    index = MPlusIndex(nodes=[TextNode(text=SECRET, id_="n0")], llm=llm, store=MemoryStore(tmp_path), memory_key="x")
    for recall in ("latent", "hybrid"):
        _engine(index, recall=recall).query(QUESTION)
    reads.check()


@pytest.mark.parametrize("recall", ["latent", "hybrid"])
def test_what_is_cited_is_what_was_read(llm: MPlusLLM, reads: Reads, recall: Any) -> None:
    node = TextNode(text=OTHER, id_="n0", metadata={"window": "Doors. The library opens at nine. Bring a card."})
    index = MPlusIndex(nodes=[node], llm=llm)
    window = MetadataReplacementPostProcessor(target_metadata_key="window")
    (cited,) = _engine(index, window, recall=recall).query(QUESTION).source_nodes
    assert cited.node.get_content() == node.metadata["window"] and cited.node_id == "n0"
    assert not reads.latents and all(node.metadata["window"] in prompt for prompt in reads.prompts)
    for mode in (ChatMode.CONTEXT, ChatMode.CONDENSE_QUESTION):
        (cited,) = index.as_chat_engine(mode, node_postprocessors=[window]).chat(QUESTION).source_nodes
        assert cited.node.get_content() == node.metadata["window"]


@pytest.mark.parametrize("recall", ["latent", "hybrid"])
def test_what_a_postprocessor_adds_is_read_as_text(index: MPlusIndex, reads: Reads, recall: Any) -> None:
    cited = _engine(index, Adds(), recall=recall).query(QUESTION).source_nodes
    assert {one.node_id for one in cited} == {"n0", "n1", "web"}
    assert any("Found on the web." in prompt for prompt in reads.prompts)
    assert SECRET in (reads.latents if recall == "latent" else str(reads.prompts))


@pytest.mark.parametrize("recall", ["latent", "hybrid"])
def test_where_no_text_is_left_nothing_is_read(index: MPlusIndex, reads: Reads, recall: Any) -> None:
    _engine(index, Empties(), recall=recall).query(QUESTION)
    assert not reads.latents and all("4711" not in prompt for prompt in reads.prompts)


def test_a_node_that_another_process_has_rewritten_is_cited_as_it_is_in_memory(tmp_path: Path, llm: MPlusLLM) -> None:
    ours = MPlusIndex(nodes=[TextNode(text=OTHER, id_="n0")], llm=llm, store=MemoryStore(tmp_path), memory_key="x")
    with MemoryStore(tmp_path).open("x", MODEL) as memory:
        memory.forget("n0")
        MODEL.write(memory, "The library opens at ten.", source="n0", metadata={"mplus_node": None}, keep_text=True)
    (cited,) = ours.as_query_engine().query(QUESTION).source_nodes
    assert cited.node.get_content() == "The library opens at ten."


def test_metadata_is_not_read_beside_what_was_left(llm: MPlusLLM, reads: Reads) -> None:
    about = {"author": "Anna", "window": SECRET, "original_text": SECRET}
    index = MPlusIndex(nodes=[TextNode(text=SECRET, id_="n0", metadata=about)], llm=llm)
    _engine(index).query(QUESTION)
    index.as_chat_engine(ChatMode.CONTEXT, node_postprocessors=[Masks()]).chat(QUESTION)
    reads.check()
    assert not any("author" in one for one in reads.prompts), reads.prompts


def test_a_node_without_text_is_neither_read_nor_cited(index: MPlusIndex, reads: Reads) -> None:
    nodes = index.as_retriever().retrieve(QUESTION)
    empty = [one for one in nodes if one.node_id == "n0"]
    left = [one for one in nodes if one.node_id == "n1"] + Empties().postprocess_nodes(empty)
    (cited,) = MPlusSynthesizer(index.llm, index.latents).synthesize(QUESTION, left).source_nodes
    assert cited.node_id == "n1" and reads.latents == [OTHER]
    assert not any("What follows is known" in prompt for prompt in reads.prompts)
    assert str(_engine(index, Empties()).query(QUESTION)) == "Empty Response"


class Brings(BaseNodePostprocessor):
    """Adds a given node, as one does that brings the neighbours of what was found."""

    node: TextNode

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        return [*nodes, NodeWithScore(node=self.node)]


def _answers(index: MPlusIndex, left: BaseNodePostprocessor) -> list[list[NodeWithScore]]:
    """What engines cite that read only what is left."""
    engines = [_engine(index, left, recall=recall) for recall in ("latent", "hybrid")]
    chats = [
        index.as_chat_engine(m, node_postprocessors=[left]) for m in (ChatMode.CONTEXT, ChatMode.CONDENSE_QUESTION)
    ]
    answers = [engine.query(QUESTION) for engine in engines] + [chat.chat(QUESTION) for chat in chats]
    answers += [asyncio.run(engine.aquery(QUESTION)) for engine in engines]
    answers += [asyncio.run(chat.achat(QUESTION)) for chat in chats]
    return [answer.source_nodes for answer in answers]


def test_chat_and_query_engines_cite_no_image_that_nobody_read(index: MPlusIndex) -> None:
    image = ImageNode(image_url="https://example.com/a.png", id_="image")
    for cited in _answers(index, Brings(node=image)):
        assert {one.node_id for one in cited} <= {"n0", "n1"}, cited


def test_what_was_forgotten_does_not_come_back_as_text(index: MPlusIndex, reads: Reads) -> None:
    forgotten = TextNode(text=SECRET, id_="n0")
    with index.latents.opened(MODEL) as memory:
        memory.forget("n0")  # as another process does: the index still lists the node
    for cited in _answers(index, Brings(node=forgotten)):
        assert [one.node_id for one in cited] == ["n1"]
    assert reads.prompts and not any("4711" in one for one in (*reads.prompts, *reads.latents))


def test_without_postprocessors_a_hybrid_engine_reads_all_other_documents_too(index: MPlusIndex, reads: Reads) -> None:
    engine = index.as_query_engine(recall="hybrid", similarity_top_k=1)
    nodes = [one for one in index.as_retriever().retrieve(QUESTION) if one.node_id == "n0"]
    engine.synthesize(QueryBundle(QUESTION), Masks().postprocess_nodes(nodes))
    assert set(reads.latents) == {OTHER}
    reads.check()


class AddsMuch(BaseNodePostprocessor):
    """Adds more text than a prompt has room for, as a search of the web does."""

    def _postprocess_nodes(self, nodes: list[NodeWithScore], query_bundle: Any = None) -> list[NodeWithScore]:
        text = "Found on the web. " * 30
        return [
            *nodes,
            *(NodeWithScore(node=TextNode(text=f"Number {n} was {text.lower()}", id_=f"web-{n}")) for n in range(9)),
        ]


@pytest.mark.parametrize(
    "mode", [None, *(ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.CONDENSE_QUESTION)]
)
def test_more_text_than_there_is_room_for_is_read_and_cited_as_far_as_it_fits(
    index: MPlusIndex, reads: Reads, mode: ChatMode | None
) -> None:
    adds = [AddsMuch()]
    if mode is None:
        found = index.as_query_engine(node_postprocessors=adds).query(QUESTION).source_nodes
    else:
        found = index.as_chat_engine(mode, node_postprocessors=adds).chat(QUESTION).source_nodes
    *_, last = found
    assert last.node_id.startswith("web-") and len(found) < 9, "the last ones are not cited"
    assert last.node.get_content().endswith("web.") and last.node.get_content() in reads.prompts[-1]
    assert reads.prompts[-1].count("found on the web.") == last.node.get_content().count("found on the web.") > 0
