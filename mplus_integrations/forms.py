"""The form of an answer: tools that it may or must call, or a JSON schema that it must follow."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mplus import Constraint, Generation, ToolCall
from mplus_integrations.settings import Call

OPEN_CALL = "<tool_call>"
BLOCK = re.compile(r"```(?:json|tool_call)?\s*(?P<inside>\{.*\})\s*```|(?P<bare>\{.*\})", re.DOTALL)
"""A JSON object, in a block of code or not."""
BLOCKS = ("```json", "```tool_call", "```", "")
FIRST_KEY = '"name"'
BARE_BEGINNINGS = ("{", "`")


class Form(NamedTuple):
    """The required form of an answer.

    Attributes:
        constraint: Enforced token by token; None: free text.
        told: Description of the form for the model, added to the messages.
    """

    constraint: Constraint | None
    told: str | None


def form_of(call: Call) -> Form:
    """The form of an answer that may call tools or must follow a schema.

    Raises:
        ValueError: A schema, tool or choice cannot be enforced.
    """
    choice, wanted = tool_choice(call.tool_choice, call.tools), call.response_format
    schema = None if wanted is None or wanted.get("type") == "json_object" else response_schema(wanted)
    if wanted is not None and choice in ("auto", "none"):  # else a call is asked for
        form = "a JSON object." if schema is None else f"JSON of this schema: {json.dumps(schema, ensure_ascii=False)}"
        if call.tools and choice == "auto":
            return Form(Constraint.tool_calls_or_json(call.tools, schema), f"If you call no tool, answer with {form}")
        told = f"Answer with {form}"
        return Form(Constraint.json_object() if schema is None else Constraint.json_schema(schema), told)
    return Form(Constraint.tool_calls(call.tools, choice) if call.tools and choice != "none" else None, None)


def tool_choice(choice: str | Mapping[str, Any] | bool | None, tools: Sequence[Any] | None) -> str:
    """A choice in any of the usual spellings as "auto", "required", "none" or a tool's name.

    Args:
        choice: As the caller spelled it.
        tools: What there is to choose from; the constraint checks a name against them.

    Raises:
        ValueError: A mapping that names no tool, or a call that is asked for where there are no tools.
    """
    if choice is None or choice is False:
        return "auto"
    if isinstance(choice, bool) or choice == "any":
        chosen = "required"
    elif isinstance(choice, str):
        chosen = choice
    else:
        function = choice.get("function", choice)
        chosen = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(chosen, str):
            raise ValueError(f"tool_choice={choice!r}: expected {{'type': 'function', 'function': {{'name': …}}}}.")
    if not tools and chosen not in ("auto", "none"):
        raise ValueError(f"tool_choice={choice!r:.80} without tools: expected 'auto' or 'none', or tools to call.")
    return chosen


def response_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema as a call's ``response_format``."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


def response_schema(wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The JSON schema of a ``response_format``.

    Raises:
        ValueError: It is not of a known form.
    """
    described = wanted.get("json_schema")
    if wanted.get("type") == "json_schema" and isinstance(described, Mapping):
        schema = described.get("schema")
        if isinstance(schema, Mapping):
            return schema
    raise ValueError(
        f"response_format={wanted!r:.80}: expected {{'type': 'json_schema', 'json_schema': {{'name', 'schema'}}}} or "
        "{'type': 'json_object'}."
    )


def check_form(call: Call, generation: Generation, calls: Sequence[ToolCall], invalid: Sequence[ToolCall]) -> None:
    """Check that an answer has the form that was asked for.

    Args:
        call: What was asked for.
        generation: The answer.
        calls: Its valid tool calls.
        invalid: Its other tool calls.

    Raises:
        ValueError: It was cut off, or is not of that form; the message says why it ended.
    """
    why = f"The answer ended because of {generation.finish_reason!r} after {generation.completion_tokens} tokens."
    more = f"{why} Allow it more max_tokens, leave stop= out, or give fields a limit."
    if call.response_format is not None and not (calls or invalid) and not _is_whole(generation):
        raise ValueError(f"{generation.text!r:.120} is not whole JSON. {more}")
    if invalid and (not calls or (is_forced(call) and call.parallel_tool_calls)):
        raise ValueError(f"The call {invalid[0].text!r:.120} is not valid: {invalid[0].error}. {more}")
    if not calls and is_forced(call):
        raise ValueError(f"{generation.text!r:.120} holds no tool call, and one was asked for. {more}")


def is_forced(call: Call) -> bool:
    """Whether a tool call was asked for, by name or of any tool."""
    return bool(call.tools) and tool_choice(call.tool_choice, call.tools) not in ("auto", "none")


