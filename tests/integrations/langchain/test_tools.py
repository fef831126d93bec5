"""Tools and structured output, beyond the acceptance lines."""

import asyncio
import inspect
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, Literal

import pytest
import torch
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    JsonOutputToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import InjectedToolArg
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from mplus.testing import tiny_model
from mplus_integrations.forms import response_format
from mplus_integrations.langchain import MPlusChat
from mplus_integrations.langchain.structured import WholeForm, as_json_schema, as_tool
from tests.conftest import TINY
from tests.integrations.langchain.conftest import add
from tests.integrations.saying import Saying

MODEL = tiny_model(1, memory=TINY)


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> Saying:
    return Saying(monkeypatch, MODEL)


@pytest.fixture
def chat() -> MPlusChat:
    return MPlusChat(model=MODEL, max_tokens=600)


BARE = '{"name": "add", "arguments": {"a": 1, "b": 2}}'


@pytest.mark.parametrize(
    "said", [BARE, f"```json\n{BARE}\n```", f"\n```\n{BARE}\n```\n", BARE.replace("arguments", "parameters")]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_is_nothing_but_a_call_is_one(
    chat: MPlusChat, saying: Saying, said: str, streamed: bool
) -> None:
    """Models that learnt another form leave the marks of a call out."""
    saying(said)
    bound = chat.bind_tools([add])
    chunks = list(bound.stream("What is 1 and 2?")) if streamed else [bound.invoke("What is 1 and 2?")]
    answer = reduce(operator.add, chunks)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("add", {"a": 1, "b": 2})]
    assert not answer.content


@pytest.mark.parametrize(
    "said",
    [
        '{"name": "Ann", "arguments": {}}',
        '{"name": "add", "arguments": {"a": 1}}',
        '{"name": "add", "arguments": {"a": 1, "b": 2, "c": 3}}',
        '{"name": "add", "arguments": [1, 2]}',
        '{"name": ["add"]}',
        '{"arguments": {"a": 1, "b": 2}, "name": "add"}',
        "[]",
        '{{"name": "add"}}',
        f"{BARE} is how to call it.",
        "`add` adds.",
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_more_or_less_than_a_call_is_text(chat: MPlusChat, saying: Saying, said: str, streamed: bool) -> None:
    saying(said)
    bound = chat.bind_tools([add])
    chunks = list(bound.stream("What is 1 and 2?")) if streamed else [bound.invoke("What is 1 and 2?")]
    answer = reduce(operator.add, chunks)
    assert answer.content == said and not answer.tool_calls and not answer.invalid_tool_calls


@pytest.mark.parametrize("said", ["```python\nprint(1)\n```", '{"age": 3, "kind": "dog"}', "```\nls -l\n```", "``` ``"])
def test_code_and_other_json_are_streamed_as_they_come(chat: MPlusChat, saying: Saying, said: str) -> None:
    saying(said)
    chunks = [chunk.content for chunk in chat.bind_tools([add]).stream("Show me.")]
    assert "".join(chunks) == said
    assert max(map(len, chunks)) <= len("```python"), "held back only while it may be a call"


@pytest.mark.parametrize("options", [{"tool_choice": "none"}, {"response_format": {"type": "json_object"}}])
def test_json_that_was_asked_for_is_no_call(chat: MPlusChat, saying: Saying, options: dict[str, Any]) -> None:
    saying(BARE)
    answer = chat.bind_tools([add], **options).invoke("How is it called?")
    assert answer.content == BARE and not answer.tool_calls


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


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_a_call_that_has_its_result_is_answered_from_it(chat: MPlusChat, saying: Saying, way: str) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    bound = chat.bind_tools([add])

    def answer(messages: list[Any]) -> Any:
        if way == "invoke":
            return bound.invoke(messages)
        return reduce(operator.add, bound.stream(messages))

    messages: list[Any] = [HumanMessage("What is 1 + 2?")]
    saying(call)
    messages += [answer(messages), ToolMessage("3", tool_call_id="x")]
    assert messages[1].tool_calls
    saying(call, "It is 3.")
    found = answer(messages)
    assert (found.content, found.tool_calls) == ("It is 3.", [])
    saying(call.replace("2", "5"))  # other arguments: a new call
    assert answer(messages).tool_calls[0]["args"] == {"a": 1, "b": 5}
    saying(call)
    assert answer([*messages, AIMessage("It is 3."), HumanMessage("And once more?")]).tool_calls  # asked anew
    saying(call)
    assert chat.bind_tools([add], tool_choice="add").invoke(messages).tool_calls  # asked for by name


class Insisting:
    """A logits processor of a model that would make the same call for ever."""

    def __init__(self, text: str) -> None:
        self.ids = MODEL.tokenizer(text, add_special_tokens=False)["input_ids"]

    def __call__(self, tokens: list[int], logits: torch.Tensor) -> torch.Tensor:
        wanted = self.ids[len(tokens)] if len(tokens) < len(self.ids) else MODEL.tokenizer.eos_token_id
        return logits.index_add(0, torch.tensor([wanted]), torch.tensor([100.0]))


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_model_that_insists_on_a_call_is_kept_from_it(
    chat: MPlusChat, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    real, call = MODEL.stream, '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'

    def stream(*arguments: Any, processors: Any = (), **options: Any) -> Any:
        return real(*arguments, processors=(Insisting(call), *processors), **options)

    monkeypatch.setattr(MODEL, "stream", stream)
    messages: list[Any] = [HumanMessage("What is 1 + 2?")]
    first = chat.bind_tools([add], tool_choice=choice).invoke(messages)
    assert bool(first.tool_calls) == (choice == "auto")
    messages += [AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "x"}])]
    found = chat.bind_tools([add], tool_choice=choice).invoke([*messages, ToolMessage("3", tool_call_id="x")])
    assert not found.tool_calls
    assert "<tool_call>" not in found.content


