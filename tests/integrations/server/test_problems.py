"""Errors as clients see them: what was wrong, and nothing about others."""

from pathlib import Path

import pytest

from mplus_integrations.server.keys import KeyRing
from mplus_integrations.server.openai_answers import Shape
from tests.integrations.server.conftest import MODEL, Served, Serving

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "Who am I?"}], "max_tokens": 2}
FILE = {"files": ("a.txt", b"A text.")}


def test_a_memory_that_is_missing_tells_no_other_memory_and_no_place(serving: Serving, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys.json")
    (_, anna), (_, bob) = ring.add("anna", opens=["team"]), ring.add("bob-of-nordwind")
    with serving(keys=tmp_path / "keys.json") as served:
        with served.client(bob) as http:
            note = {"text": "Mine.", "source": "x"}
            assert http.post("/v1/memories/bob-of-nordwind/write", json=note).status_code == 200
        with served.client(anna) as http:
            answers = [
                http.request(method, path, json=body)
                for method, path, body in [
                    ("GET", "/v1/memories/anna", None),
                    ("DELETE", "/v1/memories/anna", None),
                    ("GET", "/v1/memories/anna/sources", None),
                    ("GET", "/v1/memories/anna/snapshots", None),
                    ("GET", "/v1/memories/anna/diff?before=x", None),
                    ("GET", "/v1/memories/anna/export", None),
                    ("GET", "/v1/memories/anna/activity", None),
                    ("POST", "/v1/memories/anna/snapshots", {}),
                    ("POST", "/v1/memories/anna/rollback", {"snapshot": "x"}),
                    ("POST", "/v1/memories/anna/search", {"query": "x"}),
                    ("POST", "/v1/memories/anna/recalled", {"question": "x"}),
                    ("POST", "/v1/memories/anna/forget", {"source": "x"}),
                    ("POST", "/v1/memories/anna/replace", {"source": "x", "text": "y"}),
                    ("POST", "/v1/memories/anna/pin", {"source": "x"}),
                    ("POST", "/v1/memories", {"name": "anna", "copy_of": "team"}),
                    ("POST", "/v1/chat/completions", {**ASK, "shared": ["team"]}),
                    ("POST", "/v1/chat/completions", {**ASK, "shared": ["team"], "stream": True}),
                ]
            ]
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (404, "memory_not_found"), answer.url
            detail = answer.json()["detail"]
            assert "'anna'" in detail or "'team'" in detail, "the one that was meant is named"
            assert "nordwind" not in answer.text and str(tmp_path) not in answer.text


def test_trouble_of_the_server_tells_clients_no_place_and_the_log_where(
    serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as served, served.client() as http:
        assert http.post("/v1/memories/anna/write", json={"text": "Mine.", "source": "x"}).status_code == 200
        (tmp_path / "memories" / "anna" / "memory.json").write_text("{oops")
        answers = [http.get("/v1/memories/anna"), http.post("/v1/chat/completions", json={**ASK, "memory": "anna"})]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "memory_damaged")
        assert str(tmp_path) not in answer.text
    about = [record.about for record in caplog.records if record.levelname == "ERROR"]
    assert [one["error"] for one in about] == ["CorruptMemoryError"] * 2 and str(tmp_path) not in str(about)


def test_what_goes_wrong_in_a_stream_or_a_tool_stands_in_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("about plums")

    monkeypatch.setattr(Shape, "event", fail)
    with served.client() as http:
        events = http.post("/v1/chat/completions", json={**ASK, "stream": True}).text
    assert '"code":"internal"' in events and "plums" not in events and "[DONE]" not in events
    pytest.importorskip("mcp", reason="needs the extra mcp")
    from mplus_integrations.server.mcp_tools import _told

    assert _told(RuntimeError("about plums")).args == ("Something went wrong in the server; its log says where.",)
    assert [record.about["error"] for record in caplog.records if record.levelname == "ERROR"] == ["RuntimeError"] * 2


def test_a_wrong_path_or_method_says_what_there_is(served: Served) -> None:
    with served.client() as http:
        lost, wrong = http.get("/v1/memory"), http.put("/v1/models")
        assert (lost.status_code, lost.json()["code"]) == (404, "not_found")
        assert "/openapi.json" in lost.json()["detail"]
        assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "GET" and "GET" in wrong.json()["detail"]
        for method, path, allowed in [
            ("PUT", "/v1/memories/anna", "DELETE, GET"),
            ("PUT", "/v1/memories", "GET, POST"),
            ("PATCH", "/v1/memories/anna/snapshots/x", "DELETE"),
            ("HEAD", "/v1/memories/anna/snapshots", "GET, POST"),
            ("OPTIONS", "/v1/chat/completions", "POST"),
            ("POST", "/healthz", "GET, HEAD"),
        ]:
            answer = http.request(method, path)
            assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path
        for path in ("/healthz", "/readyz", "/"):
            assert http.head(path).status_code == 200 and http.head(path).content == b""


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"stop": [""]}, "stop=['']: stop holds an empty string"),
        ({"since": True}, "since=True: Input should be a valid string, or a valid number"),
        ({"n": 2}, "n=2: Input should be less than or equal to 1"),
        ({"max_token": 4}, "max_token: there is no such field. /openapi.json lists those that there are."),
        ({"max_completion_tokens": 4}, "max_tokens=2 beside max_completion_tokens=4: expected one of them"),
        ({"temperature": True}, "expected a number, not True"),
        ({"max_tokens": True}, "expected a number, not True"),
        ({"seed": "x"}, "seed='x': Input should be a valid integer"),
        ({"where": {"a": {"$near": 1}}}, "$near"),
        ({"memory": "../x"}, "memory='../x'"),
    ],
)
def test_a_wrong_field_is_named_in_one_line_and_others_are_not_shown(
    served: Served, wrong: dict[str, object], told: str
) -> None:
    with served.client() as http:
        answer = http.post("/v1/chat/completions", json={**ASK, **wrong})
    assert answer.status_code == 400 and told in answer.json()["detail"], answer.text
    assert "\n" not in answer.json()["detail"] and "Who am I?" not in answer.text and "pydantic" not in answer.text


