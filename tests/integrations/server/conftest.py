"""Servers over a tiny model, on a port of their own, for real clients."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import mplus
from mplus.testing import tiny_model
from tests.conftest import TINY

for needed in ("fastapi", "uvicorn", "prometheus_client", "pydantic_settings", "python_multipart"):
    pytest.importorskip(needed, reason=f"needs the extra serve: {needed} is not installed")

import uvicorn

from mplus_integrations.server.app import create_app
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings

MODEL = "tiny"


class Served:
    """A server that runs: its address, its service and a client."""

    def __init__(self, url: str, service: Service) -> None:
        self.url, self.service = url, service

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """A client with a key."""
        headers = headers | ({} if key is None else {"Authorization": f"Bearer {key}"})
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def chat(self, text: str, key: str | None = None, **more: Any) -> httpx.Response:
        """A question to the chat endpoint."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}
        with self.client(key) as client:
            return client.post("/v1/chat/completions", json=body)


Serving = Callable[..., AbstractContextManager[Served]]


@pytest.fixture(scope="module")
def tiny() -> mplus.MPlus:
    return tiny_model(memory=TINY)


@pytest.fixture
def serving(tiny: mplus.MPlus, tmp_path: Path) -> Serving:
    """Starts servers over the tiny model; their settings are given by name."""

    @contextmanager
    def serve(**settings: Any) -> Iterator[Served]:
        chosen = ServeSettings(**{"model": MODEL, "memories": tmp_path / "memories", "max_tokens": 8, **settings})
        service = Service(chosen, model=tiny)
        with running(service) as served:
            yield served

    return serve


@contextmanager
def running(service: Service) -> Iterator[Served]:
    """A web server in a thread, on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    app = create_app(service.settings, service=service)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not (server.started and service.is_ready):
            assert thread.is_alive(), service.failure
            time.sleep(0.01)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def plain(tiny: mplus.MPlus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = ServeSettings(model=MODEL, memories=tmp_path_factory.mktemp("memories"), max_tokens=8)
    with running(Service(settings, model=tiny)) as one:
        yield one


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def served(plain: Served) -> Served:
    """A server without keys and without memories."""
    store = plain.service.memories.store
    for memory in store.list():
        store.delete(memory.name)
        plain.service.activity.drop(memory.name)
    return plain
