"""The block of LlamaIndex's own memory: each conversation reads and forgets its own turns, unless it is told whose."""

import copy
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory as StockMemory

from mplus import MemoryStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusMemoryBlock
from tests.integrations.llama_index.conftest import MODEL

pytestmark = pytest.mark.filterwarnings(
    "ignore:The `__?[a-z_]+` attribute:DeprecationWarning",
    "ignore:Accessing the",
    "ignore:is_running called:DeprecationWarning",
)
MEMORIES: list[Any] = []


@pytest.fixture(autouse=True)
async def _databases_are_closed() -> AsyncIterator[None]:
    yield
    for memory in MEMORIES:
        if memory.sql_store._async_engine is not None:
            await memory.sql_store._async_engine.dispose()
    MEMORIES.clear()


def asks(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def server(folder: Path | None = None, **given: Any) -> MPlusLLM:
    store = {} if folder is None else {"store": MemoryStore(folder)}
    return MPlusLLM(model=MODEL, max_tokens=2, gate="always", **store, **given)


def stock(session: str, block: MPlusMemoryBlock) -> Any:
    few = {"token_limit": 100, "chat_history_token_ratio": 0.2, "token_flush_size": 20}
    memory = StockMemory.from_defaults(session_id=session, memory_blocks=[block], **few)
    MEMORIES.append(memory)
    return memory


async def told(session: str, block: MPlusMemoryBlock, text: str = "") -> Any:
    """A conversation of whose turns most are with the block."""
    memory = stock(session, block)
    for number in range(5):
        await memory.aput(ChatMessage(role="user", content=f"{text or session} says number {number}."))
    return memory


def read(answer: Any, llm: MPlusLLM, key: str | None = None) -> str:
    """The texts that an answer has read."""
    with llm.opened(key) as memory:
        texts = {source.name: " ".join(source.texts) for source in memory.sources()}
    return str([texts.get(one["source"], one["source"]) for one in answer.raw["recalled"]])


def held(llm: MPlusLLM, key: str | None = None) -> str:
    with llm.opened(key) as memory:
        return str([source.texts for source in memory.sources()])


@pytest.fixture
def may_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that each answer may read."""
    found, real = list[str](), MODEL.stream

    def stream(memory: Any, prompt: Any, *, where: Any = None, **options: Any) -> Any:
        found.append(str([s.texts for s in memory.sources() if where is None or where(s.name, s.metadata)]))
        return real(memory, prompt, where=where, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    return found


async def test_conversations_over_one_llm_read_and_forget_their_own_turns(may_read: list[str]) -> None:
    llm = server()
    llm.memorize("The museum opens at nine.", source="note")
    memories = {name: await told(name, MPlusMemoryBlock(llm=llm)) for name in ("anna", "bob")}
    for name, other in (("anna", "bob"), ("bob", "anna")):
        found = read(await llm.achat(await memories[name].aget()), llm)
        assert f"{name} says" in found and other not in found
        assert may_read[-1].count(f"{name} says") >= 3 and "museum" in may_read[-1] and other not in may_read[-1]
    llm.chat(asks("Who says what?"))
    assert "museum" in may_read[-1] and "says" not in may_read[-1], "nor does anybody else read them"
    assert memories["bob"].memory_blocks[0].forget() >= 3
    assert "bob" not in held(llm) and "anna says number 0." in held(llm) and "museum" in held(llm)
    assert memories["bob"].memory_blocks[0].forget() == 0


async def test_one_block_may_serve_many_conversations() -> None:
    block = MPlusMemoryBlock(llm=server())
    memories = {name: await told(name, block) for name in ("anna", "bob")}
    found = read(await block.llm.achat(await memories["bob"].aget()), block.llm)
    assert "bob says" in found and "anna" not in found
    assert block.forget("anna") >= 3 and "anna" not in held(block.llm) and "bob" in held(block.llm)
    assert block.forget() >= 3 and held(block.llm) == "[]"


async def test_a_conversation_goes_on_with_a_new_block() -> None:
    llm = server()
    await told("anna", MPlusMemoryBlock(llm=llm))
    later = stock("anna", MPlusMemoryBlock(llm=llm))
    await later.aput(asks("What did I say?")[0])
    assert "anna says" in read(await llm.achat(await later.aget()), llm)
    assert later.memory_blocks[0].forget() >= 3


async def test_another_llm_reads_what_the_block_names() -> None:
    block, asked = MPlusMemoryBlock(llm=server()), server()
    memories = {name: await told(name, block) for name in ("anna", "bob")}
    found = read(await asked.achat(await memories["anna"].aget()), block.llm)
    assert "anna says" in found and "bob" not in found


@pytest.mark.parametrize("named", ["the block", "the LLM"])
async def test_a_memory_key_says_whose_memory_it_is(named: str, tmp_path: Path) -> None:
    def made() -> MPlusMemoryBlock:
        if named == "the LLM":
            return MPlusMemoryBlock(llm=server(tmp_path, memory_key="anna"))
        return MPlusMemoryBlock(llm=server(tmp_path), memory_key="anna")

    await told("monday", made())
    block = made()
    tuesday = await told("tuesday", block)
    found = read(await block.llm.achat(await tuesday.aget()), block.llm, "anna")
    assert "monday says" in found and "tuesday says" in found, "a user's memory holds all of her conversations"
    assert [stored.id for stored in MemoryStore(tmp_path).list()] == ["anna"]
    assert block.forget() >= 3 and "monday" in held(block.llm, "anna") and "tuesday" not in held(block.llm, "anna")
    assert block.forget("monday") >= 3


async def test_a_conversation_id_counts_before_the_session() -> None:
    llm = server()
    await told("session-1", MPlusMemoryBlock(llm=llm, conversation_id="anna"), "Anna")
    again = stock("session-2", MPlusMemoryBlock(llm=llm, conversation_id="anna"))
    await again.aput(asks("What did I say?")[0])
    assert "Anna says" in read(await llm.achat(await again.aget()), llm)
    assert MPlusMemoryBlock(llm=llm, conversation_id="anna").forget() >= 3


async def test_in_a_store_a_conversation_without_a_user_has_a_memory_of_its_own(tmp_path: Path) -> None:
    llm = server(tmp_path)
    memories = {name: await told(name, MPlusMemoryBlock(llm=llm)) for name in ("anna", "bob")}
    assert {stored.id for stored in MemoryStore(tmp_path).list()} == {"anna", "bob"}
    found = read(await llm.achat(await memories["bob"].aget()), llm, "bob")
    assert "bob says" in found and "anna" not in found
    assert memories["bob"].memory_blocks[0].forget() >= 3
    assert "anna says" in held(llm, "anna") and held(llm, "bob") == "[]"


async def test_a_block_over_a_store_is_told_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MPlusMemoryBlock.*memory_key=.*conversation_id="):
        MPlusMemoryBlock(llm=server(tmp_path, require_key=True))
    for given in ({"memory_key": "anna"}, {"conversation_id": "anna"}):
        await told("monday", MPlusMemoryBlock(llm=server(tmp_path, require_key=True), **given))
    block = MPlusMemoryBlock(llm=server(tmp_path))
    with pytest.raises(ValueError, match=r"MPlusMemoryBlock.*memory_key=.*conversation_id="):
        await block.aput(asks("Hello."))
    with pytest.raises(ValueError, match="memory_key"):
        MPlusMemoryBlock(llm=MPlusLLM(model=MODEL, memory=MODEL.new_memory()), memory_key="anna").forget("x")
    with pytest.raises(ValueError, match="conversation_id"):
        MPlusMemoryBlock(llm=server()).forget("")
    with pytest.raises(ValueError, match="conversation_id"):
        MPlusMemoryBlock(llm=server(), conversation_id=1.5)
    assert [stored.id for stored in MemoryStore(tmp_path).list()] == ["anna"]


async def test_blocks_that_are_called_by_hand_have_conversations_of_their_own() -> None:
    llm = server()
    first, second = MPlusMemoryBlock(llm=llm), MPlusMemoryBlock(llm=llm)
    of_another = ChatMessage(role="user", content="Anna says this.", additional_kwargs={"session_id": "bob"})
    await first.aput([of_another])
    await second.aput(asks("Bob says that."))
    found = read(await llm.achat([*await second.aget(), *asks("Who says what?")]), llm)
    assert "Bob" in found and "Anna" not in found
    assert read(await llm.achat([*await copy.deepcopy(first).aget(), *asks("Who?")]), llm).count("Anna") == 1
    again = pickle.loads(pickle.dumps(first))
    assert again.forget() == 0 or "Anna" not in held(again.llm)
    assert first.forget() == 1 and "Bob" in held(llm)


async def test_a_copy_for_somebody_else_has_that_memory(tmp_path: Path) -> None:
    block = MPlusMemoryBlock(llm=server(tmp_path), memory_key="anna")
    await told("monday", block, "Anna")
    other = block.model_copy(update={"memory_key": "bob"})
    await told("monday", other, "Bob")
    assert "Bob" not in held(block.llm, "anna") and "Anna" not in held(block.llm, "bob")
    assert other.forget() >= 3 and "Anna" in held(block.llm, "anna") and held(block.llm, "bob") == "[]"


async def test_text_that_is_continued_reads_no_turns_of_conversations(may_read: list[str]) -> None:
    llm = server()
    llm.memorize("The museum opens at nine.", source="note")
    await told("anna", MPlusMemoryBlock(llm=llm))
    llm.complete("Who says what?", formatted=True)
    assert "museum" in may_read[-1] and "anna" not in may_read[-1]


async def test_what_a_block_does_not_accept_is_not_written() -> None:
    block = MPlusMemoryBlock(llm=server(), accept_short_term_memory=False)
    await told("anna", block)
    assert held(block.llm) == "[]"


async def test_an_llm_with_one_memory_keeps_to_it() -> None:
    memory = MODEL.new_memory()
    llm = MPlusLLM(model=MODEL, memory=memory, max_tokens=2, gate="always")
    memories = {name: await told(name, MPlusMemoryBlock(llm=llm)) for name in ("monday", "tuesday")}
    found = read(await llm.achat(await memories["tuesday"].aget()), llm)
    assert "monday says" in found and "tuesday says" in found
    assert memories["tuesday"].memory_blocks[0].forget() >= 3 and "monday" in str(memory.sources())


async def test_a_conversation_that_shares_the_llms_memory_reads_no_turns_of_blocks() -> None:
    llm = server()
    await told("anna", MPlusMemoryBlock(llm=llm))
    shared = MPlusMemory.from_defaults(llm=llm, memory=llm.latents())
    shared.put_messages(asks("My code is 4711."))
    shared.put(asks("What is the code?")[0])
    assert "anna" not in read(llm.chat(shared.get()), llm)


async def test_engines_and_agents_read_the_conversation(asked: list[Any]) -> None:
    llm = server()
    for name in ("anna", "bob"):
        await told(name, MPlusMemoryBlock(llm=llm))
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=stock("bob", MPlusMemoryBlock(llm=llm)))
    await engine.achat("Who says what?")
    memory = stock("anna", MPlusMemoryBlock(llm=llm))
    response = await FunctionAgent(llm=llm, tools=[], system_prompt="Be brief.").run("Who says?", memory=memory)
    found = str([one["source"] for one in response.raw["recalled"]])
    with llm.opened() as latents:
        mine = {s.name for s in latents.sources() if "anna" in str(s.texts)}
        others = {s.name for s in latents.sources() if "bob" in str(s.texts)}
    assert any(name in found for name in mine) and not any(name in found for name in others)
    assert all(message["content"] for prompt in asked for message in prompt), "nothing is added to prompts"


MODES = [
    ("best", "another LLM's memory"),
    ("context", "a user's memory in a store"),
    ("condense_plus_context", "the LLM's memory"),
    ("condense_question", "the LLM's memory"),
    ("simple", "the LLM's memory"),
]


@pytest.mark.parametrize(("mode", "where"), MODES)
async def test_chat_engines_of_an_index_read_the_conversation_beside_the_documents(
    mode: str, where: str, tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = list[str](), MODEL.stream

    def stream(memory: Any, prompt: Any, *, where: Any = None, **options: Any) -> Any:
        pairs = zip(memory, where, strict=True) if isinstance(memory, list) else [(memory, where)]
        read.append(
            str([s.texts for one, test in pairs for s in one.sources() if not test or test(s.name, s.metadata)])
        )
        return real(memory, prompt, where=where, **options)

    llm = server(tmp_path) if "store" in where else server()
    about = {"memory_key": "user"} if "store" in where else {}
    writer = server() if "another" in where else llm
    for name in ("anna", "bob"):
        await told(name, MPlusMemoryBlock(llm=writer, **about))
    documents = MPlusIndex.from_documents([Document(text="The museum opens at nine.")], llm=llm, store=None)
    engine = documents.as_chat_engine(mode, memory=stock("bob", MPlusMemoryBlock(llm=writer, **about)))
    monkeypatch.setattr(MODEL, "stream", stream)
    response = await engine.achat("When does it open?")
    assert read[-1].count("bob says") >= 3 and ("museum" in read[-1]) == (mode != "simple")
    assert ("anna" in read[-1]) == ("store" in where), "a user's memory holds all of her conversations"
    assert all("mplus" not in node.metadata for node in response.source_nodes)
    engine.reset()
    assert all(message["content"] for prompt in asked for message in prompt), "nothing is added to prompts"


async def test_where_nothing_is_found_only_its_own_conversation_is_asked() -> None:
    llm = server()
    documents = MPlusIndex.from_documents([Document(text="The museum opens at nine.", doc_id="museum")], llm=llm)
    documents.delete_ref_doc("museum")
    await told("anna", MPlusMemoryBlock(llm=llm))
    for name, is_asked in (("bob", False), ("anna", True)):
        engine = documents.as_chat_engine("condense_question", memory=stock(name, MPlusMemoryBlock(llm=llm)))
        assert (str(await engine.achat("Who says what?")) != "Empty Response") == is_asked
