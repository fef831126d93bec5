"""The example server, really serving: eight users at once, each with a memory of their own."""

import asyncio
import importlib.util
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import uvicorn

import mplus
from mplus.generation.requests import Requests
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat
from tests.conftest import TINY
from tests.integrations.langchain.conftest import LoopWatch, Steps

FILE = Path(__file__).parents[3] / "examples" / "langchain" / "server.py"
NAMES = ["Biscuit", "Pancake", "Waffle", "Pretzel", "Noodle", "Muffin", "Pickle", "Crumpet"]
USERS = [f"user-{number}" for number in range(8)]


def create_app(chat: MPlusChat) -> Any:
    spec = importlib.util.spec_from_file_location("server", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.create_app(chat)


class Served:
    """Where a server answers, which thread its loop runs in, and how long that was blocked."""

    def __init__(self, url: str) -> None:
        self.url, self.watch, self.loop_thread = url, LoopWatch(), 0

    def ask(self, user: str, text: str) -> tuple[str, list[str]]:
        with httpx.stream("POST", f"{self.url}/chat", json={"user": user, "text": text}, timeout=120) as response:
            assert response.status_code == 200, response.read()
            found = [json.loads(line) for line in response.iter_lines()]
        assert [n for n, line in enumerate(found) if "recalled" in line] == [len(found) - 1]
        return "".join(line["text"] for line in found), found[-1]["recalled"]

    def tell(self, user: str, text: str) -> None:
        httpx.post(f"{self.url}/remember", json={"user": user, "text": text}, timeout=120).raise_for_status()


@contextmanager
def serving(chat: MPlusChat) -> Iterator[Served]:
    """A uvicorn server on a free port, its event loop in a thread of its own."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    served = Served(f"http://127.0.0.1:{listener.getsockname()[1]}")
    server = uvicorn.Server(uvicorn.Config(create_app(chat), lifespan="off", ws="none", log_level="warning"))

    async def serve() -> None:
        served.loop_thread = threading.get_ident()
        async with served.watch.watching():
            await server.serve([listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        served.watch.longest = 0.0  # starting is not serving
        yield served
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def model() -> mplus.MPlus:
    return tiny_model(memory=TINY)


@pytest.fixture(params=["scheduler", "threads"])
def chat(request: Any, model: mplus.MPlus, tmp_path: Path) -> Iterator[MPlusChat]:
    store = mplus.MemoryStore(tmp_path)
    if request.param == "threads":
        yield MPlusChat(model=model, store=store, max_tokens=24)
    else:
        with model.serve() as scheduler:
            yield MPlusChat(model=model, store=store, max_tokens=24, scheduler=scheduler)


def test_eight_users_stream_at_once_without_seeing_each_others_facts(
    chat: MPlusChat, model: mplus.MPlus, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads_of_ours: set[int] = set()

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            threads_of_ours.add(threading.get_ident())
            return function(*args, **kwargs)

        return call

    question = "What is my dog called?"
    expected: dict[str, str] = {}
    for user, name in zip(USERS, NAMES, strict=True):
        alone = MPlusChat(model=model, max_tokens=24)
        alone.memorize(f"My dog is called {name}. " * 8, source="text-1")
        expected[user] = str(alone.invoke(question).content)
    for place, what in ((mplus.MemoryStore, "open"), (mplus.MPlus, "write"), (Requests, "row")):
        monkeypatch.setattr(place, what, noted(getattr(place, what)))
    with serving(chat) as served, ThreadPoolExecutor(8) as threads:
        list(
            threads.map(
                lambda pair: served.tell(pair[0], f"My dog is called {pair[1]}. " * 8), zip(USERS, NAMES, strict=True)
            )
        )
        for _ in range(2):
            answers = list(threads.map(lambda user: served.ask(user, question), USERS))
            assert [text for text, _ in answers] == [expected[user] for user in USERS]
            assert all(set(recalled) == {"text-1"} for _, recalled in answers)
        assert threads_of_ours and served.loop_thread not in threads_of_ours
        assert served.watch.longest < 0.1, "the event loop was blocked"


def test_a_client_that_disconnects_stops_its_generation(chat: MPlusChat, processed: Callable[..., None]) -> None:
    steps = Steps()
    end = torch.tensor([chat.loaded.tokenizer.eos_token_id])

    def endless(tokens: list[int], logits: torch.Tensor) -> torch.Tensor:
        return steps(tokens, logits).index_fill(0, end, float("-inf"))

    processed(chat.scheduler or chat.loaded, endless)
    endless_chat = chat.model_copy(update={"max_tokens": 1_000})
    with serving(endless_chat) as served:
        body = {"user": "anna", "text": "Go on."}
        with httpx.stream("POST", f"{served.url}/chat", json=body, timeout=120) as response:
            next(response.iter_lines())
        still, seen = 0, -1
        while still < 10:  # until nothing has moved for a while
            time.sleep(0.05)
            still, seen = (still + 1, seen) if steps.count == seen else (0, steps.count)
        assert 0 < steps.count < 200
        endless_chat.max_tokens = 4
        assert served.ask("bob", "Hello?"), "others are served"


def test_what_is_wrong_gets_a_status(chat: MPlusChat) -> None:
    with serving(chat) as served:
        for body in ({"user": " ", "text": "hi"}, {"user": "bob", "text": " "}, {"user": "bob"}):
            for door in ("chat", "remember"):
                answer = httpx.post(f"{served.url}/{door}", json=body, timeout=60)
                assert answer.status_code == 422 and answer.json()
    assert chat.store is not None and [memory.name for memory in chat.store.list() if memory.name != "bob"] == []


@pytest.mark.default_model
def test_eight_users_of_the_default_model_hear_of_their_own_dogs(default_model: mplus.MPlus, tmp_path: Path) -> None:
    with default_model.serve() as scheduler:
        chat = MPlusChat(model=default_model, store=mplus.MemoryStore(tmp_path), scheduler=scheduler, max_tokens=12)
        with serving(chat) as served, ThreadPoolExecutor(8) as threads:
            list(
                threads.map(
                    lambda pair: served.tell(pair[0], f"My dog is called {pair[1]}."), zip(USERS, NAMES, strict=True)
                )
            )
            answers = [text for text, _ in threads.map(lambda user: served.ask(user, "What is my dog called?"), USERS)]
    heard = [[name for name in NAMES if name in answer] for answer in answers]
    assert all(set(names) <= {own} for names, own in zip(heard, NAMES, strict=True)), answers
    assert sum(map(len, heard)) >= 6, answers
