"""Answers that must have a form always have it, whatever the weights say."""

import json
from typing import Any

import pytest
import torch
from transformers import AddedToken

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


def drawn(constraint: Constraint, seed: int, begin: str = "", steps: int = 600, tokenizer: Any = None) -> str:
    """What random logits say under a constraint."""
    tokenizer = tokenizer or byte_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    decoding = ConstrainedDecoding(constraint, tokenizer, frozenset([END]))
    ids: list[int] = tokenizer(begin, add_special_tokens=False)["input_ids"] if begin else []
    for _ in range(steps):
        token = int(decoding(ids, torch.randn(len(tokenizer), generator=generator)).argmax())
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


@pytest.fixture
def with_marks() -> Any:
    """A tokenizer with a token for each mark, as those of Qwen have: added, and no control token."""
    tokenizer = byte_tokenizer()
    marks = ("<tool_call>", "</tool_call>", "<think>", "<｜mark｜>")
    assert tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks]) == len(marks)
    return tokenizer


@pytest.mark.parametrize("choice", ["required", "add"])
def test_a_forced_call_is_valid_where_its_marks_are_tokens(with_marks: Any, choice: str) -> None:
    for seed in range(4):
        _, (call,) = parse_tool_calls(drawn(Constraint.tool_calls([ADD], choice), seed, tokenizer=with_marks))
        assert call.error is None and call.name == "add"


def test_marks_that_are_tokens_are_said_as_the_model_learnt_them(with_marks: Any) -> None:
    """As one token and spelled out, forced and free to choose; what no call may hold at that place stays barred."""
    call = tool_call_text("add", {"a": 1, "b": 2})
    whole = with_marks.encode(call, add_special_tokens=False)
    spelled = byte_tokenizer().encode(call, add_special_tokens=False)
    open_call, think = with_marks.convert_tokens_to_ids(["<tool_call>", "<think>"])
    assert whole[0] == open_call and len(spelled) > len(whole)
    for choice in ("auto", "required"):
        for ids in (whole, spelled):
            decoding = ConstrainedDecoding(Constraint.tool_calls([ADD], choice), with_marks, frozenset([END]))
            for place, token in enumerate(ids):
                allowed = decoding(ids[:place], torch.zeros(len(with_marks))).isfinite()
                assert allowed[token], (choice, place, with_marks.decode([token]))
                assert choice == "auto" or not allowed[think]
            assert decoding(ids, torch.zeros(len(with_marks))).isfinite()[END]


def test_free_text_and_values_may_hold_marks_that_are_text(with_marks: Any) -> None:
    said = '{"name": "<think> <｜mark｜> <tool_call>"}'
    name = {"type": "object", "properties": {"name": {"const": json.loads(said)["name"]}}, "required": ["name"]}
    for constraint, text in (
        (Constraint.json_schema(name), said),
        (Constraint.json_schema(PLACE), '{"name": "<think>"}'),
        (Constraint.tool_calls([ADD]), "<think>Nothing to add.</think>"),
    ):
        ids = with_marks.encode(text, add_special_tokens=False)
        decoding = ConstrainedDecoding(constraint, with_marks, frozenset([END]))
        for place, token in enumerate(ids):
            assert decoding(ids[:place], torch.zeros(len(with_marks))).isfinite()[token], (text, place)
        assert decoding(ids, torch.zeros(len(with_marks))).isfinite()[END]


def test_control_tokens_stay_barred_beside_marks_that_are_text(with_marks: Any) -> None:
    decoding = ConstrainedDecoding(Constraint.tool_calls([ADD]), with_marks, frozenset([END]))
    allowed = decoding([], torch.zeros(len(with_marks))).isfinite()
    assert [with_marks.decode([n]) for n in range(256, 261) if allowed[n]] == ["<|im_end|>"], "it ends"


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
