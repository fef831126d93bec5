"""Bodies that cannot be read or kept, and memories that hold what JSON has no form for."""

import json
from datetime import date
from pathlib import PurePosixPath
from typing import Any

import httpx
import pytest

import mplus
from tests.integrations.server.conftest import MODEL, Served

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "What is said of plums?"}], "max_tokens": 2}


def posted(served: Served, path: str, body: str | bytes, kind: str | None = "application/json") -> httpx.Response:
    with served.client() as http:
        return http.post(path, content=body, headers={} if kind is None else {"Content-Type": kind})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("{", "line 1"),
        ("", "Field required"),
        (b'{"text": "\xff"}', "UTF-8"),
        ('{"text": "x", "metadata": {"a": NaN}}', "NaN"),
        ('{"text": "x", "metadata": {"a": -Infinity}}', "-Infinity"),
        ('{"text": "x", "metadata": {"a": 1e999}}', "1e999"),
        ('{"text": "x", "metadata": {"a": "\\ud800"}}', "surrogate"),
        ('{"text": "x", "metadata": {"\\udfff": 1}}', "surrogate"),
        (b'{"text": "x", "metadata": {"a": "\xed\xa0\x80"}}', "UTF-8"),
        ('{"messages": [{"role": "user", "content": "a \\ud83d b"}]}', "surrogate"),
        ('{"text": "x", "metadata": {"a": ' + "1" * 5000 + "}}", "digits"),
        ('{"text": "x", "metadata": {"a": ' + "[" * 100_000 + "}}", "nested"),
    ],
)
def test_what_is_no_json_is_refused_by_name_and_not_remembered(served: Served, body: str | bytes, told: str) -> None:
    answer = posted(served, "/v1/memories/me/write", body)
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/problem+json"
    assert told in answer.json()["detail"] and len(answer.json()["detail"]) < 300
    with served.client() as http:
        assert http.get("/v1/memories/me").status_code == 404


def test_pairs_of_surrogates_and_escaped_backslashes_are_text_as_any(served: Served) -> None:
    body = '{"text": "A dog: \\ud83d\\udc15", "source": "C:\\\\ud800", "metadata": {"a": "\\\\ud800", "b": 1.5e300}}'
    assert posted(served, "/v1/memories/me/write", b"\xef\xbb\xbf" + body.encode()).status_code == 200
    with served.client() as http:
        (source,) = http.get("/v1/memories/me/sources?texts=true").json()["sources"]
    assert (source["texts"], source["name"]) == (["A dog: \U0001f415"], "C:\\ud800")
    assert source["metadata"] == {"a": "\\ud800", "b": 1.5e300}


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/memories/me/write"])
def test_a_body_that_is_not_said_to_be_json_is_told_the_header(served: Served, path: str, kind: str | None) -> None:
    answer = posted(served, path, json.dumps(ASK), kind)
    assert (answer.status_code, answer.json()["code"]) == (415, "not_json")
    assert "Content-Type: application/json" in answer.json()["detail"]


def test_a_memory_that_holds_what_json_has_no_form_for_is_still_read(served: Served, tiny: mplus.MPlus) -> None:
    """Python keeps dates, bytes and infinities, and a file may have a name that is no text."""
    metadata = {"on": date(2024, 3, 3), "raw": b"\xff", "most": float("inf"), "at": PurePosixPath("/a"), "so": {1}}
    name = "caf\udce9.txt"
    store = served.service.memories.store
    with store.open("me", tiny) as memory:
        tiny.write(memory, "Plums are blue.", source=name, metadata=metadata)
    shown = {"on": "2024-03-03", "raw": "/w==", "most": None, "at": "/a", "so": [1]}
    with served.client() as http:
        (source,) = http.get("/v1/memories/me/sources").json()["sources"]
        assert (source["name"], source["metadata"]) == (name, shown)
        found = http.post("/v1/memories/me/search", json={"query": "plums"}).json()["found"]
        assert [(one["source"], one["metadata"]) for one in found] == [(name, shown)]
        recalled = http.post("/v1/memories/me/recalled", json={"question": "plums?"}).json()["recalled"]
        assert [one["metadata"] for one in recalled] == [shown]
        ask: dict[str, Any] = {**ASK, "memory": "me", "gate": "always"}
        answer = http.post("/v1/chat/completions", json=ask)
        assert [one["metadata"] for one in answer.json()["mplus"]["recalled"]] == [shown]
        for passages in (False, True):
            stream = http.post("/v1/chat/completions", json={**ask, "stream": True, "passages": passages})
            *events, end = [one.removeprefix("data: ") for one in stream.text.split("\n\n") if one]
            assert end == "[DONE]"
            told = [json.loads(event)["mplus"] for event in events if "mplus" in event]
            assert all([one["metadata"] for one in about["recalled"]] == [shown] for about in told) and told
