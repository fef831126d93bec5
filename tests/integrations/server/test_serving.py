"""Many users at once, cut streams, a full queue, kills; what is watched and what is logged."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import mplus
from mplus.memory.state import MemoryState
from mplus_integrations.server.logs import Line
from mplus_integrations.server.running import run
from mplus_integrations.server.service import Service
from mplus_integrations.server.settings import ServeSettings
from tests.integrations.server.conftest import MODEL, Served, Serving
from tests.reliability.processes import fork

DOGS = ["Biscuit", "Pancake", "Waffle", "Pretzel", "Noodle", "Muffin", "Pickle", "Crumpet"]
QUESTION = "What is my dog called?"


class Steps:
    """Counts the steps of the model, slows them, and lets no answer end."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.count, self.seconds = 0, seconds

    def __call__(self, _: Any, logits: torch.Tensor) -> torch.Tensor:
        self.count += 1
        time.sleep(self.seconds)
        return logits.index_fill(0, torch.tensor([260]), float("-inf"))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Every answer of a server runs through these."""
    from mplus_integrations.server import openai_api

    made = Steps(0.01)
    monkeypatch.setattr(openai_api, "_penalties", lambda _: [made])
    return made


def test_eight_users_at_once_hear_of_their_own_dogs_alone(served: Served, tiny: mplus.MPlus) -> None:
    expected: dict[str, str] = {}
    for dog in DOGS:
        memory = tiny.new_memory()
        tiny.write(memory, f"My dog is called {dog}. " * 4, source="dog")
        prompt = [{"role": "user", "content": QUESTION}]
        expected[dog] = tiny.generate(memory, prompt, max_new_tokens=4, gate="always").text

    def use(dog: str) -> tuple[str, list[str]]:
        with served.client() as http:
            body = {"text": f"My dog is called {dog}. " * 4, "source": "dog"}
            http.post(f"/v1/memories/{dog}/write", json=body).raise_for_status()
        answer = served.chat(QUESTION, memory=dog, gate="always").json()
        return answer["choices"][0]["message"]["content"], [one["memory"] for one in answer["mplus"]["recalled"]]

    with ThreadPoolExecutor(8) as threads:
        answers = dict(zip(DOGS, threads.map(use, DOGS), strict=True))
    assert {dog: text for dog, (text, _) in answers.items()} == expected
    assert all(set(memories) == {dog} for dog, (_, memories) in answers.items())


def test_answers_count_the_tokens_of_sources_once_for_each_state_of_a_memory(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the server adds to an answer of one token, half was counting them anew, four times an answer."""
    counted = vars(MemoryState)["source_counts"]
    count, states = counted.func, list[int]()

    def counting(state: MemoryState) -> Any:
        states.append(id(state))
        return count(state)

    monkeypatch.setattr(counted, "func", counting)
    with served.client() as http:
        http.post("/v1/memories/me/write", json={"text": "Plums are blue.", "source": "plum"}).raise_for_status()
        served.chat("What of plums?", memory="me").raise_for_status()
        states.clear()
        for _ in range(3):
            served.chat("What of plums?", memory="me").raise_for_status()
    assert states == []


def test_an_answer_and_an_operation_take_one_thread_each(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus_integrations import worker
    from mplus_integrations.server import service

    taken: list[str] = []
    for module in (worker, service):
        turn = module.in_thread
        monkeypatch.setattr(module, "in_thread", lambda *a, turn=turn, **kw: taken.append("") or turn(*a, **kw))
    with served.client() as http:
        http.post("/v1/memories/me/write", json={"text": "Plums are blue.", "source": "plum"}).raise_for_status()
        assert len(taken) == 1
        served.chat("What of plums?", memory="me").raise_for_status()
        assert len(taken) == 2
        acts = http.get("/v1/memories/me/activity").json()["acts"]
    assert [act["operation"] for act in acts] == ["write", "chat"] and all(act["nbytes"] > 1000 for act in acts)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_answer(served: Served, steps: Steps, stream: bool) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 2000, "stream": stream}
    with served.client() as http:
        if stream:
            with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=body, timeout=1.0)
    seen, still, end = -1, 0, time.monotonic() + 60
    while still < 10 and time.monotonic() < end:
        time.sleep(0.1)
        still, seen = (still + 1, seen) if seen == steps.count else (0, steps.count)
    assert still == 10 and 0 < steps.count < 1500
    assert served.service.admission.inside == 0


