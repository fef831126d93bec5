"""Constrained answers: JSON of a schema, or tool calls.

A ``Constraint`` describes the form. The engine turns it into a mask over the vocabulary at every step
(llguidance), so that even a weak model cannot violate it.
"""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from mplus.forks import ProcessLock
from mplus.memory.transfer import moved

MAX_STRING = 200
"""Most characters of a string whose schema sets no limit; weak models rarely end a string on their own."""
MAX_ITEMS = 12
MAX_INTEGER = 10**12
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"

ToolChoice = Literal["auto", "required"]
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Constraint:
    """A form that an answer must have; make one with ``json_schema`` or ``tool_calls``."""

    grammar: str
    """The grammar in llguidance's syntax."""

    @staticmethod
    def json_schema(schema: Schema) -> "Constraint":
        """One JSON value of a schema, which is first closed and bounded (``closed_schema``).

        Raises:
            ValueError: The schema allows any properties, or cannot be enforced.
        """
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(json.dumps({**closed_schema(schema), "x-guidance": SPACING}))
        return _validated(Constraint(grammar), schema)

    @staticmethod
    def json_object() -> "Constraint":
        """Any JSON object. A schema is the better choice: nothing bounds what is in this one."""
        from llguidance import LLMatcher

        return Constraint(LLMatcher.grammar_from_json_schema(json.dumps({"type": "object", "x-guidance": SPACING})))

    @staticmethod
    def tool_calls(tools: Sequence[Schema], choice: ToolChoice | str = "auto") -> "Constraint":
        """Tool calls: free text or a valid call ("auto"), any call ("required"), or a call of the named tool.

        Args:
            tools: ``{"type": "function", "function": {"name", "description", "parameters"}}`` each.
            choice: "auto", "required" or the name of a tool.

        Raises:
            ValueError: There are no tools, the name is unknown, or a tool allows any parameters.
        """
        functions = _functions(tools)
        names = [function["name"] for function in functions]
        if choice not in ("auto", "required"):
            if choice not in names:
                raise ValueError(f"tool choice {choice!r}: expected 'auto', 'required' or one of {', '.join(names)}.")
            functions = [function for function in functions if function["name"] == choice]
        call, rules = _calls(functions)
        if choice == "auto":
            # The lazy part ends free text as soon as a call begins; only further calls may follow a call.
            start = f'start: TEXT | lead {call} more*\nlead[lazy]: TEXT "{OPEN_CALL}"\nTEXT: /(.|\\n)*/\n'
            grammar = f'%llguidance {{}}\n{start}more: "\\n{OPEN_CALL}" {call}\n{rules}\n'
        else:
            grammar = f'start: "{OPEN_CALL}" {call}\n{rules}\n'
        return _validated(Constraint(grammar), [function["name"] for function in functions])

    @staticmethod
    def tool_calls_or_json(tools: Sequence[Schema], schema: Schema | None) -> "Constraint":
        """Calls of any tools, or else one JSON value.

        Args:
            tools: As for ``tool_calls``.
            schema: Of the value, as for ``json_schema``; None: any object.

        Raises:
            ValueError: There are no tools, or a tool or the schema allows any properties.
        """
        functions = _functions(tools)
        answer = {"type": "object"} if schema is None else closed_schema(schema)
        call, rules = _calls(functions)
        start = f'start: "{OPEN_CALL}" {call} more* | answer\nmore: "\\n{OPEN_CALL}" {call}\n'
        grammar = f"{start}answer: %json {json.dumps({**answer, 'x-guidance': SPACING})}\n{rules}\n"
        return _validated(Constraint(grammar), [function["name"] for function in functions])


def _functions(tools: Sequence[Schema]) -> list[dict[str, Any]]:
    if not tools:
        raise ValueError("tools=[]: expected at least one tool to call.")
    return [tool_function(tool) for tool in tools]


def _calls(functions: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """A call of one of the functions, behind its opening mark, and the rules that it refers to."""
    # References to definitions start at the root of a schema, so each tool is a grammar of its own.
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": "#/$defs/arguments"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "$defs": {"arguments": _nested(_parameters(function), "arguments")},
            "x-guidance": SPACING,
        }
        for function in functions
    ]
    rules = "\n".join(
        f'call_{number}: "\\n" %json {json.dumps(call)} "\\n{CLOSE_CALL}"' for number, call in enumerate(calls)
    )
    call = f"({' | '.join(f'call_{number}' for number in range(len(calls)))})"
    return call, rules


