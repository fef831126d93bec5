"""What is memorized again under an id of its own: what it no longer says goes, wherever it was written from."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from llama_index.core import Document as LlamaIndexDocument
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode

from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware
from mplus_integrations.langchain.runs import Run
from mplus_integrations.llama_index import MPlusLLM, MPlusMemory, MPlusMemoryBlock
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY, prompt_turns=0)
UUID = "0d9f4d3c-1f0a-4f0e-9a5e-0c4b8f6f2d11"
GRAZ, LINZ = "I live in Graz.", "I live in Linz."
Ours = MPlusChat | MPlusLLM


def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=1)


def llm() -> MPlusLLM:
    return MPlusLLM(model=MODEL, max_tokens=1)


def message(text: str, name: str = UUID) -> ChatMessage:
    return ChatMessage(role="user", content=text, additional_kwargs={"id": name})


def texts(of: Ours) -> list[str]:
    with of.opened() as memory:
        return [text.removeprefix("User: ") for source in memory.sources() for text in source.texts]


def middleware_says(
    of: MPlusChat, said: str, monkeypatch: pytest.MonkeyPatch, thread: str | None = None, *, name: str = UUID
) -> None:
    """A turn of an agent that ends with this message."""
    monkeypatch.setattr("mplus_integrations.langchain.middleware.current_run", lambda: Run(thread, "", is_kept=True))
    middleware = MPlusMemoryMiddleware(MPlusChat(model=MODEL, memory=of.latents().read(MODEL), max_tokens=1))
    middleware.after_agent({"messages": [HumanMessage(said, id=name)]}, None)  # type: ignore[typeddict-item,arg-type]


ITEMS: dict[str, tuple[Callable[[], Ours], Callable[[str], Any]]] = {
    "LangChain message": (chat, lambda text: HumanMessage(text, id=UUID)),
    "LangChain document": (chat, lambda text: Document(text, id="page-1")),
    "LlamaIndex message": (llm, message),
    "LlamaIndex node": (llm, lambda text: TextNode(text=text, id_="page-1")),
    "LlamaIndex document": (llm, lambda text: LlamaIndexDocument(text=text, doc_id="page-1")),
}


@pytest.mark.parametrize("item", ITEMS)
def test_an_edited_item_takes_the_place_of_what_it_said_before(item: str) -> None:
    made, item_of = ITEMS[item]
    of = made()
    of.memorize([item_of(GRAZ), "The library opens at nine."])
    of.memorize(item_of(LINZ))
    assert texts(of) == ["The library opens at nine.", LINZ]
    of.memorize([item_of("Neither."), item_of("I live in Rome.")])
    assert texts(of) == ["The library opens at nine.", "I live in Rome."], "the last one counts"


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_that_says_the_same_is_there_once(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, item_of = ITEMS[item]
    of = made()
    assert of.memorize(item_of(GRAZ)) > 0
    with of.opened() as memory:
        before = memory.fingerprint
    assert of.memorize([item_of(GRAZ), item_of(GRAZ)]) == 0
    with of.opened() as memory:
        assert memory.fingerprint == before
    of.memorize(item_of(GRAZ), metadata={"author": "Anna"})
    with of.opened() as memory:
        (source,) = memory.sources()
    assert source.metadata["author"] == "Anna" and len(source.texts) == 1


def test_an_item_that_was_said_at_another_time_is_written_anew() -> None:
    of, day = chat(), 86400.0
    of.memorize(Document(GRAZ, id="page-1"))
    for at in (10 * day, 20 * day):
        assert of.memorize(Document(GRAZ, id="page-1"), at=at) > 0
        assert of.memorize(Document(GRAZ, id="page-1"), at=at) == 0
        with of.opened() as memory:
            assert [source.latest for source in memory.sources()] == [at]
        assert of.memorize(Document(GRAZ, id="page-1"), at=at) == of.memorize(Document(GRAZ, id="page-1")) == 0


@pytest.mark.parametrize("made", [chat, llm])
def test_texts_of_one_given_source_stand_side_by_side(made: Callable[[], Ours]) -> None:
    of = made()
    item = Document(GRAZ, id="1") if isinstance(of, MPlusChat) else TextNode(text=GRAZ, id_="1")
    of.memorize(item, source="notes")
    of.memorize(LINZ, source="notes")
    assert texts(of) == [GRAZ, LINZ]


def test_pages_of_one_file_stand_side_by_side() -> None:
    of, about = chat(), {"source": "book.pdf"}
    of.memorize([Document("Page one.", metadata=about), Document("Page two.", metadata=about)])
    of.memorize(Document("Page three.", metadata=about))
    assert texts(of) == ["Page one.", "Page two.", "Page three."]


DOCUMENTS: dict[str, tuple[Callable[[], Ours], Callable[[str, str], Any]]] = {
    "LangChain": (chat, lambda text, name: Document(text, id=name)),
    "LlamaIndex": (llm, lambda text, name: LlamaIndexDocument(text=text, doc_id=name)),
}


@pytest.mark.parametrize("framework", DOCUMENTS)
@pytest.mark.parametrize("note_first", [True, False])
def test_a_note_and_a_document_of_one_name_are_two(framework: str, note_first: bool) -> None:
    made, document = DOCUMENTS[framework]
    of = made()

    def note() -> None:
        of.memorize("A note.", source="7")

    if note_first:
        note()
    of.memorize(document("Chapter one.", "7"))
    if not note_first:
        note()
    of.memorize(document("Chapter two.", "7"))
    assert of.memorize(document("Chapter two.", "7")) == 0
    assert sorted(texts(of)) == ["A note.", "Chapter two."], "the document alone was edited"
    of.memorize("Another note.", source="7", metadata={"role": "author"})
    assert sorted(texts(of)) == ["A note.", "Another note.", "Chapter two."]
    assert of.forget("7") > 0 and texts(of) == [], "all that goes by the name"


@pytest.mark.parametrize("framework", DOCUMENTS)
def test_a_note_a_document_and_a_message_of_one_id_are_three(framework: str) -> None:
    made, document = DOCUMENTS[framework]
    of = made()
    said = (lambda text: HumanMessage(text, id=UUID)) if isinstance(of, MPlusChat) else message
    for round in ("one", "two"):
        of.memorize([f"Note {round}.", f"Line {round}."], source=UUID)
        of.memorize([document(f"Chapter {round}.", UUID), said(f"I say {round}.")])
    assert sorted(texts(of)) == ["Chapter two.", "I say two.", "Line one.", "Line two.", "Note one.", "Note two."]


@pytest.mark.parametrize("framework", DOCUMENTS)
@pytest.mark.parametrize("name", [UUID, "1"])
@pytest.mark.parametrize("together", [True, False])
def test_a_question_and_its_answer_of_one_id_are_two(framework: str, name: str, together: bool) -> None:
    of = DOCUMENTS[framework][0]()
    if isinstance(of, MPlusChat):
        pair: list[Any] = [HumanMessage("Where do I live?", id=name), AIMessage("In Graz.", id=name)]
    else:
        answer = ChatMessage(role="assistant", content="In Graz.", additional_kwargs={"id": name})
        pair = [message("Where do I live?", name), answer]
    for _ in range(2 if name == UUID else 1):
        for items in [pair] if together else [[one] for one in pair]:
            of.memorize(items)
    assert texts(of) == ["Where do I live?", "Assistant: In Graz."]
    with of.opened() as memory:
        assert [source.metadata["role"] for source in memory.sources()] == ["user", "assistant"]


@pytest.mark.parametrize("framework", DOCUMENTS)
def test_of_a_name_of_earlier_days_whose_owner_is_not_known_both_are_kept(framework: str) -> None:
    made, document = DOCUMENTS[framework]
    of = made()
    with of.opened() as memory:  # as a document was written before documents were marked
        MODEL.write(memory, "Chapter one.", source="7", metadata={}, keep_text=True)
    assert of.memorize(document("Chapter one.", "7")) == 0, "it says the same"
    of.memorize(document("Chapter two.", "7"))
    of.memorize(document("Chapter three.", "7"))
    assert texts(of) == ["Chapter one.", "Chapter three."]


def test_messages_under_a_given_name_stand_side_by_side() -> None:
    of = chat()
    of.memorize(HumanMessage(GRAZ, id=UUID), source="notes")
    of.memorize([HumanMessage(LINZ), "In winter."], source="notes")
    with of.opened() as memory:
        assert [source.name for source in memory.sources()] == ["notes"]
    assert texts(of) == [GRAZ, LINZ, "In winter."]


def test_a_history_whose_question_and_answer_share_an_id_is_written_once() -> None:
    of = chat()
    history: list[BaseMessage] = [HumanMessage(GRAZ, id=UUID), AIMessage("I see.", id=UUID), HumanMessage("And now?")]
    config: Any = {"configurable": {"thread_id": "t"}}
    of.invoke(history, config)
    with of.opened() as memory:
        before = memory.fingerprint
    of.invoke(history, config)
    with of.opened() as memory:
        assert memory.fingerprint == before
    assert texts(of) == [GRAZ, "Assistant: I see."]


def test_ids_that_are_counted_anew_in_every_conversation_prove_no_edit() -> None:
    ours = chat()
    ours.memorize(HumanMessage(GRAZ, id="msg-1"))
    ours.memorize(HumanMessage(LINZ, id="msg-1"))
    theirs = llm()
    theirs.memorize(message(GRAZ, "msg-1"))
    theirs.memorize(message(LINZ, "msg-1"))
    assert texts(ours) == texts(theirs) == [GRAZ, LINZ]


def test_a_document_is_no_version_of_a_message_that_is_counted_as_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = chat()
    for thread in ("anna", "bob"):
        history = [
            HumanMessage(f"I am {thread}.", id="1"),
            AIMessage("I see.", id="2"),
            HumanMessage("And now?", id="3"),
        ]
        ours.invoke(history, config={"configurable": {"thread_id": thread}})
    ours.memorize(Document("Chapter one.", id="1"))
    assert texts(ours) == ["I am anna.", "Assistant: I see.", "I am bob.", "Assistant: I see.", "Chapter one."]
    theirs = llm()
    MPlusMemory.from_defaults(llm=theirs, memory=theirs.latents(), conversation_id="bob").put(message(GRAZ, "1"))
    theirs.memorize(TextNode(text="Chapter one.", id_="1"))
    theirs.memorize(TextNode(text="Chapter two.", id_="1"))
    assert texts(theirs) == [GRAZ, "Chapter two."]
    agent = MPlusChat(model=MODEL, memory=MODEL.new_memory(), max_tokens=1)
    for thread in ("t", None):
        middleware_says(agent, GRAZ, monkeypatch, thread, name="1")
    agent.memorize(Document("Chapter one.", id="1"))
    assert texts(agent).count(GRAZ) == 2 and "Chapter one." in texts(agent)


def asks(of: Ours, said: str) -> None:
    """A history with this message, as a turn before the question."""
    if isinstance(of, MPlusChat):
        history: list[BaseMessage] = [HumanMessage(said, id=UUID), AIMessage("I see."), HumanMessage("And now?")]
        of.invoke(history)
    else:
        of.chat([message(said), ChatMessage(role="assistant", content="I see."), message("And now?", "q")])


@pytest.mark.parametrize("made", [chat, llm])
def test_a_turn_of_a_history_and_what_is_memorized_of_it_are_versions_of_one_message(made: Callable[[], Ours]) -> None:
    for first in ("history", "memorize"):
        of = made()
        item = HumanMessage if isinstance(of, MPlusChat) else None
        steps: list[Callable[[str], object]] = [
            lambda text, of=of: asks(of, text),
            lambda text, of=of, item=item: of.memorize(item(text, id=UUID) if item else message(text)),  # type: ignore[arg-type]
        ]
        one, other = steps if first == "history" else reversed(steps)
        one(GRAZ)
        one(GRAZ)
        other(GRAZ)
        assert texts(of).count(GRAZ) == 1
        other(LINZ)
        assert GRAZ not in texts(of), first
        other(LINZ)
        assert texts(of).count(LINZ) <= 1


@pytest.mark.parametrize("thread", [None, "t"])
def test_a_turn_of_an_agent_and_what_is_memorized_of_it_are_versions_of_one_message(
    thread: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in ("agent", "memorize"):
        of = MPlusChat(model=MODEL, memory=MODEL.new_memory(), max_tokens=1)
        steps: list[Callable[[str], object]] = [
            lambda text, of=of: middleware_says(of, text, monkeypatch, thread),
            lambda text, of=of: of.memorize(HumanMessage(text, id=UUID)),
        ]
        one, other = steps if first == "agent" else reversed(steps)
        one(GRAZ)
        other(GRAZ)
        assert texts(of) == [GRAZ]
        other(LINZ)
        assert texts(of) == [LINZ], first
        one("I live in Rome.")
        assert texts(of) == ["I live in Rome."], first


@pytest.mark.parametrize("name", [UUID, "m1"])
@pytest.mark.parametrize("conversation", ["anna", None])
def test_a_conversation_knows_its_messages_by_their_ids_when_it_goes_on(name: str, conversation: str | None) -> None:
    ours = llm()

    def gone_on() -> MPlusMemory:
        return MPlusMemory.from_defaults(llm=ours, memory=ours.latents(), conversation_id=conversation)

    gone_on().put_messages([message(GRAZ, name), ChatMessage(role="assistant", content="I see.")])
    gone_on().put(message(LINZ, name))
    proven = conversation is not None or name == UUID
    assert texts(ours) == [*([] if proven else [GRAZ]), "Assistant: I see.", LINZ]


def test_what_was_memorized_of_a_message_is_an_earlier_version_for_a_conversation() -> None:
    ours = llm()
    ours.memorize(message(GRAZ))
    memory = MPlusMemory.from_defaults(llm=ours, memory=ours.latents())
    memory.put(message(LINZ))
    assert texts(ours) == [LINZ]
    ours.memorize(message("I live in Rome."))
    assert texts(ours) == ["I live in Rome."]


async def test_a_block_knows_messages_by_their_ids() -> None:
    ours = llm()
    block = MPlusMemoryBlock(llm=ours)
    await block.aput([message(GRAZ, "m1"), message("My code is 4711.", "m2")], session_id="anna")
    await block.aput([message("I play the cello.", "m1")], session_id="bob")
    await block.aput([message(LINZ, "m1")], session_id="anna")
    assert texts(ours) == ["My code is 4711.", "I play the cello.", LINZ]


async def test_a_question_and_an_answer_that_share_an_id_are_no_versions_of_each_other() -> None:
    ours = llm()
    answer = ChatMessage(role="assistant", content="I see.", additional_kwargs={"id": UUID})
    block = MPlusMemoryBlock(llm=ours)
    await block.aput([message(GRAZ)], session_id="anna")
    await block.aput([answer], session_id="anna")
    await MPlusMemoryBlock(llm=ours).aput([message(LINZ)], session_id="anna")
    assert texts(ours) == ["Assistant: I see.", LINZ]
    await MPlusMemoryBlock(llm=ours).aput([answer], session_id="anna")
    assert texts(ours) == [LINZ, "Assistant: I see."]
