"""The unmodified client of MCP, over HTTP with keys, and over standard input and output."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

httpx2 = pytest.importorskip("httpx2", reason="needs mcp's own client of HTTP")
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

import mplus
from mplus_integrations.server.keys import KeyRing
from tests.integrations.server.conftest import Served, Serving


def told(result: Any) -> Any:
    """What a tool returned."""
    assert not result.is_error, result.content
    return result.structured_content


@asynccontextmanager
async def by_http(served: Served, key: str | None = None) -> AsyncIterator[Any]:
    """A client with a key."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{served.url}/mcp", http_client=http)) as client,
    ):
        yield client


async def use(client: Any) -> None:
    """Remember, recall, ask, list, forget."""
    tools = (await client.list_tools()).tools
    assert {tool.name for tool in tools} == {"remember", "recall", "ask", "forget", "list"}
    assert all(tool.input_schema["additionalProperties"] is False for tool in tools)
    wrote = told(await client.call_tool("remember", {"text": "My dog is called Biscuit.", "source": "dog"}))
    assert wrote["sources"] == ["dog"]
    found = told(await client.call_tool("recall", {"query": "dog"}))["found"]
    assert found[0]["texts"] == ["My dog is called Biscuit."]
    answer = told(await client.call_tool("ask", {"question": "What is my dog called?"}))
    assert isinstance(answer["answer"], str) and {one["source"] for one in answer["sources"]} <= {"dog"}
    assert [one["name"] for one in told(await client.call_tool("list", {}))["sources"]] == ["dog"]
    assert told(await client.call_tool("forget", {"source": "dog"}))["memory_tokens"] == 25
    gone = await client.call_tool("forget", {"source": "dog"})
    assert gone.is_error and "no source 'dog'" in gone.content[0].text


def test_an_agent_remembers_and_forgets_by_http(served: Served) -> None:
    async def work() -> None:
        async with by_http(served) as client:
            await use(client)

    asyncio.run(work())


def test_an_agent_lists_what_json_has_no_form_for(served: Served, tiny: mplus.MPlus) -> None:
    with served.service.memories.store.open("default", tiny) as memory:
        metadata = {"on": date(2024, 3, 3), "most": float("inf"), "raw": b"\xff"}
        tiny.write(memory, "Plums are blue.", source="caf\udce9.txt", metadata=metadata)

    async def work() -> None:
        async with by_http(served) as client:
            (listed,) = told(await client.call_tool("list", {}))["sources"]
            (found,) = told(await client.call_tool("recall", {"query": "plums"}))["found"]
            shown = {"on": "2024-03-03", "most": None, "raw": "/w=="}
            assert (listed["name"], listed["metadata"], found["metadata"]) == ("caf?.txt", shown, shown)
            assert told(await client.call_tool("ask", {"question": "What of plums?"}))["answer"]

    asyncio.run(work())


def test_an_agent_says_when_it_was_said_and_asks_as_of_a_time(served: Served) -> None:
    async def names(client: Any, tool: str, about: dict[str, Any]) -> set[str]:
        found = told(await client.call_tool(tool, about))
        ask = found["sources"] if tool != "recall" else found["found"]
        return {one["name" if tool == "list" else "source"] for one in ask}

    async def work() -> None:
        async with by_http(served) as client:
            moved = {"text": "Anna has moved to Rome.", "source": "call", "at": 1709460000, "dated": True}
            for about in ({"text": "Anna lives in Oslo.", "source": "letter", "at": "2023-05-01"}, moved):
                told(await client.call_tool("remember", about))
            for tool, asked in (("recall", {"query": "Anna"}), ("ask", {"question": "Where is Anna?"}), ("list", {})):
                assert await names(client, tool, asked | {"as_of": "2023-12-31"}) == {"letter"}, tool
                assert await names(client, tool, asked | {"since": "2024-01-01"}) == {"call"}, tool
                assert await names(client, tool, asked | {"until": 1709460000}) == {"letter", "call"}, tool
            held = {one["name"]: one for one in told(await client.call_tool("list", {}))["sources"]}
            assert held["call"]["earliest"] == held["call"]["latest"] == 1709460000
            for tool, wrong in (
                ("remember", {"text": "x", "at": "soon"}),
                ("remember", {"text": "x", "dated": True}),
                ("remember", {"text": "x", "date": "2024-03-03"}),
                ("remember", {"text": "x", "source": "x" * 4097}),
                ("recall", {"query": "x", "as_of": "soon"}),
                ("ask", {"question": "x", "since": "2024-02-30"}),
                ("list", {"since": 2, "until": 1}),
            ):
                assert (await client.call_tool(tool, wrong)).is_error, (tool, wrong)

    asyncio.run(work())


def test_agents_with_keys_have_their_own_memories(serving: Serving, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    (_, anna), (_, bob) = ring.add("anna"), ring.add("bob")

    async def work(served: Served) -> None:
        async with by_http(served, anna) as hers, by_http(served, bob) as his:
            told(await hers.call_tool("remember", {"text": "My dog is called Biscuit.", "source": "dog"}))
            told(await his.call_tool("remember", {"text": "My cat is called Waffle.", "source": "cat"}))
            for client, own in ((hers, "dog"), (his, "cat")):
                assert [one["name"] for one in told(await client.call_tool("list", {}))["sources"]] == [own]
                found = told(await client.call_tool("recall", {"query": "dog"}))["found"]
                assert {one["source"] for one in found} == {own}
            assert (await his.call_tool("forget", {"source": "dog"})).is_error

    with serving(keys=tmp_path / "keys.json") as served:
        asyncio.run(work(served))
        with served.client() as http:
            assert http.post("/mcp", json={}).status_code == 401


STDIO = """
import sys
from pathlib import Path
from mplus.testing import tiny_model
from mplus_integrations.server.running_mcp import run_mcp
from mplus_integrations.server.settings import ServeSettings
settings = ServeSettings(model="tiny", memories=Path(sys.argv[1]), metrics=False, max_tokens=4)
run_mcp(settings, "me", over_http=False, model=tiny_model(num_hidden_layers=1))
"""


def test_a_program_that_starts_it_uses_standard_input_and_output(tmp_path: Path) -> None:
    async def work() -> None:
        server = StdioServerParameters(command=sys.executable, args=["-c", STDIO, str(tmp_path)])
        async with Client(stdio_client(server)) as client:
            await use(client)

    asyncio.run(work())
    assert json.loads((tmp_path / "me" / "memory.json").read_text())
