"""Answers that must have a form always have it, whatever the weights say."""

import json

import pytest
import torch

from mplus.generation.constrain import (
    ConstrainedDecoding,
    Constraint,
    closed_schema,
    parse_tool_calls,
    tool_call_text,
)
from mplus.generation.prompt import encode_prompt
from mplus.model import MPlus
from mplus.testing import byte_tokenizer

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
PLACE = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}
GO = {
    "type": "function",
    "function": {
        "name": "go",
        "parameters": {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/Place"}},
            "required": ["to"],
            "$defs": {"Place": PLACE},
        },
    },
}
END = 260


def drawn(constraint: Constraint, seed: int, begin: str = "", steps: int = 600) -> str:
    """What random logits say under a constraint."""
    tokenizer = byte_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    decoding = ConstrainedDecoding(constraint, tokenizer, frozenset([END]))
    ids: list[int] = tokenizer(begin, add_special_tokens=False)["input_ids"] if begin else []
    for _ in range(steps):
        token = int(decoding(ids, torch.randn(261, generator=generator)).argmax())
        if token == END:
            return tokenizer.decode(ids)
        ids.append(token)
    raise AssertionError("never ended")


@pytest.mark.parametrize("seed", range(5))
def test_json_of_a_schema(seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "who": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
            "kind": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
        },
        "required": ["who", "age", "tags", "kind"],
    }
    found = json.loads(drawn(Constraint.json_schema(schema), seed))
    assert set(found) == {"who", "age", "tags", "kind"}
    assert 0 <= found["age"] <= 130 and set(found["tags"]) <= {"a", "b"} and found["kind"] in (None, True, False)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("choice", ["required", "add", "go"])
def test_a_forced_call_is_a_valid_call(seed: int, choice: str) -> None:
    content, calls = parse_tool_calls(drawn(Constraint.tool_calls([ADD, GO], choice), seed))
    assert content == "" and len(calls) == 1
    call = calls[0]
    assert call.error is None and call.arguments is not None
    assert call.name == choice if choice != "required" else call.name in ("add", "go")
    assert set(call.arguments) == ({"a", "b"} if call.name == "add" else {"to"})


@pytest.mark.parametrize("seed", range(4))
def test_an_automatic_call_is_valid_once_it_is_begun(seed: int) -> None:
    constraint = Constraint.tool_calls([ADD, GO], "auto")
    text = drawn(constraint, seed, begin='Sure. <tool_call>\n{"name": "g')
    content, calls = parse_tool_calls(text)
    assert content.startswith("Sure.") and calls[0].name == "go"
    assert calls[0].arguments is not None and set(calls[0].arguments["to"]) == {"name"}


def test_schemas_are_closed_and_bounded() -> None:
    closed = closed_schema({"type": "object", "properties": {"s": {"type": "string"}, "l": {"type": "array"}}})
    assert closed["additionalProperties"] is False
    assert closed["properties"]["s"]["maxLength"] > 0 and closed["properties"]["l"]["maxItems"] > 0
    kept = closed_schema({"type": "string", "maxLength": 5000})
    assert kept["maxLength"] == 5000
    named_title = closed_schema({"type": "object", "properties": {"title": {"type": "string"}}})
    assert "title" in named_title["properties"]


@pytest.mark.parametrize("open_schema", [True, {"type": "string"}])
def test_an_open_schema_is_refused_by_name(open_schema: object) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "object", "additionalProperties": open_schema}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(ValueError, match=r"tool 'f'.*\$\.x is open"):
        Constraint.tool_calls([tool])
    with pytest.raises(ValueError, match="no tools|at least one tool"):
        Constraint.tool_calls([])
    with pytest.raises(ValueError, match="'nope'.*add"):
        Constraint.tool_calls([ADD], "nope")
    with pytest.raises(ValueError, match="function"):
        Constraint.tool_calls([{"type": "function"}])


@pytest.mark.parametrize(
    ("inside", "error"),
    [("{not json", "not valid JSON"), ("[1]", "an object"), ('{"name": "f", "arguments": 3}', "arguments")],
)
def test_an_invalid_call_has_the_error(inside: str, error: str) -> None:
    _, calls = parse_tool_calls(f"<tool_call>{inside}</tool_call>")
    assert calls[0].arguments is None and error in (calls[0].error or "")


def test_calls_survive_a_round_trip_and_plain_text_is_left_alone() -> None:
    text = tool_call_text("add", {"a": 1, "b": 2})
    assert parse_tool_calls(f"One moment.\n{text}")[1][0].arguments == {"a": 1, "b": 2}
    assert parse_tool_calls("  just text ") == ("  just text ", [])


def test_tools_calls_and_results_reach_the_prompt(model: MPlus) -> None:
    messages = [
        {"role": "user", "content": "What is 1 + 2?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}],
        },
        {"role": "tool", "content": "3"},
    ]
    prompt = encode_prompt(model.tokenizer, messages, tools=[ADD])
    text = model.tokenizer.decode(list(prompt.input_ids))
    assert "Add two numbers." in text and text.index("Add two") < text.index("What is 1")
    assert '"arguments": {"a": 1, "b": 2}' in text and "<tool_response>\n3" in text
    begin, end = prompt.query
    assert model.tokenizer.decode(list(prompt.input_ids[begin:end])) == "What is 1 + 2?"


def test_a_template_that_supports_tools_gets_them(model: MPlus, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for t in tools %}[{{ t.function.name }}]{% endfor %}" + model.tokenizer.chat_template
    monkeypatch.setattr(model.tokenizer, "chat_template", template)
    prompt = encode_prompt(model.tokenizer, [{"role": "user", "content": "hi"}], tools=[ADD])
    assert model.tokenizer.decode(list(prompt.input_ids)).startswith("[add]")


def test_generation_under_a_constraint(model: MPlus) -> None:
    memory = model.new_memory()
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
    answer = model.generate(memory, "Say a number.", constraint=Constraint.json_schema(schema), max_new_tokens=40)
    assert json.loads(answer.text)["n"] in range(10)
    assert answer.finish_reason == "stop"
