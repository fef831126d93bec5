"""A durable conversation is read after a restart, by every engine and agent, in every way to ask; users stay apart."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer
from llama_index.core.memory import Memory as StockMemory
from llama_index.core.tools import QueryEngineTool
from llama_index.core.workflow import Context, WorkflowRuntimeError

from mplus import Memory, MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemory, MPlusMemoryBlock
from tests.conftest import TINY

pytestmark = pytest.mark.filterwarnings(
    "ignore:The `__?[a-z_]+` attribute:DeprecationWarning",
    "ignore:Accessing the",
    "ignore:is_running called:DeprecationWarning",
)
MODEL = tiny_model(1, memory=TINY, prompt_turns=0)
CODE, QUESTION = "My code is 4711, keep it.", "What is my code?"
TOLD = [ChatMessage(content=CODE), ChatMessage(role="assistant", content="I shall.")]
PLACES = ["Box 0 is in the hall, as it always was.", "Box 1 is in the attic, as it always was."]


class Seen(list[str]):
    """What each answer may read: the texts in memory and those of the prompt."""

    def last(self, text: str) -> bool:
        """Whether the last answer knew a text."""
        return text in self[-1]

    def any(self, text: str) -> bool:
        """Whether an answer knew a text."""
        return any(text in one for one in self)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, real = Seen(), MODEL.stream

    def stream(memory: Memory | list[Memory], prompt: Any, **options: Any) -> Any:
        memories = [memory] if isinstance(memory, Memory) else memory
        where = options["where"] if isinstance(options["where"], list) else [options["where"]] * len(memories)
        texts = [
            " ".join(source.texts)
            for one, test in zip(memories, where, strict=True)
            for source in one.sources()
            if test is None or test(source.name, source.metadata)
        ]
        found.append(f"{texts} {prompt}")
        return real(memory, prompt, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store in which an earlier process has written what Anna said."""
    memory_of("anna", tmp_path / "memories").put_messages(TOLD)
    return tmp_path / "memories"


def llm_of(folder: Path, **settings: Any) -> MPlusLLM:
    return MPlusLLM(model=MODEL, store=MemoryStore(folder), max_tokens=4, **settings)


def memory_of(user: str, folder: Path) -> MPlusMemory:
    return MPlusMemory.from_defaults(
        llm=MPlusLLM(model=MODEL, max_tokens=4), store=MemoryStore(folder), memory_key=user
    )


def index() -> MPlusIndex:
    documents = [Document(text=text, id_=f"d{n}") for n, text in enumerate(PLACES)]
    return MPlusIndex.from_documents(documents, llm=MPlusLLM(model=MODEL, max_tokens=4))


def streamed(engine: Any, question: str = QUESTION) -> str:
    return "".join(engine.stream_chat(question).response_gen)


async def astreamed(engine: Any, question: str = QUESTION) -> str:
    response = await engine.astream_chat(question)
    return "".join([piece async for piece in response.async_response_gen()])


WAYS: dict[str, Callable[[Any], Any]] = {
    "stream_chat": streamed,
    "achat": lambda engine: asyncio.run(engine.achat(QUESTION)),
    "astream_chat": lambda engine: asyncio.run(astreamed(engine)),
}
MODES = [ChatMode.BEST, ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.CONDENSE_QUESTION, ChatMode.SIMPLE]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reads_it_in_every_way_to_ask(folder: Path, seen: Seen, mode: ChatMode) -> None:
    documents = index()
    before = documents.latents.read(MODEL).fingerprint
    for way in WAYS.values():
        way(documents.as_chat_engine(chat_mode=mode, memory=memory_of("anna", folder)))
        assert seen.last(CODE) and seen.last("Box 1") == (mode != ChatMode.SIMPLE)
        way(documents.as_chat_engine(chat_mode=mode, memory=memory_of("bob", folder)))
        assert not seen.last(CODE)
    assert documents.latents.read(MODEL).fingerprint == before
    said = [source.texts[0] for source in memory_of("anna", folder).latents.read(MODEL).sources()]
    assert said.count(f"User: {QUESTION}") == 3, "each turn once"


def stock_context(folder: Path) -> Any:
    return ContextChatEngine.from_defaults(index().as_retriever(), llm=llm_of(folder), memory=memory_of("anna", folder))


def stock_condense(folder: Path) -> Any:
    return CondensePlusContextChatEngine.from_defaults(
        index().as_retriever(), llm=llm_of(folder), memory=memory_of("anna", folder)
    )


def of_json(folder: Path) -> Any:
    memory = MPlusMemory.from_json(memory_of("anna", folder).to_json())
    return index().as_chat_engine(memory=memory)


def of_a_loaded_index(folder: Path) -> Any:
    index().persist(folder.parent / "index")
    loaded = MPlusIndex.load(folder.parent / "index", llm=MPlusLLM(model=MODEL, max_tokens=4))
    return loaded.as_chat_engine(memory=memory_of("anna", folder))


