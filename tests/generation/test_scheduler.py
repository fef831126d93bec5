import asyncio
import copy
import gc
import json
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mplus.errors import PromptTooLongError, QueueFullError, SchedulerClosedError
from mplus.generation import engine as engine_module
from mplus.generation.constrain import Constraint
from mplus.generation.engine import Engine
from mplus.generation.scheduler import Scheduler
from mplus.memory.store import MemoryStore
from mplus.model import MPlus

PROMPTS = ("Which box is blue?", "Box", "Sentence 7 says that", "And who said so, and when, and to whom? " * 5)


@pytest.fixture
def memories(model: MPlus, text: str):
    sizes = (0, 60, 900, 350, 0, 700)
    memories = [model.new_memory() for _ in sizes]
    for number, (memory, size) in enumerate(zip(memories, sizes, strict=True)):
        if size:
            model.write(memory, text[number * 40 : number * 40 + size], source="a")
    return memories


@pytest.fixture
def scheduler(model: MPlus) -> Iterator[Scheduler]:
    with model.serve(max_running=4, max_waiting=8) as scheduler:
        yield scheduler


class Gate:
    """A processor that counts a row's tokens and holds the whole batch at one of them until it is opened."""

    def __init__(self, at: int = 1) -> None:
        self.at, self.tokens = at, 0
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, token_ids: list[int], logits):
        self.tokens += 1
        if len(token_ids) == self.at:
            self.reached.set()
            assert self.opened.wait(30)
        return logits


def test_requests_at_once_are_answered_as_alone(model: MPlus, memories, scheduler: Scheduler) -> None:
    asked = [(m, PROMPTS[n % 4], 4 + 3 * n, n % 2 * 1.2) for n, m in enumerate(memories)]
    settings = [{"max_new_tokens": size, "temperature": t, "seed": size} for _, _, size, t in asked]
    expected = [model.generate(m, p, **s) for (m, p, _, _), s in zip(asked, settings, strict=True)]
    streams = [scheduler.stream(m, p, **s) for (m, p, _, _), s in zip(asked, settings, strict=True)]
    for stream, answer in zip(streams, expected, strict=True):
        assert "".join(stream) == answer.text
        assert stream.generation.token_ids == answer.token_ids
        assert stream.generation.finish_reason == answer.finish_reason
        assert [r.source for r in stream.generation.recalled] == [r.source for r in answer.recalled]


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_come_and_go_at_any_time_are_answered_as_alone(model: MPlus, memories, seed: int) -> None:
    chance = random.Random(seed)
    asked = [(chance.choice(memories), chance.choice(PROMPTS), chance.randint(1, 12)) for _ in range(12)]
    expected = [model.generate(m, p, max_new_tokens=size).token_ids for m, p, size in asked]
    rows = [model._requests.row(m, p, max_new_tokens=size) for m, p, size in asked]
    engine = Engine(model.weights, model.tokenizer, model._requests.stop_token_ids())
    waiting = list(rows)
    while waiting or engine.rows:
        for _ in range(chance.randint(0, 2)):
            engine.add([waiting.pop(0)] if waiting else [])
        list(engine.step())
    assert [tuple(row.token_ids) for row in rows] == expected


def test_a_request_joins_while_another_runs(model: MPlus, memories, scheduler: Scheduler) -> None:
    gate = Gate(at=3)
    long = scheduler.stream(memories[2], PROMPTS[0], max_new_tokens=60, processors=[gate])
    assert gate.reached.wait(30)
    short = scheduler.stream(memories[3], PROMPTS[1], max_new_tokens=3)
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    gate.opened.set()
    assert "".join(short) == model.generate(memories[3], PROMPTS[1], max_new_tokens=3).text
    assert gate.tokens < 60, "it did not wait for the long one"
    assert "".join(long) == model.generate(memories[2], PROMPTS[0], max_new_tokens=60).text


def test_a_full_queue_raises_queue_full_error(model: MPlus, memories) -> None:
    gate = Gate()
    with model.serve(max_running=1, max_waiting=1) as scheduler:
        running = scheduler.stream(memories[1], PROMPTS[1], max_new_tokens=3, processors=[gate])
        assert gate.reached.wait(30)
        waiting = scheduler.stream(memories[1], PROMPTS[1], max_new_tokens=2)
        with pytest.raises(QueueFullError, match="max_waiting=1"):
            scheduler.generate(memories[1], PROMPTS[1])
        gate.opened.set()
        assert list(running) and list(waiting)
        assert scheduler.generate(memories[1], PROMPTS[1], max_new_tokens=2).completion_tokens == 2