def _is_whole(generation: Generation) -> bool:
    """Whether an answer is JSON to its end. The first digits of a number are JSON too, so the end must be known."""
    try:
        value = json.loads(generation.text)
    except ValueError:
        return False
    return generation.finish_reason == "stop" or not isinstance(value, int | float) or isinstance(value, bool)


def may_hold_calls(call: Call, text: str) -> bool:
    """Whether an answer may hold tool calls. JSON that follows a schema may have their marks in its texts."""
    if not call.tools or tool_choice(call.tool_choice, call.tools) == "none":
        return False
    return call.response_format is None or text.startswith(OPEN_CALL)


def with_told(messages: list[dict[str, Any]], told: str | None) -> list[dict[str, Any]]:
    """Chat messages whose system message also says ``told``."""
    if told is None:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": told}, *messages]
    return [{"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]


def has_result(messages: Sequence[Mapping[str, Any]], call: ToolCall) -> bool:
    """Whether a call with these arguments has a result since the user last said something.

    Args:
        messages: Chat messages; calls of the assistant's are under ``tool_calls``, results have the role "tool".
        call: A valid call.
    """
    since = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    made: list[tuple[str, Any]] = []
    results = 0
    for message in messages[since + 1 :]:
        results += message["role"] == "tool"
        for one in message.get("tool_calls") or ():
            function = one.get("function", one)
            arguments = function.get("arguments")
            made.append((function["name"], json.loads(arguments) if isinstance(arguments, str) else arguments))
    return (call.name, call.arguments) in made[:results]


class NoCalls:
    """A logits processor: the answer neither is nor holds a tool call.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._mark: list[int] = tokenizer(OPEN_CALL, add_special_tokens=False)["input_ids"]

    def __call__(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        """The logits [vocabulary] without the token that would begin the answer with a call, or open one later."""
        *begun, last = self._mark
        is_open = not begun or list(token_ids[-len(begun) :]) == begun
        if token_ids and not is_open:
            return logits
        logits = logits.clone()
        logits[last if is_open else self._mark[0]] = float("-inf")
        return logits


class NoBareCall:
    """A logits processor: the answer does not begin as a call without marks does.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: Any) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._begin = [n for token, n in vocabulary.items() if token.lstrip("\n Ċ▁Ġ").startswith(BARE_BEGINNINGS)]

    def __call__(self, token_ids: Sequence[int], logits: Tensor) -> Tensor:
        """The logits [vocabulary], of the first token without those that would begin a call."""
        if token_ids:
            return logits
        logits = logits.clone()
        logits[self._begin] = float("-inf")
        return logits


def bare_call(call: Call, text: str) -> ToolCall | None:
    """The call that an answer is, where it is nothing else and lacks the marks of one.

    Models that learnt another form write a JSON object with a tool's name and arguments, maybe in a block of code. It
    counts where the arguments are those that the tool has; else it is text.
    """
    said = BLOCK.fullmatch(text.strip())
    if not said or not may_become_bare_call(call, text):
        return None
    try:
        found = json.loads(said["inside"] or said["bare"])
        arguments = found.get("arguments", found.get("parameters", {}))
        functions = [tool.get("function", tool) for tool in call.tools or ()]
        taken = {one["name"]: one for one in functions}[found["name"]].get("parameters") or {}
    except (ValueError, KeyError, TypeError):
        return None
    known, needed = taken.get("properties") or {}, taken.get("required") or ()
    if not isinstance(arguments, dict) or arguments.keys() - known.keys() or set(needed) - arguments.keys():
        return None
    return ToolCall(found["name"], arguments, text)


def may_become_bare_call(call: Call, text: str) -> bool:
    """Whether an answer that begins so may turn out to be a call without the marks of one: its name comes first."""
    begun = text.lstrip()
    return _may_be_bare(call) and any(_may_go_on_as_call(begun, opened) for opened in BLOCKS)


def _may_go_on_as_call(text: str, opened: str) -> bool:
    """Whether a text that may not be complete is a call in a block of code that is opened so."""
    if len(text) <= len(opened):
        return opened.startswith(text)
    inside = text.removeprefix(opened).lstrip()
    if not text.startswith(opened) or inside[:1] not in ("", "{"):
        return False
    key = inside[1:].lstrip()
    return FIRST_KEY.startswith(key) or key.startswith(FIRST_KEY)


def _may_be_bare(call: Call) -> bool:
    free = call.tools and call.response_format is None
    return bool(free) and tool_choice(call.tool_choice, call.tools) == "auto"


def before_calls(text: str) -> tuple[str, str]:
    """Split text into what can be shown now and what is held back because it is, or may become, a tool call."""
    at = text.find(OPEN_CALL)
    if at < 0:
        most = min(len(OPEN_CALL) - 1, len(text))
        at = next((len(text) - n for n in range(most, 0, -1) if OPEN_CALL.startswith(text[-n:])), len(text))
    return text[:at], text[at:]