def of_an_index_in_the_same_store(folder: Path) -> Any:
    made = MPlusIndex.from_documents(
        [Document(text=PLACES[1])], llm=llm_of(folder), store=MemoryStore(folder), memory_key="documents"
    )
    return made.as_chat_engine(memory=memory_of("anna", folder))


def after_a_reset(folder: Path) -> Any:
    engine = index().as_chat_engine(memory=memory_of("anna", folder))
    engine.reset()
    return engine


def of_its_own_llm(folder: Path) -> Any:
    memory = MPlusMemory.from_defaults(llm=llm_of(folder, memory_key="anna"))
    return index().as_chat_engine(memory=memory, system_prompt="Be brief.")


ENGINES: dict[str, Callable[[Path], Any]] = {
    "the stock context engine": stock_context,
    "the stock condensing engine": stock_condense,
    "a memory of JSON": of_json,
    "an index that was loaded": of_a_loaded_index,
    "an index in the same store": of_an_index_in_the_same_store,
    "an engine that was reset": after_a_reset,
    "a memory of its LLM's key": of_its_own_llm,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_other_engines_read_it(folder: Path, seen: Seen, engine: str) -> None:
    made = ENGINES[engine](folder)
    made.chat(QUESTION)
    assert seen.last(CODE)
    asyncio.run(made.achat(QUESTION))
    assert seen.last(CODE)


async def test_llama_indexs_own_memory_with_a_block_reads_it(folder: Path, seen: Seen) -> None:
    llm = llm_of(folder, memory_key="anna")
    memory = StockMemory.from_defaults(memory_blocks=[MPlusMemoryBlock(llm=llm)], token_limit=2000)
    await SimpleChatEngine.from_defaults(llm=llm, memory=memory).achat(QUESTION)
    assert seen.last(CODE)
    await memory.sql_store._async_engine.dispose()  # type: ignore[union-attr]


async def react(llm: MPlusLLM, memory: Any) -> Any:
    tool = QueryEngineTool.from_defaults(index().as_query_engine(), name="boxes", description="About boxes.")
    return await ReActAgent(llm=llm, tools=[tool]).run(QUESTION, memory=memory, max_iterations=2)


async def function(llm: MPlusLLM, memory: Any) -> Any:
    return await FunctionAgent(llm=llm, tools=[], system_prompt="Be brief.").run(QUESTION, memory=memory)


async def several(llm: MPlusLLM, memory: Any) -> Any:
    agents = [FunctionAgent(name=n, description=n, llm=llm, tools=[], can_handoff_to=[]) for n in ("a", "b")]
    return await AgentWorkflow(agents=agents, root_agent="a").run(QUESTION, memory=memory)


async def in_context(llm: MPlusLLM, memory: Any) -> Any:
    agent = FunctionAgent(llm=llm, tools=[], system_prompt="Be brief.")
    context = Context(agent)
    await agent.run("Hello.", ctx=context, memory=memory)
    again = Context.from_dict(agent, context.to_dict())
    return await agent.run(QUESTION, ctx=again)


AGENTS: dict[str, Callable[[MPlusLLM, Any], Awaitable[Any]]] = {
    "ReActAgent": react,
    "FunctionAgent": function,
    "AgentWorkflow": several,
    "a restored context": in_context,
}


@pytest.mark.parametrize("agent", AGENTS)
async def test_agents_read_it(folder: Path, seen: Seen, agent: str) -> None:
    with contextlib.suppress(ValueError, WorkflowRuntimeError):  # the model is random, and an agent may give up
        await AGENTS[agent](MPlusLLM(model=MODEL, max_tokens=4), memory_of("anna", folder))
    assert seen and seen.last(CODE)


async def test_two_users_stream_from_one_index_at_the_same_time(folder: Path, seen: Seen) -> None:
    documents = index()
    memory_of("bob", folder).put(ChatMessage(content="My code is 0815, keep it."))
    engines = [documents.as_chat_engine(memory=memory_of(user, folder)) for user in ("anna", "bob")]
    await asyncio.gather(*(astreamed(engine) for engine in engines for _ in range(2)))
    assert len(seen) == 4
    assert all(("4711" in one) != ("0815" in one) and "Box 0" in one for one in seen)


def test_a_summary_memory_never_reaches_the_index(folder: Path, seen: Seen) -> None:
    llm, documents = MPlusLLM(model=MODEL, max_tokens=4), index()
    before = documents.latents.read(MODEL).fingerprint
    memory = ChatSummaryMemoryBuffer.from_defaults(llm=llm.without_memory(), token_limit=60)
    engine = documents.as_chat_engine(memory=memory)
    for text in (CODE, "I play the cello.", QUESTION):
        engine.chat(text)
    assert documents.latents.read(MODEL).fingerprint == before and seen.last("Box 1")
    assert seen.any(CODE) and llm.latents().read(MODEL).sources() == []
    other = documents.as_chat_engine(memory=ChatMemoryBuffer.from_defaults(token_limit=500))
    other.chat(QUESTION)
    assert not seen.last("4711")