@pytest.mark.parametrize("where", ["held", "loaded from a store"])
def test_many_requests_of_one_memory_do_not_delay_others(model: MPlus, memories, tmp_path: Path, where: str) -> None:
    order, store = list[str](), MemoryStore(tmp_path)
    for number in (1, 2, 3):
        store.put(str(number), memories[number])

    def noting(name: str):
        return lambda tokens, logits: order.append(name) or logits

    gate = Gate(at=0)
    with model.serve(max_running=1) as scheduler:
        first = scheduler.stream(memories[0], "x", max_new_tokens=1, processors=[gate])
        assert gate.reached.wait(30)
        asked = [
            scheduler.stream(memory, "x", max_new_tokens=1, processors=[noting(name)])
            for name, memory in zip(
                "aaabac",
                [memories[n] if where == "held" else store.load(str(n), model) for n in (1, 1, 1, 2, 1, 3)],
                strict=True,
            )
        ]
        gate.opened.set()
        for stream in (first, *asked):
            list(stream)
    assert "".join(order) == "abcaaa"


def test_cancelling_ends_only_its_own_row(model: MPlus, memories, scheduler: Scheduler) -> None:
    gate = Gate(at=5)
    other = scheduler.stream(memories[3], PROMPTS[0], max_new_tokens=20)
    stream = scheduler.stream(memories[2], PROMPTS[0], max_new_tokens=200, processors=[gate])
    assert gate.reached.wait(30)
    stream.cancel()
    gate.opened.set()
    list(stream)
    assert stream.generation.finish_reason == "cancelled"
    assert gate.tokens <= 7
    assert "".join(other) == model.generate(memories[3], PROMPTS[0], max_new_tokens=20).text


def test_a_stream_without_references_is_cancelled(memories, scheduler: Scheduler) -> None:
    gate = Gate(at=2)
    stream = scheduler.stream(memories[2], PROMPTS[0], max_new_tokens=500, processors=[gate])
    assert gate.reached.wait(30)
    del stream
    gc.collect()
    gate.opened.set()
    until(lambda: scheduler.running == 0)
    assert gate.tokens <= 4


def test_cancelled_or_late_while_waiting_ends_without_an_answer(model: MPlus, memories) -> None:
    gate = Gate()
    with model.serve(max_running=1) as scheduler:
        running = scheduler.stream(memories[1], PROMPTS[1], max_new_tokens=4, processors=[gate])
        assert gate.reached.wait(30)
        cancelled = scheduler.stream(memories[1], PROMPTS[1])
        late = scheduler.stream(memories[2], PROMPTS[1], timeout=0.01)
        cancelled.cancel()
        time.sleep(0.02)
        gate.opened.set()
        for stream in (cancelled, late):
            assert list(stream) == []
            assert stream.generation.finish_reason == "cancelled"
        assert list(running)


def test_an_error_ends_its_own_request_only(model: MPlus, memories, scheduler: Scheduler) -> None:
    def fail(tokens: list[int], logits):
        if len(tokens) == 3:
            raise RuntimeError("broken processor")
        return logits

    good = scheduler.stream(memories[2], PROMPTS[0], max_new_tokens=12)
    bad = scheduler.stream(memories[3], PROMPTS[0], max_new_tokens=12, processors=[fail])
    with pytest.raises(RuntimeError, match="broken processor"):
        list(bad)
    assert "".join(good) == model.generate(memories[2], PROMPTS[0], max_new_tokens=12).text
    with pytest.raises(PromptTooLongError):
        scheduler.generate(memories[2], "x" * 5000)
    with pytest.raises(ValueError, match="max_new_tokens"):
        scheduler.generate(memories[2], "x", max_new_tokens=0)


