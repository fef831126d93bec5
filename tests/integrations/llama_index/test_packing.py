"""Sizes of prompts in ``Settings`` have no effect on answers from latents, and are not passed over in silence."""

import warnings
from typing import Any

import pytest
from llama_index.core import Document, Settings
from llama_index.core.indices.prompt_helper import PromptHelper

from mplus_integrations.llama_index import MPlusIndex, MPlusLLM


@pytest.fixture
def index(llm: MPlusLLM, monkeypatch: pytest.MonkeyPatch) -> MPlusIndex:
    for name in ("_llm", "_prompt_helper", "_chat_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)
    return MPlusIndex.from_documents([Document(text="The spare key is in the blue teapot.")], llm=llm)


def _asked(engine: Any) -> None:
    engine.query("key") if hasattr(engine, "query") else engine.chat("key")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context_window", 1000),
        ("num_output", 17),
        ("chat_context_window", 1000),
        ("prompt_helper", PromptHelper(chunk_size_limit=50)),
    ],
)
def test_settings_that_do_nothing_are_named(index: MPlusIndex, llm: MPlusLLM, name: str, value: Any) -> None:
    Settings.llm = llm
    setattr(Settings, name, value)
    for make in (index.as_query_engine, index.as_chat_engine, lambda: index.as_chat_engine("condense_question")):
        with pytest.warns(UserWarning, match=r"Settings\.num_output.*no effect.*max_tokens"):
            _asked(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.as_query_engine(recall="hybrid")


def test_looking_at_settings_changes_nothing(index: MPlusIndex, llm: MPlusLLM) -> None:
    Settings.llm = llm
    assert Settings.context_window and Settings.num_output == llm.max_tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.as_query_engine().query("key")
