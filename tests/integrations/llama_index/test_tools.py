"""Tools and structured output, from weights that make no sense: the form is right all the same."""

import asyncio
import json
from enum import Enum
from typing import Any, Literal

import pytest
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from mplus_integrations.llama_index import MPlusLLM
from tests.integrations.llama_index.conftest import Saying


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def greet(name: str = Field(max_length=8)) -> str:
    """Greet somebody."""
    return f"Hello {name}"


def anything(data: dict[str, Any]) -> str:
    """Take anything."""
    return str(data)


TOOLS = [FunctionTool.from_defaults(add), FunctionTool.from_defaults(greet)]
QUESTION = "What is 1 + 2?"


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)


class Address(BaseModel):
    """An address."""

    street: str = Field(max_length=10)
    number: int | None = Field(ge=1, le=99)


class Household(BaseModel):
    """People under one roof."""

    kind: Literal["flat", "house"]
    address: Address
    people: list[Person] = Field(max_length=2)
    warm: bool
    rent: float = Field(ge=0, le=10)


class Colour(Enum):
    """Two of them."""

    red = "red"
    blue = "blue"


class Painted(BaseModel):
    """With an enum."""

    colour: Colour


# --- acceptance 6 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["any", "required", True])
def test_acceptance_6_any_tool_is_called_where_one_must_be(llm: MPlusLLM, choice: Any) -> None:
    response = llm.chat_with_tools(TOOLS, QUESTION, tool_choice=choice, max_tokens=300)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name in ("add", "greet") and call.tool_id
    assert llm.chat_with_tools(TOOLS, QUESTION, tool_required=True, max_tokens=300).message.blocks


@pytest.mark.parametrize("choice", ["greet", {"type": "function", "function": {"name": "greet"}}, {"name": "greet"}])
def test_acceptance_6_a_named_tool_is_called(llm: MPlusLLM, choice: Any) -> None:
    response = llm.chat_with_tools(TOOLS, QUESTION, tool_choice=choice, max_tokens=300)
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "greet" and set(call.tool_kwargs) == {"name"}


def test_acceptance_6_auto_answers_in_words_or_with_a_valid_call(llm: MPlusLLM, say: Saying) -> None:
    assert not llm.get_tool_calls_from_response(llm.chat_with_tools(TOOLS, QUESTION), error_on_no_tool_call=False)
    calls = [f'<tool_call>\n{{"name": "add", "arguments": {{"a": {n}, "b": 2}}}}\n</tool_call>' for n in (1, 2)]
    say("Let me see. " + "\n".join(calls))
    response = llm.chat_with_tools(TOOLS, QUESTION, allow_parallel_tool_calls=True)
    found = llm.get_tool_calls_from_response(response)
    assert [call.tool_kwargs for call in found] == [{"a": 1, "b": 2}, {"a": 2, "b": 2}]
    assert len({call.tool_id for call in found}) == 2 and response.message.content == "Let me see. "
    say("\n".join(calls))
    assert len(llm.get_tool_calls_from_response(llm.chat_with_tools(TOOLS, QUESTION))) == 1


def test_acceptance_6_none_calls_nothing(llm: MPlusLLM, asked: list[Any]) -> None:
    response = llm.chat_with_tools(TOOLS, QUESTION, tool_choice="none")
    assert not any(isinstance(block, ToolCallBlock) for block in response.message.blocks)
    with pytest.raises(ValueError, match="at least one tool call"):
        llm.get_tool_calls_from_response(response)


@pytest.mark.parametrize("schema", [Person, Household, Painted])
def test_acceptance_6_structured_output_validates_for_every_kind_of_schema(
    llm: MPlusLLM, schema: type[BaseModel]
) -> None:
    prompt = PromptTemplate("Invent something for {name}, with {{braces}}.")
    settings = {"max_tokens": 700}
    *partial, last = llm.stream_structured_predict(schema, prompt, settings, name="Ann")
    assert isinstance(last, schema) and partial


@pytest.mark.filterwarnings("ignore:The `json` method:DeprecationWarning")  # LlamaIndex's own
def test_acceptance_6_structured_output_validates_by_every_way(llm: MPlusLLM) -> None:
    prompt, settings = PromptTemplate("Invent {name}."), {"max_tokens": 200}

    async def predicted() -> list[Any]:
        one = await llm.astructured_predict(Person, prompt, settings, name="Ann")
        stream = await llm.astream_structured_predict(Person, prompt, settings, name="Ann")
        return [one, [item async for item in stream][-1]]

    one, two = asyncio.run(predicted())
    assert one == two == llm.structured_predict(Person, prompt, settings, name="Ann")
    structured = llm.model_copy(update={"max_tokens": 200}).as_structured_llm(Person)
    answer = structured.chat([ChatMessage(content="Invent something {here}.")])
    assert isinstance(answer.raw, Person) and json.loads(answer.message.content or "")
    assert isinstance(structured.complete("Invent something.").raw, Person)
    assert isinstance(list(structured.stream_chat([ChatMessage(content="Invent something.")]))[-1].raw, Person)


