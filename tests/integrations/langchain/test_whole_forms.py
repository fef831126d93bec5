"""A form is enforced whatever its schema is, and an answer that lacks it raises."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import BaseMessage
from pydantic import BaseModel, RootModel

from mplus.testing import tiny_model
from mplus_integrations.langchain import MPlusChat
from tests.conftest import TINY

MODEL = tiny_model(memory=TINY)
AN_A: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": ["b"]}},
    "required": ["a"],
    "additionalProperties": False,
}
CLOSED: dict[str, dict[str, Any]] = {
    "a list": {"title": "x", "type": "array", "items": {"enum": ["b"]}, "minItems": 1, "maxItems": 1},
    "a choice": {"title": "x", "enum": ["b"]},
    "a constant": {"title": "x", "const": "b"},
    "one of several": {"title": "x", "anyOf": [AN_A, {"const": "b"}]},
    "all of several": {"title": "x", "allOf": [AN_A]},
    "a text": {"title": "x", "type": "string", "maxLength": 3},
}
FOUND: dict[str, Any] = {"a list": [["b"]], "all of several": [{"a": "b"}], "one of several": ["b", {"a": "b"}]}


class Person(BaseModel):
    """A person."""

    name: str


class Numbers(RootModel[list[int]]):
    """Numbers."""


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=60)


@pytest.mark.parametrize("name", CLOSED)
def test_a_schema_without_properties_is_enforced(name: str, chat: MPlusChat) -> None:
    found = chat.with_structured_output(CLOSED[name]).invoke("Which?")
    assert found in FOUND.get(name, ["b"]) if name != "a text" else isinstance(found, str)


def test_a_class_that_is_no_object_is_enforced(chat: MPlusChat) -> None:
    bound: Any = chat.with_structured_output(Numbers)
    assert bound.first.kwargs["response_format"]["json_schema"]["schema"]["type"] == "array"
    with pytest.raises(ValueError, match="expected an object that names its properties"):
        chat.with_structured_output(Numbers, method="function_calling")


OPEN: list[dict[str, Any]] = [
    {"title": "x", "type": "object"},
    {"title": "x", "type": "object", "additionalProperties": True},
    {"title": "x"},
]


@pytest.mark.parametrize("schema", OPEN, ids=str)
@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_a_schema_that_says_nothing_is_refused(schema: dict[str, Any], method: Any, chat: MPlusChat) -> None:
    with pytest.raises(ValueError, match="expected"):
        chat.with_structured_output(schema, method=method)


def test_a_call_that_was_asked_for_and_cut_off_before_it_began_raises(chat: MPlusChat) -> None:
    for choice in ("any", "required", True, "Person"):
        bound = chat.bind_tools([Person], tool_choice=choice, max_tokens=4)
        for ask in (bound.invoke, lambda asked, bound=bound: list(bound.stream(asked))):
            with pytest.raises(ValueError, match=r"one was asked for.*'length' after 4 tokens"):
                ask("Who?")
        with pytest.raises(ValueError, match="one was asked for"):
            asyncio.run(bound.ainvoke("Who?"))
    free: BaseMessage = chat.bind_tools([Person], max_tokens=4).invoke("Who?")
    assert free.response_metadata["finish_reason"] == "length", "an answer in text may be cut"


def test_an_empty_stop_string_is_refused_as_in_a_list(chat: MPlusChat) -> None:
    for stop in ("", [""]):
        with pytest.raises(ValueError, match="would end every answer at once"):
            chat.invoke("Who?", stop=stop)  # pyright: ignore[reportArgumentType]
    assert chat.invoke("Who?", stop=[], max_tokens=1).content is not None