def test_names_that_nobody_reads_are_refused_in_a_query_and_a_form(served: Served) -> None:
    with served.client() as http:
        http.post("/v1/memories/anna/write", json={"text": "Mine.", "source": "x"}).raise_for_status()
        for answer, told in [
            (http.get("/v1/memories/anna/sources?sorce=y"), "does not take 'sorce'. Use source."),
            (http.get("/v1/memories?limit=3"), "does not take 'limit'. It takes nothing here."),
            (http.post("/v1/memories/anna/forget?rebuild=true", json={"source": "y"}), "does not take 'rebuild'"),
            (http.post("/v1/chat/completions?memory=anna", json=ASK), "does not take 'memory'"),
            (http.post("/v1/memories/anna/search", json={"query": ""}), "query='': String should have at least 1"),
            (http.get("/v1/memories/anna/sources?texts=so"), "texts='so': Input should be a valid boolean"),
            (http.post("/v1/memories/anna/files", files=FILE, data={"sorce": "y"}), "sorce: there is no such field"),
            (http.post("/v1/memories/anna/files", files=FILE, data={"source": "y" * 4097}), "at most 4096 characters"),
            (http.post("/v1/memories/anna/files", files={"files": (None, "Hi")}), "expected files with names"),
        ]:
            assert answer.status_code == 400 and told in answer.json()["detail"], answer.text
        assert http.post("/v1/chat/completions?api-version=1", json=ASK).status_code == 200, "clients made for Azure"
        assert [one["name"] for one in http.get("/v1/memories/anna/sources").json()["sources"]] == ["x"]


def test_a_copy_names_the_field_that_is_wrong(served: Served) -> None:
    with served.client() as http:
        answer = http.post("/v1/memories", json={"name": "me", "copy_of": "../.."})
    assert answer.status_code == 400 and answer.json()["detail"].startswith("copy_of='../..'")
