"""What these tests share: a tiny model, and generation that takes its time, fails, or says what it is told to."""

import asyncio
import time
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.embeddings import MockEmbedding

import mplus
from mplus.testing import tiny_model
from mplus_integrations.llama_index import MPlusLLM
from tests.conftest import TINY
from tests.integrations.saying import Saying

MODEL = tiny_model(memory=TINY)


class NoEmbedding(MockEmbedding):
    """An embedding that must not be asked."""

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("something was embedded")

    _get_query_embedding = _get_text_embedding = _get_vector = _fail


@pytest.fixture(autouse=True)
def _nothing_is_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_embed_model", NoEmbedding(embed_dim=2))


@pytest.fixture(autouse=True)
def _no_loop_is_left_open(request: pytest.FixtureRequest) -> None:
    """LlamaIndex's sync methods make an event loop where there was never one, and leave it open.

    A later test would be told of it. Where the thread has said that it has none, they make one and close it.
    """
    if request.node.get_closest_marker("asyncio") is None:
        asyncio.set_event_loop(None)


@pytest.fixture
def llm() -> MPlusLLM:
    return MPlusLLM(model=MODEL, max_tokens=12)


class Slow:
    """A logits processor that takes its time and counts."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, tokens: list[int], logits: Any) -> Any:
        self.steps += 1
        time.sleep(0.02)
        logits = logits.clone()
        logits[MODEL.tokenizer.eos_token_id] = -1e9
        return logits


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    counter, real = Slow(), MODEL.stream
    monkeypatch.setattr(MODEL, "stream", lambda *a, **k: real(*a, **k, processors=[counter]))
    return counter


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prompts that the model was given."""
    prompts: list[Any] = []
    real = MODEL.stream

    def stream(memory: mplus.Memory, prompt: Any, **kwargs: Any) -> Any:
        prompts.append(prompt)
        return real(memory, prompt, **kwargs)

    monkeypatch.setattr(MODEL, "stream", stream)
    return prompts


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Saying:
    return Saying(monkeypatch, MODEL)
