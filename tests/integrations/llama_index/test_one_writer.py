"""A conversation of LlamaIndex's own memory, which an engine reads and a block takes over: each turn is there once."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.memory import Memory as StockMemory

from mplus import MemoryStore
from mplus_integrations.llama_index import MPlusIndex, MPlusLLM, MPlusMemoryBlock
from tests.integrations.llama_index.conftest import MODEL

pytestmark = pytest.mark.filterwarnings(
    "ignore:The `__?[a-z_]+` attribute:DeprecationWarning",
    "ignore:Accessing the",
    "ignore:is_running called:DeprecationWarning",
)
MODES = ["best", "context", "condense_plus_context", "condense_question", "simple"]
OPENED: list[Any] = []


@pytest.fixture(autouse=True)
async def _databases_are_closed() -> AsyncIterator[None]:
    yield
    for memory in OPENED:
        if memory.sql_store._async_engine is not None:
            await memory.sql_store._async_engine.dispose()
    OPENED.clear()


class Talk:
    """A conversation about documents, whose objects may be made anew, as in a new process."""

    def __init__(self, folder: Path, mode: str, prompt_turns: Any = 2, *, in_store: bool = True) -> None:
        self.folder, self.mode, self.prompt_turns, self.in_store = folder, mode, prompt_turns, in_store
        self.key = "user" if in_store else None
        self.begin()

    def begin(self) -> None:
        store = {"store": MemoryStore(self.folder / "memories")} if self.in_store else {}
        self.llm = MPlusLLM(model=MODEL, max_tokens=4, gate="always", prompt_turns=self.prompt_turns, **store)
        self.block = MPlusMemoryBlock(llm=self.llm, memory_key=self.key)
        self.memory = StockMemory.from_defaults(
            session_id="monday",
            memory_blocks=[self.block],
            token_limit=150,
            chat_history_token_ratio=0.3,
            token_flush_size=20,
            async_database_uri=f"sqlite+aiosqlite:///{self.folder / 'talk.db'}",
        )
        OPENED.append(self.memory)
        documents = MPlusIndex.from_documents([Document(text="The museum opens at nine.")], llm=self.llm, store=None)
        self.engine = documents.as_chat_engine(self.mode, memory=self.memory)

    def held(self) -> Counter[str]:
        """How often memory has each turn of the user."""
        with self.llm.opened(self.key) as memory:
            found = [source for source in memory.sources() if source.metadata.get("role") == "user"]
            return Counter(text.removeprefix("User: ") for source in found for text in source.texts)

    async def said(self) -> list[str]:
        """The user's turns that have left the prompt."""
        return [m.content or "" for m in await self.memory.aget_all() if m.role == "user"]


@pytest.mark.parametrize(
    ("mode", "prompt_turns", "restarts"),
    [
        *((mode, 2, True) for mode in MODES),
        *((mode, turns, False) for mode in ("context", "simple") for turns in (0, "all")),
    ],
)
async def test_each_turn_is_written_once(mode: str, prompt_turns: Any, restarts: bool, tmp_path: Path) -> None:
    talk = Talk(tmp_path, mode, prompt_turns)
    for number in range(8):
        await talk.engine.achat(f"Remember number {number}.")
        if restarts and number % 2:
            talk.begin()
    held = talk.held()
    assert set(held.values()) == {1}, held
    active = {m.content for m in await talk.memory.aget() if m.role == "user"}
    assert set(held) | active == set(await talk.said()), "and none is lost"
    assert talk.block.forget("monday") >= len(held) and not talk.held()


@pytest.mark.parametrize("mode", ["context", "simple"])
async def test_what_left_the_window_is_read_in_a_memory_without_a_name(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, read, real = Talk(tmp_path, mode, in_store=False), list[str](), MODEL.stream

    def stream(memory: Any, prompt: Any, *, where: Any = None, **options: Any) -> Any:
        pairs = zip(memory, where, strict=True) if isinstance(memory, list) else [(memory, where)]
        texts = [s.texts for one, test in pairs for s in one.sources() if not test or test(s.name, s.metadata)]
        read.append(str(texts) + str(prompt))
        return real(memory, prompt, where=where, **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    for number in range(8):
        await talk.engine.achat(f"Remember number {number}.")
    assert all(f"number {number}." in read[-1] for number in range(8)), "each turn is in the prompt or is read"


@pytest.mark.parametrize(("mode", "restarts"), [("context", False), ("context", True), ("simple", True)])
async def test_the_same_words_said_again_take_nothing_else_away(mode: str, restarts: bool, tmp_path: Path) -> None:
    talk = Talk(tmp_path, mode, 0)
    said = [
        "ok",
        "I live in Graz, in the street with the trees.",
        "ok",
        "My dog is called Biscuit.",
        "ok",
        "ok",
        "Bye.",
    ]
    for text in said:
        await talk.engine.achat(text)
        if restarts:
            talk.begin()
    await talk.engine.achat("What do you know of me?")
    held = talk.held()
    assert set(held) >= set(said[:-1])
    assert all(held[text] <= said.count(text) for text in held), held


@pytest.mark.parametrize("way", ["one turn", "the last turn", "the conversation", "one turn, before a restart"])
@pytest.mark.parametrize("mode", ["context"])
async def test_what_is_forgotten_stays_forgotten(mode: str, way: str, tmp_path: Path) -> None:
    talk = Talk(tmp_path, mode, 0)
    for number in range(5):
        await talk.engine.achat(f"Remember number {number}.")
    gone = set(talk.held())
    assert len(gone) >= 4
    if way == "the conversation":
        talk.block.forget("monday")
    else:
        place = -1 if "last" in way else -2
        with talk.llm.opened(talk.key) as memory:
            chosen = [source for source in memory.sources() if source.metadata["role"] == "user"][place]
        gone = {chosen.texts[0].removeprefix("User: ")}
        talk.llm.forget(chosen.name, memory_key=talk.key)
    if "restart" in way:
        talk.begin()
    for number in range(5, 10):
        await talk.engine.achat(f"Remember number {number}.")
    held = talk.held()
    assert not gone & set(held), held
    assert set(held.values()) == {1} and "Remember number 7." in held


async def test_an_agent_and_an_engine_write_one_conversation_once(tmp_path: Path) -> None:
    talk = Talk(tmp_path, "context", 0)
    agent = FunctionAgent(llm=talk.llm, tools=[], system_prompt="Be brief.")
    for number in range(8):
        if number % 2:
            await agent.run(f"Remember number {number}.", memory=talk.memory)
        else:
            await talk.engine.achat(f"Remember number {number}.")
    assert set(talk.held().values()) == {1}
