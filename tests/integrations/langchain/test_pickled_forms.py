"""Chats with tools, forms and history go through a pickle, and the living object stays as it was."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel

from mplus import MemoryStore
from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat, MPlusMemoryMiddleware, memory_tools
from tests.conftest import TINY

MODEL = tiny_model(1, memory=TINY)


class Yes(BaseModel):
    """A yes or no."""

    yes: bool


SCHEMA = {"title": "Yes", "description": "Yes.", "type": "object", "properties": {"yes": {"type": "boolean"}}}
FORMS: dict[str, Callable[[MPlusChat], Any]] = {
    **{
        f"{method}, include_raw={raw}, {getattr(form, '__name__', 'dict')}": (
            lambda chat, method=method, raw=raw, form=form: chat.with_structured_output(
                form, include_raw=raw, method=method
            )
        )
        for method in ("json_schema", "function_calling")
        for raw in (True, False)
        for form in (Yes, {**SCHEMA, "required": ["yes"]})
    },
    "bind_tools": lambda chat: chat.bind_tools([Yes], tool_choice="any"),
    "without_memory": lambda chat: chat.without_memory(),
    "with_retry": lambda chat: chat.with_retry(),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_made_of_a_chat_goes_through_a_pickle(form: str, tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), memory_key="anna", max_tokens=120)
    made, before = FORMS[form](chat), dict(chat.__dict__)
    again = pickle.loads(pickle.dumps(made))
    assert chat.__dict__ == before
    found = again.invoke("Yes?")
    assert type(found) is type(made.invoke("Yes?"))
    if "include_raw=True" in form:
        assert set(found) == {"raw", "parsed", "parsing_error"} and isinstance(found["raw"], AIMessage)
        assert found["parsing_error"] is None and found["parsed"] is not None


def test_a_middleware_goes_through_a_pickle(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), memory_key="anna", max_tokens=4)
    again = pickle.loads(pickle.dumps(MPlusMemoryMiddleware(chat)))
    assert again.chat.store.root == chat.store.root and chat.store is not None


def test_the_tools_of_an_agent_go_through_a_pickle(tmp_path: Path) -> None:
    chat = MPlusChat(model=MODEL, store=MemoryStore(tmp_path), memory_key="anna", max_tokens=4)
    tools = memory_tools(chat)
    assert "Remembered as key." in tools[0].invoke({"text": "The key is under the pot.", "source": "key"})
    for again in (
        pickle.loads(pickle.dumps(tools)),
        pickle.loads(pickle.dumps(MPlusMemoryMiddleware(chat, tools=True))).tools,
    ):
        assert [tool.name for tool in again] == ["remember", "recall", "forget"]
        assert [tool.description for tool in again] == [tool.description for tool in tools]
        assert "under the pot" in again[1].invoke({"query": "key"})