def test_a_prompt_that_cannot_be_read_ends_its_own_request_only(
    model: MPlus, memories, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine_module.prefill_steps

    def fail(weights, requests, **options):
        if any(request is rows[1].request for request in requests):
            raise OSError("a shard is gone")
        return (yield from real(weights, requests, **options))

    rows = [model._requests.row(memories[n], PROMPTS[0], max_new_tokens=5) for n in (1, 3, 2)]
    expected = [model.generate(memories[n], PROMPTS[0], max_new_tokens=5).token_ids for n in (1, 2)]
    monkeypatch.setattr(engine_module, "prefill_steps", fail)
    engine = Engine(model.weights, model.tokenizer, model._requests.stop_token_ids())
    engine.add(rows)
    while engine.rows:
        list(engine.step())
    assert isinstance(rows[1].error, OSError)
    assert [tuple(rows[n].token_ids) for n in (0, 2)] == expected


def test_an_error_of_the_model_reaches_every_request(
    memories, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self, tokens):
        raise MemoryError("no room for the next token")

    with monkeypatch.context() as patch:
        patch.setattr("mplus.read.decode.Reading.decode", fail)
        streams = [scheduler.stream(memory, PROMPTS[1], max_new_tokens=9) for memory in memories[1:4]]
        for stream in streams:
            with pytest.raises(MemoryError, match="no room"):
                list(stream)
    assert scheduler.generate(memories[1], PROMPTS[1], max_new_tokens=2).completion_tokens == 2


def test_constraints_hold_row_by_row(memories, scheduler: Scheduler) -> None:
    schemas = [
        {"type": "object", "properties": {name: {"enum": values}}, "required": [name], "additionalProperties": False}
        for name, values in (("box", ["red", "blue"]), ("count", [1, 2, 3]))
    ]
    streams = [
        scheduler.stream(memory, PROMPTS[0], max_new_tokens=60, constraint=Constraint.json_schema(schema))
        for memory, schema in zip(memories[1:3], schemas, strict=True)
    ]
    free = scheduler.stream(memories[3], PROMPTS[0], max_new_tokens=10)
    box, count = (json.loads("".join(stream)) for stream in streams)
    assert box["box"] in ("red", "blue") and count["count"] in (1, 2, 3)
    assert free and "".join(free) == free.generation.text


def test_an_idle_scheduler_holds_no_thread(memories, scheduler: Scheduler) -> None:
    for _ in range(2):
        scheduler.generate(memories[1], PROMPTS[1], max_new_tokens=2)
        until(lambda: not any(t.name == "mplus-scheduler" for t in threading.enumerate()))


def test_closing_cancels_and_refuses(model: MPlus, memories) -> None:
    scheduler = model.serve(max_running=1)
    streams = [scheduler.stream(memories[2], PROMPTS[0], max_new_tokens=1000) for _ in range(3)]
    next(streams[0])
    scheduler.close()
    for stream in streams:
        list(stream)
        assert stream.generation.finish_reason == "cancelled"
    with pytest.raises(SchedulerClosedError, match="serve"):
        scheduler.generate(memories[2], PROMPTS[0])


@pytest.mark.parametrize(("name", "value"), [("max_running", 0), ("max_waiting", -1)])
def test_limits_below_their_least_are_refused(model: MPlus, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        model.serve(**{name: value})


def test_what_was_recalled_is_noted(model: MPlus, text: str, scheduler: Scheduler) -> None:
    def frequencies(ask) -> list[float]:
        memory = model.new_memory()
        model.write(memory, text, source="a")
        ask(memory)
        return memory.state.tracks[0].long_term.provenance.recall_frequencies.tolist()

    expected = frequencies(lambda memory: model.generate(memory, PROMPTS[0], max_new_tokens=2))
    assert frequencies(lambda memory: None) != expected
    assert frequencies(lambda memory: scheduler.generate(memory, PROMPTS[0], max_new_tokens=2)) == expected
    again = frequencies(lambda memory: asyncio.run(scheduler.agenerate(memory, PROMPTS[0], max_new_tokens=2)))
    assert again == expected


# --- event loops --------------------------------------------------------------------------------------


async def test_async_requests_leave_the_event_loop_free(model: MPlus, memories, scheduler: Scheduler) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    answers = await asyncio.gather(
        *(scheduler.agenerate(memory, PROMPTS[0], max_new_tokens=15) for memory in memories[:4])
    )
    ticking.cancel()
    expected = [model.generate(memory, PROMPTS[0], max_new_tokens=15) for memory in memories[:4]]
    assert [a.token_ids for a in answers] == [e.token_ids for e in expected]
    assert ticks > 5


async def test_cancelling_a_task_cancels_its_request(memories, scheduler: Scheduler) -> None:
    gate = Gate(at=4)
    task = asyncio.create_task(scheduler.agenerate(memories[2], PROMPTS[0], max_new_tokens=500, processors=[gate]))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.opened.set()
    await asyncio.to_thread(until, lambda: scheduler.running == 0)
    assert gate.tokens <= 6


async def test_an_error_reaches_an_async_reader(memories, scheduler: Scheduler) -> None:
    def fail(tokens: list[int], logits):
        raise RuntimeError("broken processor")

    stream = await scheduler.astream(memories[2], PROMPTS[0], processors=[fail])
    with pytest.raises(RuntimeError, match="broken processor"):
        [piece async for piece in stream]
    assert [piece async for piece in stream] == []


async def test_an_asgi_app_streams_answers(model: MPlus, memories, scheduler: Scheduler) -> None:
    async def app(scope, receive, send) -> None:
        body = json.loads((await receive())["body"])
        try:
            stream = await scheduler.astream(memories[body["user"]], body["prompt"], max_new_tokens=8)
        except QueueFullError as error:
            await send({"type": "http.response.start", "status": 429, "headers": []})
            await send({"type": "http.response.body", "body": str(error).encode()})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with stream:
            async for piece in stream:
                await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def ask(user: int) -> tuple[int, str]:
        sent: list[dict] = []

        async def receive() -> dict:
            return {"type": "http.request", "body": json.dumps({"user": user, "prompt": PROMPTS[0]}).encode()}

        async def send(message: dict) -> None:
            sent.append(message)

        await app({"type": "http"}, receive, send)
        return sent[0]["status"], b"".join(message["body"] for message in sent[1:]).decode()

    answers = await asyncio.gather(*(ask(user) for user in range(4)))
    for user, answer in enumerate(answers):
        assert answer == (200, model.generate(memories[user], PROMPTS[0], max_new_tokens=8).text)


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_scheduler_stays_in_its_process(send: Callable[[Any], Any], model: MPlus) -> None:
    with model.serve() as scheduler, pytest.raises(ValueError, match="neither pickled nor copied"):
        send(scheduler)
