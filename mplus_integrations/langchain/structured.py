"""Binds LangChain's tools and schemas to a chat model, and parses its answers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from mplus import Constraint
from mplus_integrations.forms import response_format, tool_choice

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool
Choice = str | dict[str, Any] | bool | None
Method = Literal["json_schema", "function_calling", "json_mode"]


def with_tools(
    chat: BaseChatModel, tools: Sequence[Tool], choice: Choice, kwargs: dict[str, Any]
) -> Runnable[LanguageModelInput, AIMessage]:
    """The chat model with tools bound to it; a bad tool or choice fails here, not at the first answer."""
    chosen = tool_choice(choice, tools)
    if tools:
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        if chosen != "none":
            Constraint.tool_calls(formatted, chosen)
        kwargs = {"tools": formatted, "tool_choice": chosen, **kwargs}
    return cast("Runnable[LanguageModelInput, AIMessage]", chat.bind(**kwargs))


def with_schema(
    chat: BaseChatModel,
    schema: dict[str, Any] | type,
    method: Method,
    *,
    include_raw: bool,
    strict: bool | None,
    kwargs: dict[str, Any],
) -> Runnable[LanguageModelInput, Any]:
    """The chat model constrained to a schema, followed by a parser of its answers."""
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
        form = response_format(wanted.get("title", "answer"), wanted)
        model = chat.bind(response_format=form, ls_structured_output_format=note, **kwargs)
        parser = PydanticOutputParser(pydantic_object=cast("Any", schema)) if is_class else JsonOutputParser()
    else:
        raise ValueError(f"method={method!r}: expected 'json_schema', 'function_calling' or 'json_mode'.")
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(parsed=_raw | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _raw(found: dict[str, Any]) -> Any:
    return found["raw"]
