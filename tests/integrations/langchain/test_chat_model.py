import asyncio
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_tests.unit_tests import ChatModelUnitTests

import mplus
from mplus_integrations import MPlusChat
from tests.integrations.langchain.conftest import nothing_is_deleted


class TestStandard(ChatModelUnitTests):
    """LangChain's own suite; nothing is deleted, tool calling is declared as not offered yet."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return MPlusChat

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "smol-135m"}


def test_acceptance_1_nothing_of_the_unit_suite_is_deleted_and_what_may_fail_says_why() -> None:
    nothing_is_deleted(TestStandard)


def test_the_answer_names_what_it_recalled(chat: MPlusChat) -> None:
    for n in range(8):
        chat.memorize(f"Note {n}: box {n} holds {'pears' if n % 2 else 'plums'}, as always.", source=f"note-{n}")
    answer = chat.invoke("What does box 1 hold?")
    metadata = answer.response_metadata
    assert metadata["model_name"] == "tiny-llama" and metadata["finish_reason"] in ("stop", "length")
    assert sum(r["share"] for r in metadata["recalled"]) == pytest.approx(1)
    assert {r["source"] for r in metadata["recalled"]} <= {f"note-{n}" for n in range(8)}
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0


def test_the_answer_says_whether_it_used_memory(chat: MPlusChat) -> None:
    assert chat.invoke("What does box 1 hold?").response_metadata["used_memory"] is False, "there is none"
    chat.memorize("Box 1 holds plums.")
    assert chat.invoke("What does box 1 hold?").response_metadata["used_memory"] is True
    assert chat.invoke("What does box 1 hold?", gate="never").response_metadata["used_memory"] is False


def test_an_answer_has_a_confidence_and_may_abstain(chat: MPlusChat) -> None:
    question = "What does box 1 hold?"
    sure = chat.invoke(question).response_metadata
    assert 0 < sure["confidence"] < 1 and not sure["is_calibrated"] and not sure["abstained"]
    shy = MPlusChat(model=chat.loaded, max_tokens=12, abstain_below=1.0, abstain_reply="No idea.")
    answer = shy.invoke(question)
    assert answer.content == "No idea." and answer.response_metadata["abstained"]
    assert "".join(str(chunk.content) for chunk in shy.stream(question)) == "No idea."
    assert chat.invoke(question, abstain_below=1.0).content == "I don't know."
    form = {"title": "a", "type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}
    assert set(shy.with_structured_output(form, max_tokens=60).invoke("hi")) == {"b"}, "a form has no such reply"


def test_documents_and_messages_can_be_memorized(chat: MPlusChat) -> None:
    documents = [Document("A page about pears and plums.", metadata={"source": "fruit.md", "page": 2})]
    messages = [HumanMessage("I live in Graz, in an old house.", id="m1"), AIMessage("How nice to hear that!", id="m2")]
    assert chat.memorize(documents) > 0
    assert asyncio.run(chat.amemorize(messages)) > 0
    with chat.opened() as memory:
        pass
    assert [s.name for s in memory.sources()] == ["fruit.md", "m1", "m2"]
    assert memory.sources()[0].metadata == {"source": "fruit.md", "page": 2}
    assert chat.forget("fruit.md") == 29
    assert [s.name for s in memory.sources()] == ["m1", "m2"]


def test_a_failed_memorize_writes_nothing(chat: MPlusChat) -> None:
    with pytest.raises(ValueError, match="nothing to write"):
        chat.memorize(["This is fine and long enough.", ""])
    with chat.opened() as memory:
        assert memory.sources() == []


def test_users_have_memories_of_their_own(tmp_path, chat: MPlusChat) -> None:
    shared = MPlusChat(model=chat.loaded, store=mplus.MemoryStore(tmp_path), max_tokens=8)
    shared.memorize("Alice keeps the key under the pot.", memory_key="alice", source="a")
    bob = shared.invoke("Where is the key?", memory_key="bob")
    fresh = MPlusChat(model=chat.loaded, max_tokens=8).invoke("Where is the key?")
    assert bob.content == fresh.content and bob.response_metadata["prefix_tokens"] == 0
    assert shared.invoke("Where is the key?", memory_key="alice").response_metadata["prefix_tokens"] > 0
    again = MPlusChat(model=chat.loaded, store=mplus.MemoryStore(tmp_path), memory_key="alice", max_tokens=8)
    assert again.invoke("Where is the key?").response_metadata["prefix_tokens"] > 0


def test_names_without_a_store_live_as_long_as_the_chat(chat: MPlusChat) -> None:
    chat.memorize("Alice keeps the key under the pot.", memory_key="alice")
    assert chat.invoke("Where?", memory_key="alice").response_metadata["prefix_tokens"] > 0
    assert chat.invoke("Where?", memory_key="bob").response_metadata["prefix_tokens"] == 0
    assert chat.invoke("Where?").response_metadata["prefix_tokens"] == 0


def test_one_given_memory_has_no_names(chat: MPlusChat) -> None:
    one = MPlusChat(model=chat.loaded, memory=chat.loaded.new_memory())
    with pytest.raises(ValueError, match="made with memory="):
        one.invoke("hi", memory_key="alice")
    with pytest.raises(ValueError, match="one of them"):
        MPlusChat(model=chat.loaded, memory=chat.loaded.new_memory(), memory_key="alice")


def test_text_blocks_and_system_messages_are_read(chat: MPlusChat) -> None:
    blocks = [SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "Hi "}, "there"])]
    assert chat.invoke(blocks).content == chat.invoke([("system", "Be brief."), ("user", "Hi \nthere")]).content


def test_config_names_the_memory(tmp_path: Any, chat: MPlusChat) -> None:
    chat = MPlusChat(model=chat.loaded, store=mplus.MemoryStore(tmp_path), max_tokens=4)
    chat.memorize("The key is under the pot.", memory_key="anna")
    config: Any = {"configurable": {"memory_key": "anna"}}
    assert chat.invoke("Where?", config=config).response_metadata["prefix_tokens"] > 0
    assert list(chat.stream("Where?", config=config))[-1].response_metadata["prefix_tokens"] > 0
    assert chat.invoke("Where?").response_metadata["prefix_tokens"] == 0


@pytest.mark.default_model
def test_the_default_model_remembers_through_langchain(default_model: mplus.MPlus) -> None:
    chat = MPlusChat(model=default_model, max_tokens=24)
    chat.memorize("My dog is called Biscuit and he is three years old.", source="notes")
    assert "Biscuit" in str(chat.invoke("What is my dog's name?").content)


@pytest.fixture
def asked(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """For each answer, the texts of the sources that it may read, and its prompt."""
    seen: list[tuple[Any, Any]] = []
    real = chat.loaded.stream

    def stream(memory: Any, prompt: Any, **options: Any) -> Any:
        where = options["where"] or (lambda *_: True)
        texts = [" ".join(s.texts) for s in memory.sources() if where(s.name, s.metadata)]
        seen.append((texts, [turn["content"] for turn in prompt]))
        return real(memory, prompt, **options)

    monkeypatch.setattr(chat.loaded, "stream", stream)
    return seen


HISTORY = [HumanMessage("I live in Graz."), AIMessage("How nice."), HumanMessage("And where is that?")]


def test_a_call_without_memory_reads_and_writes_none(chat: MPlusChat, asked: list[Any], tmp_path: Any) -> None:
    chat.memorize("The red box is in the attic.", source="box")
    named = chat.model_copy(update={"store": mplus.MemoryStore(tmp_path), "require_key": True})
    for one in (chat, named, chat.model_copy(update={"prompt_turns": 0})):
        one.without_memory().invoke(HISTORY)
        assert asked[-1] == ([], ["I live in Graz.", "How nice.", "And where is that?"])
        list(one.stream(HISTORY, use_memory=False))
        assert asked[-1][0] == []
    with chat.opened() as memory:
        assert [source.name for source in memory.sources()] == ["box"]
    assert named.store is not None and named.store.list() == []


def test_a_document_that_is_pasted_into_the_prompt_is_not_read_from_memory_too(
    chat: MPlusChat, asked: list[Any]
) -> None:
    box, lamp = "The red box is in the attic.", "The green lamp is in the cellar."
    chat.memorize([Document(box, id="box"), Document(lamp, id="lamp")])
    chat.invoke(f"Use this:\n\n{box}\n\nWhere is the red box?")
    assert asked[-1][0] == [lamp]
    chat.invoke("Where is the red box?")
    assert asked[-1][0] == [box, lamp]


def test_none_is_the_default_and_no_tokens_are_an_error(chat: MPlusChat) -> None:
    default = MPlusChat(model=chat.loaded, temperature=None, max_tokens=None)  # type: ignore[arg-type]
    assert (default.temperature, default.max_tokens) == (0.0, 256)
    assert chat.invoke("Hi.", max_tokens=None, temperature=None).content == chat.invoke("Hi.").content
    for make in (lambda: chat.invoke("Hi.", max_tokens=0), lambda: MPlusChat(model=chat.loaded, max_tokens=0)):
        with pytest.raises(ValueError, match="max_tokens=0"):
            make()


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("model_name", "model"),
        ("max_new_tokens", "max_tokens"),
        ("context_window", "model"),
        ("system_prompt", "a system message"),
        ("session_id", "memory_key"),
        ("collection_name", "memory_key"),
        ("persist_directory", r"(MPlusChat\()?store"),
        ("chat_store", r"(MPlusChat\()?store"),
    ],
)
def test_arguments_of_other_classes_are_answered_with_what_to_write_instead(name: str, instead: str) -> None:
    for make in (lambda: MPlusChat(**{name: "x"}), lambda: MPlusChat().invoke("Hi.", **{name: "x"})):
        with pytest.raises(ValueError, match=f"does not take '{name}'. Use {instead}"):
            make()


def test_init_chat_model_finds_it_by_name() -> None:
    from langchain.chat_models import init_chat_model

    found = init_chat_model("mplus:smol-135m", temperature=0.5)
    assert isinstance(found, MPlusChat) and (found.model, found.temperature) == ("smol-135m", 0.5)
    assert isinstance(init_chat_model("smol-135m", model_provider="mplus"), MPlusChat)


def test_a_source_may_be_a_number(chat: MPlusChat) -> None:
    chat.memorize("The red box is in the attic.", source=7)
    with chat.opened() as memory:
        assert [source.name for source in memory.sources()] == ["7"]
    assert chat.forget(7) > 0
    with pytest.raises(ValueError, match="expected text, a number or a UUID"):
        chat.memorize("The red box.", source=["x"])  # type: ignore[arg-type]