# --- streams and calls ------------------------------------------------------------------------------------


def test_a_streamed_call_is_held_back_and_comes_whole(llm: MPlusLLM, say: Saying) -> None:
    text = 'Well: <tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    say(text, text)
    chunks = list(llm.stream_chat_with_tools(TOOLS, QUESTION))
    assert "".join(c.delta or "" for c in chunks) == "Well: " == chunks[-1].message.content
    assert not any("<tool" in (c.message.content or "") for c in chunks)
    (call,) = llm.get_tool_calls_from_response(chunks[-1])
    assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 1, "b": 2})

    async def streamed() -> Any:
        return [c async for c in await llm.astream_chat_with_tools(TOOLS, QUESTION)][-1]

    assert llm.get_tool_calls_from_response(asyncio.run(streamed()))[0].tool_kwargs == {"a": 1, "b": 2}


def test_words_that_only_begin_like_a_call_come_in_the_end(llm: MPlusLLM, say: Saying) -> None:
    say("A tag: <tool")
    assert "".join(c.delta or "" for c in llm.stream_chat_with_tools(TOOLS, QUESTION)) == "A tag: <tool"


def test_tools_and_their_results_reach_the_prompt(llm: MPlusLLM) -> None:
    messages = [
        ChatMessage(content=QUESTION),
        ChatMessage(role="assistant", blocks=[ToolCallBlock(tool_name="add", tool_kwargs={"a": 1, "b": 2})]),
        ChatMessage(role="tool", content="3", additional_kwargs={"tool_call_id": "x"}),
    ]
    with_tools = llm.chat_with_tools(TOOLS, chat_history=messages).raw["usage"]["prompt_tokens"]
    without = llm.chat(messages).raw["usage"]["prompt_tokens"]
    assert with_tools > without > llm.chat(messages[:1]).raw["usage"]["prompt_tokens"]


def test_predict_and_call_runs_the_tool(llm: MPlusLLM, say: Saying) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    say(call, call)
    assert llm.predict_and_call(TOOLS, QUESTION).response == "3"
    assert asyncio.run(llm.apredict_and_call(TOOLS, QUESTION)).response == "3"


# --- bad input ----------------------------------------------------------------------------------------


def test_an_open_tool_or_schema_is_refused_by_name(llm: MPlusLLM) -> None:
    class Open(BaseModel):
        data: dict[str, Any]

    with pytest.raises(ValueError, match=r"'anything'.*open"):
        llm.chat_with_tools([FunctionTool.from_defaults(anything)], QUESTION)
    with pytest.raises(ValueError, match="open"):
        llm.structured_predict(Open, PromptTemplate("x"))
    with pytest.raises(ValueError, match="'subtract'"):
        llm.chat_with_tools(TOOLS, QUESTION, tool_choice="subtract")
    with pytest.raises(ValueError, match="response_format"):
        llm.complete("x", response_format={"type": "text"})
    with pytest.raises(ValueError, match="tool_choice"):
        llm.chat_with_tools(TOOLS, QUESTION, tool_choice={"type": "function"})


def test_a_call_that_was_cut_off_is_an_error(llm: MPlusLLM) -> None:
    with pytest.raises(ValueError, match=r'call \'{"name.*max_tokens'):
        llm.chat_with_tools(TOOLS, QUESTION, tool_choice="add", max_tokens=20)
    with pytest.raises(ValueError, match="max_tokens"):
        llm.structured_predict(Person, PromptTemplate("x"), {"max_tokens": 5})
    with pytest.raises(ValueError, match="max_tokens"):
        list(llm.stream_structured_predict(Person, PromptTemplate("x"), {"max_tokens": 5}))


def test_invalid_json_from_the_model_is_an_error(llm: MPlusLLM, say: Saying) -> None:
    say('<tool_call>\n{"name": "add", "arguments": {"a": }\n</tool_call>')
    with pytest.raises(ValueError, match="not valid JSON"):
        llm.chat_with_tools(TOOLS, QUESTION)