def _validated(constraint: Constraint, what: object) -> Constraint:
    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(constraint.grammar)
    if problem:
        raise ValueError(f"Cannot constrain an answer to {what!r:.200}: {problem}")
    return constraint


def tool_function(tool: Schema) -> dict[str, Any]:
    """The function part of a tool's description.

    Raises:
        ValueError: The tool has no name.
    """
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(
            f"tool {tool!r:.120}: expected {{'type': 'function', 'function': {{'name', 'description', 'parameters'}}}}."
        )
    return dict(function)


def _parameters(function: Schema) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    try:
        return closed_schema(parameters)
    except ValueError as error:
        raise ValueError(f"Parameters of tool {function['name']!r}: {error}") from error


def closed_schema(schema: Schema) -> dict[str, Any]:
    """A copy of a JSON schema in which objects have no additional properties and strings and arrays a maximum length.

    Raises:
        ValueError: An object allows any properties, so its form cannot be enforced.
    """
    return _closed(dict(schema), "$")


def _closed(schema: Any, path: str) -> Any:
    if isinstance(schema, list):
        return [_closed(item, f"{path}[{number}]") for number, item in enumerate(schema)]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions", "patternProperties") and isinstance(value, Mapping):
            found[key] = {name: _closed(item, f"{path}.{name}") for name, item in value.items()}
        elif key in ("const", "enum", "default", "examples", "required", "title", "description"):
            found[key] = value
        else:
            found[key] = _closed(value, f"{path}.{key}")
    # Annotations for human readers are removed; llguidance refuses some of them ("default").
    for key in ("default", "examples", "title", "description"):
        found.pop(key, None)
    kind = found.get("type")
    if kind == "object" or "properties" in found:
        if found.get("additionalProperties", False) is not False:
            raise ValueError(
                f"schema at {path} is open (additionalProperties={found['additionalProperties']!r}); expected an "
                "object that names all its properties. Use a model with fields instead of a free mapping."
            )
        found["type"] = "object"
        found.setdefault("properties", {})
        found["additionalProperties"] = False
    elif kind == "string" and not {"maxLength", "enum", "const", "format", "pattern"} & found.keys():
        found["maxLength"] = max(MAX_STRING, found.get("minLength", 0))
    elif kind == "integer" and not {"minimum", "maximum", "enum", "const", "multipleOf"} & found.keys():
        found |= {"minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
    elif kind == "array":
        found.setdefault("maxItems", max(MAX_ITEMS, found.get("minItems", 0)))
    return found


def _nested(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The schema as a definition of that name inside another schema, with references to its root adapted."""

    def moved(item: Any) -> Any:
        if isinstance(item, list):
            return [moved(part) for part in item]
        if not isinstance(item, dict):
            return item
        found = {key: moved(value) for key, value in item.items()}
        if isinstance(found.get("$ref"), str) and found["$ref"].startswith("#"):
            found["$ref"] = f"#/$defs/{name}{found['$ref'][1:]}"
        return found

    return moved(schema)


# --- decoding -----------------------------------------------------------------------------------------

_VOCABULARIES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


_GUARD = ProcessLock()


class ConstrainedDecoding:
    """A logits processor that forbids every token that would violate the constraint."""

    def __init__(self, constraint: Constraint, tokenizer: Any, stop_token_ids: frozenset[int]) -> None:
        from llguidance import LLMatcher

        self._vocabulary = _vocabulary(tokenizer, stop_token_ids)
        self._matcher = LLMatcher(self._vocabulary.tokens, constraint.grammar)
        self._stop_token_ids = torch.tensor(sorted(stop_token_ids))
        self._taken = 0

    def __call__(self, token_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits [vocabulary] with every forbidden token at minus infinity."""
        for token in token_ids[self._taken :]:
            if not self._matcher.consume_token(token):
                raise RuntimeError(f"constrained decoding: {self._matcher.get_error()}")
        self._taken = len(token_ids)
        allowed = torch.zeros(logits.shape[-1], dtype=torch.bool)
        if self._matcher.is_stopped():
            allowed[self._stop_token_ids] = True
        else:
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            bits = np.unpackbits(packed, bitorder="little")[: logits.shape[-1]]
            allowed[: len(bits)] = torch.from_numpy(bits.astype(np.bool_))
            if bits.sum() == 1:
                allowed[self._learnt_as_one(int(bits.argmax()))] = True
        return logits.masked_fill(~moved(allowed, logits.device), float("-inf"))

    def _learnt_as_one(self, forced: int) -> list[int]:
        """Tokens of whole marks that may come in place of a forced one, with which the mark is spelled otherwise."""
        begun = self._vocabulary.tokens.decode_str([forced])
        marks = [token for token, mark in self._vocabulary.spelled.items() if mark.startswith(begun)]
        return [token for token in marks if self._matcher.validate_tokens([token]) == 1]


def _vocabulary(tokenizer: Any, stop_token_ids: frozenset[int]) -> "_Vocabulary":
    with _GUARD:
        known = _VOCABULARIES.get(tokenizer)
        if known is None:
            known = _made_vocabulary(tokenizer, sorted(stop_token_ids) or None)
            _VOCABULARIES[tokenizer] = known
        return known


class _Vocabulary(NamedTuple):
    """A vocabulary as llguidance knows it."""

    tokens: Any
    spelled: Mapping[int, str]
    """Tokens of whole marks, such as "<tool_call>", that are text."""


def _made_vocabulary(tokenizer: Any, eos_token: list[int] | None) -> _Vocabulary:
    """The vocabulary of a tokenizer, in which added tokens that are text are that.

    llguidance takes every added token "<...>" for a control token that no text contains. Tokenizers of Qwen and
    others have such tokens for "<tool_call>" or "<think>" that are none (``special`` is false): a grammar that spells
    them out would be given up at the first of them, and free text could not hold them.
    """
    from llguidance import LLTokenizer
    from llguidance.hf import from_tokenizer

    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    contents = {n: token.content for n, token in added.items() if not token.special}
    spelled = {n: content for n, content in contents.items() if _looks_like_control(content)}
    if not spelled:
        return _Vocabulary(from_tokenizer(tokenizer, eos_token=eos_token), {})
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    said = json.loads(backend.to_str())
    if said["model"]["type"] != "BPE":
        return _Vocabulary(from_tokenizer(tokenizer, eos_token=eos_token), {})
    # All stand in the vocabulary then, since ids of those that do not are counted anew.
    is_bytes = "ByteLevel" in json.dumps(said["decoder"])
    for token in said["added_tokens"]:
        written = token["content"] if token["special"] or not is_bytes else _in_bytes(token["content"])
        said["model"]["vocab"].setdefault(written, token["id"])
    said["added_tokens"] = [token for token in said["added_tokens"] if token["id"] not in spelled]
    return _Vocabulary(LLTokenizer(json.dumps(said), eos_token=eos_token), spelled)


def _looks_like_control(token: str) -> bool:
    return token.startswith("<") and token.endswith(">")


def _in_bytes(text: str) -> str:
    """A text as a vocabulary of bytes spells it, one visible character for each byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    ((spelled, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return spelled


# --- calls in text ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolCall:
    """A call found in an answer; ``arguments`` is None if they are not a valid JSON object.

    Attributes:
        name: Name of the tool; empty if it cannot be parsed.
        arguments: Arguments of the call.
        text: The call as the model wrote it.
        error: Why the call is invalid; None if it is valid.
    """

    name: str
    arguments: dict[str, Any] | None
    text: str
    error: str | None = None


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """The text of an answer before its first call, and its calls, valid and invalid."""
    content, *rest = text.split(OPEN_CALL)
    return content, [_parsed(part.partition(CLOSE_CALL)[0].strip()) for part in rest]


def _parsed(text: str) -> ToolCall:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        return ToolCall("", None, text, f"not valid JSON: {error}")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return ToolCall("", None, text, "expected an object with 'name' and 'arguments'")
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        return ToolCall(found["name"], None, text, "expected 'arguments' to be an object")
    return ToolCall(found["name"], arguments, text)


def tool_call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """The text of a call, in the form in which the model writes it."""
    call = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"{OPEN_CALL}\n{call}\n{CLOSE_CALL}"


def tools_prompt(tools: Sequence[Schema]) -> str:
    """The description of tools for a model whose chat template does not support tools."""
    told = {"name": "", "description": "", "parameters": {}}
    functions = [tool_function(tool) for tool in tools]
    listed = "\n".join(
        json.dumps({key: function.get(key, default) for key, default in told.items()}, ensure_ascii=False)
        for function in functions
    )
    return (
        f"You can call these tools:\n{listed}\n"
        f'To call one, answer with {OPEN_CALL}\n{{"name": tool name, "arguments": {{...}}}}\n{CLOSE_CALL} '
        "and wait for its result."
    )
