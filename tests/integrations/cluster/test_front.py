"""The front of a cluster without Ray: where requests go, and what happens when the replica that answers is lost."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

pytest.importorskip("pydantic_settings", reason="needs the extra serve")

from mplus_integrations.cluster.front import Front, ReplicaLostError
from mplus_integrations.cluster.passing import Passed, answered_by
from mplus_integrations.server.keys import KeyRing, own_memory
from mplus_integrations.server.settings import ServeSettings

Answering = Callable[[str | None, Passed], AsyncGenerator[Message]]
CHAT = "/v1/chat/completions"


def start(kind: bytes = b"application/json") -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


class Replicas:
    """Notes what is passed to whom; the first ``lost`` requests lose their replica, after ``after`` messages."""

    def __init__(self, lost: int = 0, after: int = 0, kind: bytes = b"application/json") -> None:
        self.lost, self.after, self.kind = lost, after, kind
        self.asked: list[tuple[str | None, Passed]] = []

    async def __call__(self, memory: str | None, passed: Passed) -> AsyncGenerator[Message]:
        self.asked.append((memory, passed))
        parts = [
            start(self.kind),
            *({"type": "http.response.body", "body": b"x", "more_body": m} for m in (True, False)),
        ]
        for number, part in enumerate(parts):
            if len(self.asked) <= self.lost and number == self.after:
                raise ReplicaLostError
            yield part


def client(passed_to: Answering, key: str | None = None, **settings: Any) -> httpx.AsyncClient:
    front = Front(ServeSettings(**settings), passed_to)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (await front.answer(Request(scope, receive)))(scope, receive, send)

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "memory"),
    [
        ("POST", CHAT, {"memory": "anna"}, {}, "anna"),
        ("POST", "/v1/completions", {"prompt": "x"}, {"X-MPlus-Memory": "bob"}, "bob"),
        ("POST", CHAT, {"messages": []}, {}, "default"),
        ("POST", CHAT, {"messages": []}, {"Authorization": "Bearer sk-1"}, own_memory("sk-1")),
        ("POST", "/mcp", {"jsonrpc": "2.0"}, {"X-MPlus-Memory": "anna"}, "anna"),
        ("POST", "/v1/memories", {"name": "anna"}, {}, "anna"),
        ("POST", "/v1/memories/anna/write", {"text": "x"}, {}, "anna"),
        ("GET", "/v1/memories/anna", None, {}, "anna"),
        ("GET", "/v1/memories/anna/sources?texts=true", None, {}, "anna"),
        ("GET", "/v1/memories", None, {}, None),
        ("GET", "/v1/models", None, {}, None),
        ("GET", "/", None, {}, None),
        ("POST", CHAT, {"memory": 7}, {}, "default"),
        ("POST", CHAT, {"memory": "../etc"}, {}, None),
        ("POST", CHAT, ["no object"], {}, "default"),
    ],
)
async def test_a_request_goes_to_the_owner_of_the_memory_that_the_server_would_open(
    method: str, path: str, body: Any, headers: dict[str, str], memory: str | None
) -> None:
    replicas = Replicas()
    async with client(replicas) as http:
        answer = await http.request(method, path, json=body, headers=headers)
    assert answer.status_code == 200 and [name for name, _ in replicas.asked] == [memory]
    passed = replicas.asked[0][1]
    assert (passed.method, passed.path) == (method, path.partition("?")[0])
    assert body is None or json.loads(passed.body) == body


async def test_a_key_of_a_file_leads_to_its_memory(tmp_path: Path) -> None:
    _, key = KeyRing(tmp_path / "keys.json").add("anna")
    replicas = Replicas()
    async with client(replicas, key, keys=tmp_path / "keys.json") as http:
        await http.post(CHAT, json={"messages": []})
    assert replicas.asked[0][0] == "anna"


@pytest.mark.parametrize("path", [CHAT, "/v1/memories/anna/search", "/v1/memories/anna/recalled"])
async def test_what_may_be_asked_twice_is_answered_though_its_replica_died(path: str) -> None:
    replicas = Replicas(lost=2)
    async with client(replicas) as http:
        answer = await http.post(path, json={"memory": "anna"})
    assert answer.status_code == 200 and len(replicas.asked) == 3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "anna/search"),
        ("PUT", "anna/recalled"),
        ("POST", "anna/sources/search"),
        ("POST", "anna/snapshots/recalled"),
        ("DELETE", "search"),
        ("POST", "search"),
        ("POST", "/search"),
    ],
)
async def test_only_reads_sent_by_post_to_the_memory_itself_are_asked_twice(method: str, path: str) -> None:
    replicas = Replicas(lost=1)
    async with client(replicas) as http:
        answer = await http.request(method, f"/v1/memories/{path}", json={"memory": "anna"})
    assert answer.status_code == 503 and len(replicas.asked) == 1


@pytest.mark.parametrize("path", ["write", "forget", "replace", "rollback", "files", "import"])
async def test_a_change_whose_replica_died_is_not_made_twice_and_the_client_is_told(path: str) -> None:
    replicas = Replicas(lost=1)
    async with client(replicas) as http:
        answer = await http.post(f"/v1/memories/anna/{path}", json={"text": "x"})
    assert len(replicas.asked) == 1
    assert (
        answer.status_code == 503 and answer.json()["code"] == "replica_lost" and answer.headers["retry-after"] == "1"
    )
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_stream_whose_replica_dies_ends_with_an_error_and_is_not_begun_again() -> None:
    replicas = Replicas(lost=1, after=2, kind=b"text/event-stream")
    async with client(replicas) as http:
        answer = await http.post(CHAT, json={"memory": "anna"})
    assert len(replicas.asked) == 1 and answer.text.startswith("x")
    assert json.loads(answer.text.removeprefix("xdata: "))["error"]["code"] == "replica_lost"


async def test_any_other_answer_whose_replica_dies_is_cut_off() -> None:
    async with client(Replicas(lost=1, after=2)) as http:
        with pytest.raises(ReplicaLostError):
            await http.get("/v1/memories/anna/export")


async def test_a_request_that_is_too_large_is_passed_to_nobody() -> None:
    replicas = Replicas()
    async with client(replicas, max_body_bytes=10) as http:
        answer = await http.post("/v1/memories/anna/write", json={"text": "more than ten bytes"})
    assert answer.status_code == 413 and replicas.asked == []


async def test_the_body_of_who_is_not_let_in_is_not_kept(tmp_path: Path) -> None:
    _, key = KeyRing(tmp_path / "keys.json").add("anna")
    body = json.dumps({"memory": "anna"}).encode()
    for given, expected in [
        (f"Bearer {key}", ("anna", body)),
        ("Bearer guess", (None, b"")),
        ("Basic x", (None, b"")),
        ("", (None, b"")),
    ]:
        replicas = Replicas()
        async with client(replicas, keys=tmp_path / "keys.json") as http:
            await http.post(CHAT, content=body, headers={"Authorization": given})
        assert [(memory, passed.body) for memory, passed in replicas.asked] == [expected], given


def passed(body: bytes = b"hello") -> Passed:
    scope = {"method": "POST", "path": "/e cho", "raw_path": b"/e%20cho", "headers": [(b"a", b"b")], "client": ["1", 2]}
    return Passed.of(scope, body)


async def test_an_application_answers_a_passed_request_as_it_would_a_client() -> None:
    async def echo(request: Any) -> Response:
        return Response(await request.body() + request.headers["a"].encode() + request.client.host.encode())

    app = Starlette(routes=[Route("/e cho", echo, methods=["POST"])])
    messages = [message async for message in answered_by(app, passed())]
    assert messages[0]["status"] == 200 and b"".join(m.get("body", b"") for m in messages) == b"hellob1"


async def test_an_error_of_the_application_arrives() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        async for _ in answered_by(app, passed()):
            pass


async def test_who_leaves_early_is_to_the_application_a_client_that_went_away() -> None:
    seen: list[str] = []
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])
        try:
            await send(start())
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError:
            seen.append((await receive())["type"])
        ended.set()

    messages = answered_by(app, passed())
    await anext(messages)
    await messages.aclose()
    await asyncio.wait_for(ended.wait(), 5)
    assert seen == ["http.request", "http.disconnect"]
