"""A memory for all and one for each user, read in one answer: cited apart, never crossed, in both frameworks."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from llama_index.core import Document
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer

from mplus import Memory, MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusVectorStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY, prompt_turns=0)
MODES = [ChatMode.BEST, ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.CONDENSE_QUESTION, ChatMode.SIMPLE]
DOCUMENTS = [f"Box {n} is in the {place}, as it always was." for n, place in enumerate(("hall", "attic", "barn"))]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """For each answer, the texts of all sources that it may read."""
    seen: list[list[str]] = []
    real = MODEL.stream

    def stream(memory: Memory | list[Memory], prompt: Any, **options: Any) -> Any:
        memories = [memory] if isinstance(memory, Memory) else memory
        where = options["where"] if isinstance(options["where"], list) else [options["where"]] * len(memories)
        fits = [test or (lambda name, metadata: True) for test in where]
        seen.append(
            [
                " ".join(s.texts)
                for m, fit in zip(memories, fits, strict=True)
                for s in m.sources()
                if fit(s.name, s.metadata)
            ]
        )
        return real(memory, prompt, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    return seen


@pytest.fixture
def llm() -> MPlusLLM:
    return MPlusLLM(model=MODEL, max_tokens=6)


@pytest.fixture
def index(llm: MPlusLLM) -> MPlusIndex:
    return MPlusIndex.from_documents([Document(text=text, id_=f"d{n}") for n, text in enumerate(DOCUMENTS)], llm=llm)


def memory_of(user: str, folder: Path, llm: MPlusLLM) -> MPlusMemory:
    return MPlusMemory.from_defaults(llm=llm, store=MemoryStore(folder), memory_key=user)


# --- LlamaIndex ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_chat_engine_reads_a_durable_memory_after_a_restart(
    index: MPlusIndex, llm: MPlusLLM, tmp_path: Path, reads: list[list[str]], mode: ChatMode
) -> None:
    told = [ChatMessage(content="My code is 4711, keep it."), ChatMessage(role="assistant", content="I shall.")]
    memory_of("anna", tmp_path, llm).put_messages(told)
    before = index.latents.read(MODEL).fingerprint
    response = index.as_chat_engine(chat_mode=mode, memory=memory_of("anna", tmp_path, llm)).chat("What is my code?")
    assert "User: My code is 4711, keep it." in reads[-1]
    assert any("Box 1" in text for text in reads[-1]) == (mode != ChatMode.SIMPLE)
    assert index.latents.read(MODEL).fingerprint == before, "nothing of the user is in the index"
    assert all("4711" not in node.text for node in response.source_nodes)
    bob = index.as_chat_engine(chat_mode=mode, memory=memory_of("bob", tmp_path, llm))
    bob.chat("What is my code?")
    assert "4711" not in str(reads[-1]) and any("Box 1" in text for text in reads[-1]) == (mode != ChatMode.SIMPLE)
    texts = [" ".join(s.texts) for s in memory_of("anna", tmp_path, llm).latents.read(MODEL).sources()]
    assert texts[:3] == ["User: My code is 4711, keep it.", "Assistant: I shall.", "User: What is my code?"]


def test_deleting_a_users_memory_leaves_the_index_alone(index: MPlusIndex, llm: MPlusLLM, tmp_path: Path) -> None:
    index.as_chat_engine(memory=memory_of("anna", tmp_path, llm)).chat("My code is 4711, keep it.")
    before = index.latents.read(MODEL).fingerprint
    MemoryStore(tmp_path).delete("anna")
    assert index.latents.read(MODEL).fingerprint == before and len(index.ref_doc_info) == 3
    assert memory_of("anna", tmp_path, llm).latents.read(MODEL).sources() == []


def test_a_conversation_in_llama_indexs_own_memory_is_not_written_into_the_index(
    index: MPlusIndex, reads: list[list[str]]
) -> None:
    buffer = ChatMemoryBuffer.from_defaults(token_limit=1000)
    engine, before = index.as_chat_engine(memory=buffer), index.latents.read(MODEL).fingerprint
    engine.chat("My code is 4711, keep it.")
    engine.chat("What is my code?")
    assert "User: My code is 4711, keep it." in reads[-1] and index.latents.read(MODEL).fingerprint == before


def test_stock_chat_engines_read_a_durable_memory_after_a_restart(
    index: MPlusIndex, llm: MPlusLLM, tmp_path: Path, reads: list[list[str]]
) -> None:
    memory_of("anna", tmp_path, llm).put(ChatMessage(content="My code is 4711, keep it."))
    simple = SimpleChatEngine.from_defaults(llm=llm, memory=memory_of("anna", tmp_path, llm))
    simple.chat("What is my code?")
    assert "User: My code is 4711, keep it." in reads[-1]
    context = ContextChatEngine.from_defaults(
        retriever=index.as_retriever(), llm=llm, memory=memory_of("anna", tmp_path, llm)
    )
    context.chat("What is my code?")
    assert "User: My code is 4711, keep it." in reads[-1]


def test_the_answer_is_the_same_a_moment_later_and_after_a_restart(
    index: MPlusIndex, llm: MPlusLLM, tmp_path: Path
) -> None:
    told = [ChatMessage(content="I live in Graz, near the park."), ChatMessage(role="assistant", content="How nice!")]
    living = memory_of("anna", tmp_path, llm)
    living.put_messages(told)
    MemoryStore(tmp_path).copy("anna", "copy")
    one = index.as_chat_engine(memory=living).chat("Where do I live?")
    two = index.as_chat_engine(memory=memory_of("copy", tmp_path, llm)).chat("Where do I live?")
    assert one.response == two.response
    assert living.get_all()[-1].content == one.response


# --- LangChain ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["latents", "memory", "name", "several"])
def test_a_shared_memory_is_read_beside_each_users_own(given: str, tmp_path: Path, reads: list[list[str]]) -> None:
    store = MemoryStore(tmp_path)
    documents = MPlusVectorStore.from_texts(
        DOCUMENTS, ids=["d0", "d1", "d2"], chat=MPlusChat(model=MODEL, store=store), memory_key="handbook"
    )
    unnamed = MODEL.new_memory()
    MODEL.write(unnamed, "The museum is closed on Mondays.", source="note", keep_text=True)
    shared: Any = {
        "latents": documents.latents,
        "memory": store.load("handbook", MODEL),
        "name": "handbook",
        "several": ["handbook", unnamed],
    }[given]
    chat = MPlusChat(model=MODEL, store=store, shared=shared, max_tokens=6)
    for user, code in (("anna", "4711"), ("bob", "0815")):
        chat.invoke(
            [HumanMessage(f"My code is {code}, keep it."), AIMessage("I shall."), HumanMessage("Well?")],
            memory_key=user,
        )
    before = store.load("handbook", MODEL).fingerprint
    for user, mine, other in (("anna", "4711", "0815"), ("bob", "0815", "4711")):
        chat.invoke("What is my code, and where is box 1?", memory_key=user)
        assert mine in str(reads[-1]) and other not in str(reads[-1]) and "Box 1 is in the attic" in str(reads[-1])
        assert ("museum" in str(reads[-1])) == (given == "several")
    store.delete("anna")
    chat.invoke("What is my code?", memory_key="anna")
    assert "4711" not in str(reads[-1]) and "Box 1" in str(reads[-1])
    assert store.load("handbook", MODEL).fingerprint == before


def test_sources_are_cited_with_their_memory_even_if_names_are_the_same(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path)
    chat = MPlusChat(model=MODEL, store=store, memory_key="anna", shared="handbook", max_tokens=4)
    for key, first in (("handbook", 0), ("anna", 50)):
        texts = [Document(text=f"Box {first + n} is in the hall, as it always was.").text for n in range(12)]
        MPlusVectorStore.from_texts(texts, ids=[f"n{n}" for n in range(12)], chat=chat, memory_key=key)
    cited = chat.invoke("Where is box 3?").response_metadata["recalled"]
    assert cited and {entry["memory"] for entry in cited} <= {"own", "handbook"}
    only = chat.invoke("Where is box 3?", where=lambda name, _: name in ("n1", "n2", "n3", "n4", "n5", "n6"))
    assert {entry["source"] for entry in only.response_metadata["recalled"]} <= {f"n{n}" for n in range(1, 7)}


def test_a_shared_memory_that_is_the_users_own_is_read_once(tmp_path: Path, reads: list[list[str]]) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), shared="anna", memory_key="anna", max_tokens=4)
    chat.memorize("The key is under the pot.")
    chat.invoke("Where is the key?")
    assert reads[-1] == ["The key is under the pot."]


@pytest.mark.parametrize("kind", [MPlusChat, MPlusLLM])
def test_a_shared_memory_of_a_name_needs_a_store(kind: type[Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without store="):
        kind(model=MODEL, shared="handbook")
    with pytest.raises(ValueError, match="memory_key"):
        kind(model=MODEL, shared=" ", store=MemoryStore(tmp_path))
