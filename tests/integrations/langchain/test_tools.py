"""Tools and structured output, beyond the acceptance lines."""

import asyncio
import time
from typing import Any

import pytest
import torch
from langchain_core.messages import AIMessageChunk

from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat
from tests.conftest import TINY
from tests.integrations.langchain.conftest import add

MODEL = tiny_model(1, memory=TINY)


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=600)


def test_leaving_while_a_call_is_held_back_stops_generation(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def slow(tokens: list[int], logits: Any) -> Any:
        steps.append(1)
        time.sleep(0.02)
        return logits

    real = chat.loaded.stream
    monkeypatch.setattr(chat.loaded, "stream", lambda *a, **k: real(*a, **k, processors=[slow]))
    bound = chat.bind_tools([add], tool_choice="add")

    async def leave(streamed: bool) -> None:
        async def read() -> None:
            if streamed:
                async for _ in bound.astream("hi"):
                    pass
            else:
                await bound.ainvoke("hi")

        steps.clear()
        task = asyncio.create_task(read())
        while len(steps) < 3:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for streamed in (True, False):
        asyncio.run(leave(streamed))
        seen = len(steps)
        time.sleep(0.2)
        assert len(steps) <= seen + 2 < 40


async def test_an_async_stream_ends_with_the_same_last_chunk(chat: MPlusChat) -> None:
    for bound in (chat.bind_tools([add], tool_choice="add"), chat.bind(max_tokens=8)):
        expected = list(bound.stream("hi"))
        found = [chunk async for chunk in bound.astream("hi")]
        assert len(found) == len(expected)
        assert found[-1].usage_metadata == expected[-1].usage_metadata is not None
        assert [c["args"] for c in found[-1].tool_calls] == [c["args"] for c in expected[-1].tool_calls]


def test_a_timeout_ends_an_answer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(tokens: list[int], logits: Any) -> Any:
        time.sleep(0.02)
        return logits.index_fill(0, torch.tensor([MODEL.tokenizer.eos_token_id]), float("-inf"))

    chat = MPlusChat(model=MODEL, max_tokens=600, timeout=0.1)
    real = MODEL.stream
    monkeypatch.setattr(MODEL, "stream", lambda *a, **k: real(*a, **k, processors=[slow]))
    answer = chat.invoke("hi")
    assert answer.response_metadata["finish_reason"] == "cancelled"
    with pytest.raises(ValueError, match="timeout"):
        MPlusChat(model=MODEL, timeout=-1).invoke("hi")


def test_words_before_a_call_are_the_same_streamed_or_not(chat: MPlusChat, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'Sure, one moment.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    wanted = [*MODEL.tokenizer(said)["input_ids"], MODEL.tokenizer.eos_token_id]

    def dictate(tokens: list[int], logits: Any) -> Any:
        forced = torch.full_like(logits, float("-inf"))
        forced[wanted[len(tokens)]] = 0
        return forced

    real = chat.loaded.stream
    monkeypatch.setattr(chat.loaded, "stream", lambda *a, **k: real(*a, **k, processors=[dictate]))
    bound = chat.bind_tools([add])
    answer = bound.invoke("hi")
    total = AIMessageChunk("")
    for chunk in bound.stream("hi"):
        total += chunk
    assert answer.content == total.content == "Sure, one moment.\n"
    assert answer.tool_calls[0]["args"] == total.tool_calls[0]["args"] == {"a": 1, "b": 2}


def test_a_call_cut_short_is_an_invalid_call(chat: MPlusChat) -> None:
    answer = chat.bind_tools([add], tool_choice="add").invoke("hi", max_tokens=25)
    assert answer.tool_calls == [] and answer.invalid_tool_calls[0]["error"]
    total = AIMessageChunk("")
    for chunk in chat.bind_tools([add], tool_choice="add").stream("hi", max_tokens=25):
        total += chunk
    assert total.tool_calls == [] and total.invalid_tool_calls[0]["args"] == answer.invalid_tool_calls[0]["args"]