def test_a_call_cut_short_is_an_invalid_call_where_none_was_asked_for(chat: MPlusChat, saying: Saying) -> None:
    half = '<tool_call>\n{"name": "add", "arg'
    saying(half, half)
    answer = chat.bind_tools([add]).invoke("hi")
    assert answer.tool_calls == [] and answer.invalid_tool_calls[0]["error"]
    total = AIMessageChunk("")
    for chunk in chat.bind_tools([add]).stream("hi"):
        total += chunk
    assert total.tool_calls == [] and total.invalid_tool_calls[0]["args"] == answer.invalid_tool_calls[0]["args"]


class Sum(BaseModel):
    """A sum."""

    a: int
    b: int


PARSERS = {
    "the message": RunnableLambda(lambda message: message),
    "JsonOutputToolsParser": JsonOutputToolsParser(),
    "JsonOutputToolsParser of the first": JsonOutputToolsParser(first_tool_only=True),
    "JsonOutputKeyToolsParser": JsonOutputKeyToolsParser(key_name="add", first_tool_only=True),
    "PydanticToolsParser": PydanticToolsParser(tools=[Sum], first_tool_only=True),
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("choice", ["any", "add", {"type": "function", "function": {"name": "add"}}])
def test_a_forced_call_that_is_cut_short_raises(chat: MPlusChat, parser: str, choice: Any) -> None:
    chain = chat.bind_tools([add], tool_choice=choice).bind(max_tokens=25) | PARSERS[parser]
    for ask in (chain.invoke, lambda text: list(chain.stream(text)), lambda text: asyncio.run(chain.ainvoke(text))):
        with pytest.raises(ValueError, match=r"call .*add.* is not valid.*'length' after 25 tokens.*max_tokens"):
            ask("hi")


# --- forms that are cut off, or contain themselves ----------------------------------------------------


class Person(BaseModel):
    """Somebody."""

    name: str
    city: str
    age: int


class Part(BaseModel):
    """A part, which may have parts."""

    name: Literal["a", "b"]
    parts: list["Part"] = Field(max_length=1)


class PartDict(TypedDict):
    """The same as a dictionary."""

    name: Literal["a", "b"]
    parts: Annotated[list["PartDict"], Field(max_length=1)]


METHODS: list[Any] = ["json_schema", "function_calling", "json_mode"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Person, convert_to_json_schema(Person)], ids=["class", "dict"])
def test_a_cut_form_raises_and_names_the_reason(chat: MPlusChat, method: Any, schema: Any) -> None:
    form = chat.with_structured_output(schema, method=method, max_tokens=30)
    with pytest.raises(OutputParserException, match="cut off when max_tokens were used up. Raise max_tokens"):
        form.invoke("Who?")
    with pytest.raises(OutputParserException, match="cut off when max_tokens were used up"):
        list(form.stream("Who?"))

    async def streamed() -> None:
        async for _ in form.astream("Who?"):
            pass

    for asked in (form.ainvoke("Who?"), streamed()):
        with pytest.raises(OutputParserException, match="cut off when max_tokens were used up"):
            asyncio.run(asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_cut_form_with_its_raw_answer_has_a_parsing_error(chat: MPlusChat, method: Any) -> None:
    found = chat.with_structured_output(Person, method=method, include_raw=True, max_tokens=30).invoke("Who?")
    assert found["parsed"] is None and "cut off" in str(found["parsing_error"])
    assert found["raw"].response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_form_is_returned_streamed_or_not(chat: MPlusChat, method: Any) -> None:
    form = chat.with_structured_output(Person, method=method, max_tokens=900)
    whole = form.invoke("Who?")
    assert isinstance(whole, Person) and list(form.stream("Who?")) == [whole]
    plain = chat.with_structured_output(convert_to_json_schema(Person), method=method, max_tokens=900)
    assert list(plain.stream("Who?"))[-1] == plain.invoke("Who?") == whole.model_dump()


@pytest.mark.parametrize("said", ['{"name": "Anna"}', '{"name": "Anna", "city": "Graz", "age": "x"}', "Anna", ""])
def test_an_invalid_form_raises_and_names_the_reason(
    chat: MPlusChat, processed: Callable[..., None], said: str
) -> None:
    wanted = [*MODEL.tokenizer(said)["input_ids"], MODEL.tokenizer.eos_token_id]

    def dictate(tokens: list[int], logits: Any) -> Any:
        return torch.full_like(logits, float("-inf")).index_fill(0, torch.tensor([wanted[len(tokens)]]), 0.0)

    processed(MODEL, dictate)
    answer = chat.invoke("Who?")
    assert answer.content == said
    with pytest.raises(OutputParserException, match=r"does not fit Person|not JSON"):
        WholeForm(fields=Person).invoke(answer)


def fits(part: Any) -> bool:
    return part["name"] in ("a", "b") and isinstance(part["parts"], list) and all(map(fits, part["parts"]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Part, Part.model_json_schema(), PartDict], ids=["class", "dict", "typed dict"])
def test_a_recursive_schema_is_enforced(method: Any, schema: Any) -> None:
    """The grammar holds inside parts of parts: a random model, which writes anything it may, cannot break it."""
    tool = as_tool(schema)
    assert "$ref" in str(tool["function"]["parameters"]) and "$ref" in str(as_json_schema(schema))
    for seed in range(3):
        chat = MPlusChat(model=MODEL, max_tokens=900, temperature=2.0, seed=seed)
        found = chat.with_structured_output(schema, method=method).invoke("Which parts?")
        assert fits(found if isinstance(found, dict) else found.model_dump())


def build(part: Part, count: int = 1) -> str:
    """Build a part."""
    return ""


@dataclass
class Built:
    """What was built."""

    part: Part


@pytest.mark.parametrize("of", [build, Built], ids=["function", "dataclass"])
def test_a_recursive_parameter_is_enforced(of: Any) -> None:
    assert as_tool(of)["function"]["description"] == inspect.getdoc(of)
    for seed in range(3):
        chat = MPlusChat(model=MODEL, max_tokens=900, temperature=2.0, seed=seed)
        (call,) = chat.bind_tools([of], tool_choice=of.__name__, parallel_tool_calls=False).invoke("Which?").tool_calls
        assert fits(call["args"]["part"])
    assert "run" not in str(as_tool(_injected)), "what a graph gives is no parameter"


def _injected(part: Part, run: Annotated[str, InjectedToolArg]) -> str:
    """Build a part."""
    return ""


def test_a_schema_that_is_not_recursive_is_sent_as_langchain_makes_it() -> None:
    assert as_json_schema(Person) == convert_to_json_schema(Person)
    assert as_tool(add) == convert_to_openai_tool(add)


def test_tokens_of_messages_are_those_of_the_prompt_with_its_template_and_tools(chat: MPlusChat) -> None:
    messages = [SystemMessage("Be brief."), HumanMessage("Who?", id="h1"), AIMessage("Anna."), HumanMessage("Why?")]
    used = chat.invoke(messages, max_tokens=1).usage_metadata
    assert used is not None and chat.get_num_tokens_from_messages(messages) == used["input_tokens"]
    bound = chat.bind_tools([add], tool_choice="none").invoke(messages, max_tokens=1)
    assert bound.usage_metadata is not None
    assert chat.get_num_tokens_from_messages(messages, tools=[add]) == bound.usage_metadata["input_tokens"]


def test_a_stream_that_is_left_early_has_told_what_it_used(chat: MPlusChat, processed: Callable[..., None]) -> None:
    end = torch.tensor([MODEL.tokenizer.eos_token_id])
    processed(MODEL, lambda _, logits: logits.index_fill(0, end, float("-inf")))
    total = AIMessageChunk("")
    for n, chunk in enumerate(chat.stream("Hello there.")):
        total += chunk
        if n == 4:
            break
    assert total.usage_metadata is not None
    assert total.usage_metadata["input_tokens"] == chat.get_num_tokens_from_messages([HumanMessage("Hello there.")])
    assert 5 <= total.usage_metadata["output_tokens"] < 20


# --- tools beside a form, and forms that an agent asks for --------------------------------------------

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
ANNA = '{"name": "Anna", "city": "Graz", "age": 33}'


@pytest.fixture
def say(processed: Callable[..., None]) -> Callable[..., None]:
    """Has the model answer with texts, one after the other, as far as the form of its answer allows them."""
    left: list[list[int]] = []

    def dictate(tokens: list[int], logits: Any) -> Any:
        if not left:
            return logits
        wanted = left[0][len(tokens)]
        if wanted == MODEL.tokenizer.eos_token_id:
            left.pop(0)
        return torch.full_like(logits, float("-inf")).index_fill(0, torch.tensor([wanted]), 0.0)

    def told(*texts: str) -> None:
        left.extend([*MODEL.tokenizer(text)["input_ids"], MODEL.tokenizer.eos_token_id] for text in texts)

    processed(MODEL, dictate)
    return told


@pytest.mark.parametrize("form", [Person, ProviderStrategy(Person)], ids=["class", "ProviderStrategy"])
def test_an_agent_that_answers_in_a_form_can_call_its_tools(say: Callable[..., None], form: Any) -> None:
    chat = MPlusChat(model=MODEL, max_tokens=200)
    say(CALL, ANNA)
    found = create_agent(chat, [add], response_format=form).invoke({"messages": [HumanMessage("Who?")]})
    assert found["structured_response"] == Person(name="Anna", city="Graz", age=33)
    assert [m.content for m in found["messages"] if isinstance(m, ToolMessage)] == ["3"]


def test_a_form_beside_tools_is_of_answers_that_call_none(say: Callable[..., None]) -> None:
    chat = MPlusChat(model=MODEL, max_tokens=200)
    form = response_format("person", convert_to_json_schema(Person))
    marked = ANNA.replace("Graz", "<tool_call>")
    say(CALL, marked, marked, CALL)
    bound = chat.bind_tools([add], response_format=form)
    assert bound.invoke("Who?").tool_calls[0]["args"] == {"a": 1, "b": 2}
    for answer in (bound.invoke("Who?"), chat.bind_tools([add], tool_choice="none", response_format=form).invoke("?")):
        assert answer.content == marked and not answer.tool_calls and not answer.invalid_tool_calls
    forced = chat.bind_tools([add], tool_choice="any", response_format=form).invoke("Who?")
    assert forced.tool_calls[0]["name"] == "add"
    with pytest.raises(ValueError, match="response_format="):
        chat.bind_tools([add], tool_choice="any", response_format={"type": "yaml"}).invoke("Who?")


@pytest.mark.parametrize(
    "form", [ProviderStrategy(Person), ToolStrategy(Person), Person], ids=lambda f: type(f).__name__
)
@pytest.mark.parametrize("tools", [[], [add]], ids=["alone", "beside a tool"])
def test_a_cut_form_of_an_agent_raises_and_names_the_reason(form: Any, tools: list[Any]) -> None:
    for few in (4, 30):
        agent = create_agent(MPlusChat(model=MODEL, max_tokens=few), tools, response_format=form)
        with pytest.raises(ValueError, match=r"'length' after \d+ tokens.*max_tokens"):
            agent.invoke({"messages": [HumanMessage("Who?")]})


def test_a_cut_answer_in_json_raises_and_names_the_reason() -> None:
    chat = MPlusChat(model=MODEL, max_tokens=20)
    for form in (response_format("person", convert_to_json_schema(Person)), {"type": "json_object"}):
        for ask in (
            chat.bind(response_format=form).invoke,
            lambda text, form=form: list(chat.stream(text, response_format=form)),
        ):
            with pytest.raises(ValueError, match="is not whole JSON.*'length'"):
                ask("Who?")
