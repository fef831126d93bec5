"""Nodes that are left are compared with memory by id."""

import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from mplus import Memory
from mplus_integrations.llama_index.left_nodes import LeftNodes
from mplus_integrations.llama_index.text_room import TextRoom
from tests.integrations.llama_index.conftest import MODEL


def _nodes(**texts: str) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text, id_=name)) for name, text in texts.items()]


@pytest.fixture
def memory() -> Memory:
    memory = MODEL.new_memory()
    MODEL.write(memory, ["One.", "Two.", "Three."], source=["a", "b", "c"], keep_text=True)
    return memory


def test_what_is_in_memory_is_read_as_latents_and_the_rest_as_text(memory: Memory) -> None:
    left = LeftNodes.of(_nodes(a="One.", b="2.", c=" ", web="Found."), memory)
    assert [one.node_id for one in left.nodes] == ["a", "b", "web"]
    assert left.as_latents == {"a"} and left.as_text == {"b": "2.", "web": "Found."} and left.unread == {"c"}


def test_what_was_forgotten_is_left_out(memory: Memory) -> None:
    memory.forget("a")
    left = LeftNodes.of(_nodes(a="One.", b="Two.", web="Found."), memory, known={"a", "b"})
    assert [one.node_id for one in left.nodes] == ["b", "web"]
    assert left.as_latents == {"b"} and left.as_text == {"web": "Found."} and left.unread == {"a"}


def test_a_text_that_was_not_kept_is_read_as_latents() -> None:
    memory = MODEL.new_memory()
    MODEL.write(memory, "One.", source="a")
    assert LeftNodes.of(_nodes(a=""), memory).as_latents == {"a"}


def test_sources_are_not_measured_for_it(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "sources", lambda self: pytest.fail("every source was listed"))
    assert LeftNodes.of(_nodes(a="One."), memory).as_latents == {"a"}


def test_text_beyond_the_room_is_cut_at_a_sentence_and_what_is_behind_it_is_left_out(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = _nodes(a="One.", web="First found. Then lost again, for ever.", far="Far away.", b="Two.")
    left = LeftNodes.of(nodes, memory, room=TextRoom(MODEL.tokenizer, 20))
    assert [(one.node_id, one.node.get_content()) for one in left.nodes] == [
        *(("a", "One."), ("web", "First found."), ("b", "Two."))
    ]
    assert left.as_text == {"web": "First found."} and left.unread == {"far"}
    assert "far" in caplog.text and nodes[1].node.get_content().endswith("ever."), "the given node is as it was"


@pytest.mark.parametrize(("text", "kept"), [("word " * 40, "word word word"), ("x" * 99, "")])
def test_of_a_text_without_sentences_some_words_are_kept(text: str, kept: str) -> None:
    assert TextRoom(MODEL.tokenizer, 18).take(text) == kept


def test_what_fits_is_kept_as_it_is() -> None:
    room = TextRoom(MODEL.tokenizer, 40)
    assert [room.take(text) for text in ("One.\n\nTwo. ", "Three.", "A longer one. It goes on. " * 2, "Four.")] == [
        *("One.\n\nTwo. ", "Three.", "A longer one.", "")
    ]