@pytest.mark.parametrize("held_back", [False, True])
def test_a_stream_that_is_left_early_has_its_tokens_counted(serving: Serving, steps: Steps, held_back: bool) -> None:
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 2000}
    if held_back:  # a call is told when it is whole, so nothing has been sent when the client goes
        function = {"name": "f", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}
        body |= {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        steps.seconds = 0.05  # a whole call has some fifty tokens
    with serving() as served, served.client() as http:
        if held_back:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json={**body, "stream": True}, timeout=1.0)
        else:
            with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                next(answer.iter_lines())
        end = time.monotonic() + 60
        while served.service.admission.inside and time.monotonic() < end:
            time.sleep(0.05)
        shown = http.get("/metrics").text
    tokens = {
        kind: float(shown.split(f'mplus_tokens_total{{kind="{kind}"}} ')[1].split()[0]) for kind in ("prompt", "answer")
    }
    assert tokens["prompt"] > 10 and 0 < tokens["answer"] < 1500


def test_an_answer_that_is_whole_is_not_counted_as_cut(serving: Serving) -> None:
    with serving() as served:
        for stream in (False, True):
            assert served.chat("Who?", stream=stream).status_code == 200
        with served.client() as http:
            assert "mplus_answers_cut_total 0.0" in http.get("/metrics").text


def test_a_full_queue_is_a_429_that_says_when_to_come_again(serving: Serving, steps: Steps) -> None:
    with serving(max_running=1, max_waiting=0, max_tokens=3000) as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 3000, "stream": True}
        with served.client() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()  # held, since a dropped iterator closes the connection
            assert next(lines)
            refused = served.chat("And me?")
            assert refused.status_code == 429 and refused.json()["code"] == "queue_full"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            with served.client() as other:
                assert other.get("/healthz").status_code == 200


def test_what_is_written_does_not_wait_for_many_answers(serving: Serving, steps: Steps) -> None:
    steps.seconds = 0.05
    with serving(max_running=1, max_tokens=2000, timeout=6) as served, ThreadPoolExecutor(80) as users:
        asked = [users.submit(served.chat, "Go on.", max_tokens=2000) for _ in range(80)]
        end = time.monotonic() + 30
        while served.service.admission.inside < 80 and time.monotonic() < end:
            time.sleep(0.05)
        with served.client() as http:
            written = http.post("/v1/memories/anna/write", json={"text": "The key is under the mat."})
        assert written.status_code == 200 and served.service.admission.inside > 70
        assert {one.result().json()["code"] for one in asked} == {"cut_off"}


