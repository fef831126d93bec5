"""The form an answer must have: tools it may or must call, or a schema it must follow."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from mplus import Constraint

OPEN_CALL = "<tool_call>"

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool
Method = Literal["json_schema", "function_calling", "json_mode"]


def with_tools(
    chat: BaseChatModel, tools: Sequence[Tool], tool_choice: str | dict[str, Any] | bool | None, kwargs: dict[str, Any]
) -> Runnable[LanguageModelInput, AIMessage]:
    """The chat model with tools bound to it; a bad tool or choice fails here, not at the first answer."""
    kwargs.pop("strict", None)  # calls are always strict
    if not tools:
        return cast("Runnable[LanguageModelInput, AIMessage]", chat.bind(**kwargs))
    formatted = [convert_to_openai_tool(tool) for tool in tools]
    choice = _choice(tool_choice)
    if choice != "none":
        Constraint.tool_calls(formatted, choice)
    bound = chat.bind(tools=formatted, tool_choice=choice, **kwargs)
    return cast("Runnable[LanguageModelInput, AIMessage]", bound)


def with_schema(
    chat: BaseChatModel,
    schema: dict[str, Any] | type,
    method: Method,
    *,
    include_raw: bool,
    strict: bool | None,
    kwargs: dict[str, Any],
) -> Runnable[LanguageModelInput, Any]:
    """The chat model, constrained to a schema, and what parses its answers."""
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    wanted = convert_to_json_schema(schema)
    note = {"kwargs": {"method": method, "strict": strict}, "schema": wanted}
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        model = chat.bind_tools([schema], tool_choice=name, ls_structured_output_format=note, **kwargs)
        parser: Any = (
            PydanticToolsParser(tools=[cast("Any", schema)], first_tool_only=True)
            if is_class
            else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        )
    elif method in ("json_schema", "json_mode"):
        Constraint.json_schema(wanted)
        wrapped = {"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}}
        model = chat.bind(response_format=wrapped, ls_structured_output_format=note, **kwargs)
        parser = PydanticOutputParser(pydantic_object=cast("Any", schema)) if is_class else JsonOutputParser()
    else:
        raise ValueError(f"method={method!r}: expected 'json_schema', 'function_calling' or 'json_mode'.")
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(parsed=_raw | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


class Form(NamedTuple):
    """What a call asks of its answer.

    Attributes:
        constraint: Enforced token by token; None: free text.
        told: What the model is told about it, beside the messages.
    """

    constraint: Constraint | None
    told: str | None


def form_of(kwargs: Mapping[str, Any]) -> Form:
    """The form that the arguments of a call ask for.

    Raises:
        ValueError: A schema, tool or choice that cannot be followed.
    """
    schema = _response_schema(kwargs.get("response_format"))
    if schema is not None:
        told = f"Answer with JSON of this schema: {json.dumps(schema, ensure_ascii=False)}"
        return Form(Constraint.json_schema(schema), told)
    tools, choice = kwargs.get("tools"), kwargs.get("tool_choice", "auto")
    return Form(Constraint.tool_calls(tools, choice) if tools and choice != "none" else None, None)


def with_told(messages: list[dict[str, Any]], told: str | None) -> list[dict[str, Any]]:
    """Chat messages whose system message also says ``told``."""
    if told is None:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": told}, *messages]
    return [{"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]


def before_calls(text: str) -> tuple[str, str]:
    """Text that can be shown now, and what has to wait because it is or may become a tool call."""
    at = text.find(OPEN_CALL)
    if at < 0:
        most = min(len(OPEN_CALL) - 1, len(text))
        at = next((len(text) - n for n in range(most, 0, -1) if OPEN_CALL.startswith(text[-n:])), len(text))
    return text[:at], text[at:]


def _raw(found: dict[str, Any]) -> Any:
    return found["raw"]


def _choice(choice: str | dict[str, Any] | bool | None) -> str:
    if choice is None or choice is False:
        return "auto"
    if choice is True or choice == "any":
        return "required"
    if isinstance(choice, dict):
        name = choice.get("function", choice).get("name")
        if not isinstance(name, str):
            raise ValueError(f"tool_choice={choice!r}: expected {{'type': 'function', 'function': {{'name': …}}}}.")
        return name
    return choice


def _response_schema(wanted: Any) -> dict[str, Any] | None:
    """The JSON schema of a ``response_format``.

    Raises:
        ValueError: Not of a known form.
    """
    if wanted is None:
        return None
    if isinstance(wanted, type):
        return convert_to_json_schema(wanted)
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        return wanted["json_schema"]["schema"]
    raise ValueError(
        f"response_format={wanted!r:.80}: expected {{'type': 'json_schema', 'json_schema': {{'name', 'schema'}}}}."
    )
