"""What several tests of the adapter share."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mplus import MemoryStore, MPlus, Scheduler
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat
from tests.conftest import TINY

TICK = 0.005


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def codes_of_users(folder: Path, model: MPlus) -> Path:
    """A folder with a memory for each of two users, and one that nobody named, each of another code."""
    chat = MPlusChat(model=model, store=MemoryStore(folder))
    for key, code in (("anna", "4711"), ("bob", "0815"), (None, "9999")):
        chat.memorize(f"My code is {code}.", source="code", memory_key=key)
    return folder


def nothing_is_deleted(ours: type) -> None:
    """Assert that a standard suite of LangChain's is run as it is, and that what may fail says how often."""
    (suite,) = (
        base for base in ours.__mro__ if base.__module__.startswith("langchain_tests.") and base in ours.__bases__
    )
    names = [name for name in dir(suite) if name.startswith("test_")]
    assert len(names) >= 5
    for name in names:
        kept = getattr(ours, name)
        if kept is not getattr(suite, name):
            (mark,) = kept.pytestmark
            assert mark.name == "xfail" and any(c.isdigit() for c in mark.kwargs["reason"]), "a measured rate"


class LoopWatch:
    """For how long an event loop did not run although another thread of the process could.

    Wall time alone would blame the loop for a busy machine. A plain thread that wants to run as often
    as the loop does counts its own turns between two beats of the loop: where neither runs, neither counts.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._turns = 0
        self._done = threading.Event()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["LoopWatch"]:
        loop = asyncio.get_running_loop()

        def beat() -> None:
            self._turns = 0
            if not self._done.is_set():
                loop.call_later(TICK, beat)

        def count() -> None:
            while not self._done.is_set():
                time.sleep(TICK)
                self._turns += 1
                self.longest = max(self.longest, self._turns * TICK)

        beat()
        thread = threading.Thread(target=count)
        thread.start()
        try:
            yield self
        finally:
            self._done.set()
            await asyncio.to_thread(thread.join)


class Steps:
    """A logits processor that takes its time, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, tokens: list[int], logits: Any) -> Any:
        self.count += 1
        time.sleep(0.02)
        return logits

    async def reach(self, count: int) -> None:
        while self.count < count:
            await asyncio.sleep(0.002)


Process = Callable[[list[int], Any], Any]


@pytest.fixture
def processed(monkeypatch: pytest.MonkeyPatch) -> Callable[[MPlus | Scheduler, Process], None]:
    """Have every answer of a model go through a logits processor."""

    def install(model: MPlus | Scheduler, processor: Process) -> None:
        real = model.stream

        def stream(*arguments: Any, processors: Any = (), **options: Any) -> Any:
            return real(*arguments, processors=[processor, *processors], **options)

        monkeypatch.setattr(model, "stream", stream)

    return install


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=tiny_model(memory=TINY), max_tokens=12)


@pytest.fixture
def steps(chat: MPlusChat, processed: Callable[[MPlus, Process], None]) -> Steps:
    steps = Steps()
    processed(chat.loaded, steps)
    return steps


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the standard tests that run on the default model."""
    for item in items:
        if item.name.partition("[")[0] in getattr(getattr(item, "cls", None), "want_sense", ()):
            item.add_marker(pytest.mark.default_model)
            item.add_marker(pytest.mark.timeout(900))  # seconds where the machine is free, minutes where it is not