def test_an_answer_that_is_cut_off_is_an_error_and_not_a_short_answer(serving: Serving, steps: Steps) -> None:
    steps.seconds = 0.2
    with serving(timeout=0.5, max_tokens=2000) as served:
        assert served.chat("Go on.", max_tokens=2000).json()["code"] == "cut_off"
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 2000, "stream": True}
        with served.client() as http:
            events = http.post("/v1/chat/completions", json=body)
        if events.status_code == 200:
            last = [line for line in events.text.split("\n\n") if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cut_off"


def test_health_and_metrics_tell_what_happens_and_no_names(served: Served) -> None:
    assert served.chat("Hello", memory="anna-secret").status_code == 200
    with served.client() as http:
        http.post("/v1/memories/anna-secret/write", json={"text": "Plums are blue.", "source": "plum"})
        assert http.get("/readyz").json() == {"ready": True} and http.get("/healthz").json() == {"status": "ok"}
        shown = http.get("/metrics").text
    assert 'mplus_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in shown
    assert 'mplus_tokens_total{kind="written"}' in shown and "mplus_first_token_seconds_bucket" in shown
    assert 'mplus_memory_operations_total{operation="write",result="ok"}' in shown
    assert "anna" not in shown and "plum" not in shown


def test_log_lines_hold_no_contents_names_or_keys(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert served.chat("My password is plum.", "sk-secret-key").status_code == 200
        with served.client() as http:
            http.get("/v1/memories/anna-secret/sources")
            http.post("/v1/memories/anna-secret/write", json={"text": "plum", "sauce": "plum"})
    lines = [Line("json").format(record) for record in caplog.records if record.name == "mplus.serve"]
    found = [json.loads(line) for line in lines]
    assert {"request"} == {line["event"] for line in found} and len(found) == 3
    assert [line["status"] for line in found] == [200, 404, 400]
    assert found[0]["route"] == "/v1/chat/completions" and found[1]["route"] == "/v1/memories/{name}/sources"
    assert not any(secret in line for line in lines for secret in ("plum", "anna", "sk-secret"))


def test_lines_of_libraries_are_json_and_say_where_and_not_what() -> None:
    code = """
import logging
from mplus_integrations.server.logs import set_up_logs
set_up_logs("json")
logging.basicConfig(format="%(message)s", handlers=[logging.StreamHandler()])  # as mcp does
logging.getLogger("python_multipart").warning("Expected boundary, got %s", "plum")
try:
    raise ValueError("plum")
except ValueError:
    logging.getLogger("asyncio").exception("Task of plum")
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    found = [json.loads(line) for line in told.splitlines()]
    assert [(line["event"], line["logger"]) for line in found] == [
        ("library", "python_multipart"),
        ("library", "asyncio"),
    ]
    assert found[1]["error"] == "ValueError" and "plum" not in told and "<string>:6" in found[0]["place"]


def test_what_nobody_expected_is_a_500_that_tells_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("about plums")

    monkeypatch.setattr(served.service.memories, "list", fail)
    with served.client() as http:
        answer = http.get("/v1/memories")
    assert answer.status_code == 500 and answer.json()["code"] == "internal" and "plums" not in answer.text
    lines = [Line("json").format(record) for record in caplog.records]
    assert any('"RuntimeError"' in line for line in lines) and not any("plums" in line for line in lines)


def test_spans_follow_the_conventions_and_hold_contents_only_where_asked(serving: Serving, tiny: mplus.MPlus) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    for contents in (False, True):
        exporter, provider = InMemorySpanExporter(), trace.TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with serving(telemetry_contents=contents) as served:
            served.service.telemetry._tracer = provider.get_tracer("test")
            served.chat("Are plums blue?", memory="anna", max_tokens=3)
            with served.client() as http:
                http.post("/v1/memories/anna/search", json={"query": "plums"})
        chat, search = exporter.get_finished_spans()
        assert "error.type" not in chat.attributes, "an answer that is whole has no error"
        assert chat.name == f"chat {MODEL}" and chat.attributes["gen_ai.operation.name"] == "chat"
        assert chat.attributes["gen_ai.usage.output_tokens"] <= 3 and chat.attributes["gen_ai.request.max_tokens"] == 3
        assert search.attributes["gen_ai.operation.name"] == "search_memory"
        told = str([dict(chat.attributes), dict(search.attributes)])
        assert ("plums" in told) == ("anna" in told) == contents


def start(folder: Path, port: int, model: mplus.MPlus, **more: Any) -> int:
    """A server in a process of its own, a fork of this one, ready; returns its process id."""
    settings = ServeSettings(**{"model": MODEL, "memories": folder, "port": port, "max_tokens": 8, **more})
    process = fork(lambda: run(settings, model=model))
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert os.waitpid(process, os.WNOHANG) == (0, 0), "the server ended"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return process
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("not ready")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="servers are forks, which this system does not have")
def test_what_was_acknowledged_survives_a_kill_and_a_stop_answers_who_is_inside(
    tmp_path: Path, tiny: mplus.MPlus, unused_port: int
) -> None:
    process, acknowledged = start(tmp_path, unused_port, tiny), list[str]()
    url = f"http://127.0.0.1:{unused_port}/v1"

    def write() -> None:
        try:
            for number in range(10_000):
                body = {"text": f"Note number {number}.", "source": f"note-{number}"}
                httpx.post(f"{url}/memories/me/write", json=body, timeout=60).raise_for_status()
                acknowledged.append(f"note-{number}")
        except httpx.TransportError:
            pass

    writing = threading.Thread(target=write)
    writing.start()
    while len(acknowledged) < 3:
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    writing.join()
    process = start(tmp_path, unused_port, tiny)
    sources = httpx.get(f"{url}/memories/me/sources", timeout=60).json()["sources"]
    assert set(acknowledged) <= {source["name"] for source in sources}
    body = {"model": MODEL, "prompt": "Go on", "max_tokens": 400, "logit_bias": {"260": -100}, "stream": True}
    with httpx.stream("POST", f"{url}/completions", json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(process, signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]", "a stop waits for the answers inside"
    assert os.waitpid(process, 0)[1] in (0, signal.SIGTERM), "it ends as it was told to"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="servers are forks, which this system does not have")
def test_a_stream_that_outlasts_a_stop_ends_with_an_error(tmp_path: Path, tiny: mplus.MPlus, unused_port: int) -> None:
    process = start(tmp_path, unused_port, tiny, shutdown_seconds=0)
    body = {"model": MODEL, "prompt": "Go on", "max_tokens": 100_000, "logit_bias": {"260": -100}, "stream": True}
    url = f"http://127.0.0.1:{unused_port}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        next(lines)
        os.kill(process, signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cut_off"
    assert os.waitpid(process, 0)[1] in (0, signal.SIGTERM)


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mplus_integrations.server import running

    monkeypatch.setattr(running, "set_up_logs", lambda _: None)  # other tests read what is logged
    with pytest.raises(mplus.MPlusError):
        running.run(ServeSettings(model=str(tmp_path / "none"), memories=tmp_path, port=0))


def test_the_model_is_loaded_in_the_numbers_that_the_settings_say(tmp_path: Path, tiny: mplus.MPlus) -> None:
    tiny.save_pretrained(tmp_path / "model")
    service = Service(ServeSettings(model=str(tmp_path / "model"), memories=tmp_path / "memories", dtype="bfloat16"))
    service.load()
    assert service.model.weights.backbone.dtype == torch.bfloat16
    service.close()
