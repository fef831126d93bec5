"""Binds LangChain's tools and schemas to a chat model, and parses its answers."""

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import BaseTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableAssign, RunnableLambda, RunnableMap
from langchain_core.tools import BaseTool, StructuredTool
from langchain_core.tools.base import create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, TypeAdapter
from typing_extensions import is_typeddict

from mplus import Constraint
from mplus_integrations.arguments import checked_several
from mplus_integrations.forms import response_format, tool_choice

Tool = dict[str, Any] | type | Callable[..., Any] | BaseTool
Choice = str | dict[str, Any] | bool | None
CUT_OFF = {
    "length": "it was cut off when max_tokens were used up. Raise max_tokens, or ask for a smaller form",
    "cancelled": "it was cut off when its timeout was over or it was cancelled",
}
"""Why an answer ended early, by its finish reason."""
FORMS = frozenset(
    {"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "items", "prefixItems", "not"}
    | {"patternProperties", "additionalProperties"}
)
"""Keywords of a JSON schema that say what a value is."""
FORM = "mplus_form"
"""Argument that says who checks that an answer has its form: "parser", or "chat" where nobody would."""
Method = Literal["json_schema", "function_calling", "json_mode"]


def with_tools(
    chat: BaseChatModel, tools: Sequence[Tool], choice: Choice, kwargs: dict[str, Any]
) -> Runnable[LanguageModelInput, AIMessage]:
    """The chat model with tools bound to it; a bad tool or choice fails here, not at the first answer."""
    tools = checked_several(tools, "tools")
    for tool in tools:
        if not isinstance(tool, dict | BaseTool) and not callable(tool):
            raise ValueError(
                f"tools has {tool!r:.40} ({type(tool).__name__}) in it: expected functions, Pydantic classes, "
                "LangChain's tools or OpenAI's tool descriptions."
            )
    chosen = tool_choice(choice, tools)
    if tools:
        formatted = [as_tool(tool) for tool in tools]
        if chosen != "none":
            Constraint.tool_calls(formatted, chosen)
        kwargs = {"tools": formatted, "tool_choice": chosen, **kwargs}
        if any(isinstance(tool, StructuredTool) and tool.func is None and tool.coroutine is None for tool in tools):
            kwargs = {FORM: "chat", **kwargs}  # a form of ``ToolStrategy``: an agent ends without it, and says nothing
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
    wanted = as_json_schema(schema)
    if wanted.get("type") == "object" and not (FORMS - {"type", "additionalProperties"}) & wanted.keys():
        raise ValueError(f"schema={schema!r:.120}: expected properties, without which {{}} is the only answer.")
    note = {"kwargs": {"method": method, "strict": strict}, "schema": wanted}
    fields = cast("type[BaseModel]", schema) if is_class else None
    if method == "function_calling":
        name = as_tool(schema)["function"]["name"]
        checked = {FORM: "parser", "ls_structured_output_format": note}
        model = chat.bind_tools([schema], tool_choice=name, **checked, **kwargs)
        parser = WholeForm(fields=fields, tool=name)
    elif method in ("json_schema", "json_mode"):
        Constraint.json_schema(wanted)
        form = response_format(wanted.get("title", "answer"), wanted)
        checked = {FORM: "parser", "ls_structured_output_format": note}
        model = chat.bind(response_format=form, **checked, **kwargs)
        parser = WholeForm(fields=fields)
    else:
        raise ValueError(f"method={method!r}: expected 'json_schema', 'function_calling' or 'json_mode'.")
    if not include_raw:
        return model | parser
    # ``RunnablePassthrough.assign`` makes the same of a class that no pickle finds again.
    parsed = RunnableAssign(RunnableMap(parsed=RunnableLambda(_raw) | parser, parsing_error=RunnableLambda(_nothing)))
    failed = RunnableAssign(RunnableMap(parsed=RunnableLambda(_nothing)))
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _raw(found: dict[str, Any]) -> Any:  # functions of the module, since a pickle has them by their name
    return found["raw"]


def _nothing(_: Any) -> None:
    return None


def as_tool(tool: Tool) -> dict[str, Any]:
    """The OpenAI description of a tool, in which parameters that contain themselves are kept.

    LangChain writes every definition where it is referred to, and where one refers to itself it writes that anything
    goes, or nothing at all.
    """
    whole = _schema_of(tool)
    if whole is None or ("properties" in whole and not _is_recursive(whole)):
        return convert_to_openai_tool(tool)
    name, about = _told(tool, whole)
    if whole.get("type") != "object" and "$ref" not in whole:
        raise ValueError(
            f"The arguments of {name!r} are {whole!r:.80}: expected an object that names its properties. Another form "
            "is one of an answer: with_structured_output(…, method='json_schema')."
        )
    return {"type": "function", "function": {"name": name, "description": about, "parameters": whole}}


def as_json_schema(schema: dict[str, Any] | type) -> dict[str, Any]:
    """The JSON schema of a class or description, in which definitions that contain themselves are kept.

    LangChain keeps of a schema only its properties: of a list, a choice or a union it leaves nothing.

    Raises:
        ValueError: It does not say what an answer is.
    """
    whole = _schema_of(schema)
    if whole is None or ("properties" in whole and not _is_recursive(whole)):
        found = convert_to_json_schema(schema)
        if not FORMS & found.keys():
            raise ValueError(f"schema={schema!r:.120}: expected a JSON schema with one of {', '.join(sorted(FORMS))}.")
        return found
    name, about = _told(schema, whole)
    return {**whole, "title": name, "description": about}


def _told(described: Any, whole: dict[str, Any]) -> tuple[str, str]:
    """Name and description of what is described."""
    if isinstance(described, BaseTool):
        return described.name, described.description
    if isinstance(described, type):
        return described.__name__, inspect.getdoc(described) or ""
    if inspect.isroutine(described):
        return described.__name__, whole.get("description", "")
    function: dict[str, Any] = described.get("function", described)
    name = function.get("name") or whole.get("title") or str(whole.get("$ref", "answer")).rpartition("/")[2]
    return name, function.get("description", "")


def _schema_of(described: Any) -> dict[str, Any] | None:
    """The JSON schema as it was given, if it is known."""
    if isinstance(described, BaseTool):
        described = described.tool_call_schema
    if isinstance(described, type):
        if issubclass(described, BaseModel):
            return described.model_json_schema()
        is_fields = is_typeddict(described) or is_dataclass(described)
        return TypeAdapter(described).json_schema() if is_fields else None
    if inspect.isroutine(described):
        fields = create_schema_from_function(
            described.__name__, described, filter_args=(), parse_docstring=True, include_injected=False
        )
        return cast("type[BaseModel]", fields).model_json_schema()
    if not isinstance(described, dict):
        return None
    given = cast("dict[str, Any]", described)
    function = given.get("function", given)
    found = function.get("parameters", function)
    return found if FORMS & found.keys() else None


def _is_recursive(schema: dict[str, Any]) -> bool:
    """Whether a definition of a schema, or the whole, contains itself."""
    definitions = {**schema.get("$defs", {}), **schema.get("definitions", {})}
    parts = {"#": {k: v for k, v in schema.items() if k not in ("$defs", "definitions")}}
    parts |= {f"#/$defs/{name}": part for name, part in definitions.items()}
    parts |= {f"#/definitions/{name}": part for name, part in definitions.items()}
    refers = {name: _references(part) for name, part in parts.items()}

    def reaches(name: str, goal: str, seen: set[str]) -> bool:
        if name in seen:
            return False
        seen.add(name)
        return goal in refers.get(name, ()) or any(reaches(one, goal, seen) for one in refers.get(name, ()))

    return any(reaches(name, name, set()) for name in parts)


def _references(part: Any) -> set[str]:
    if isinstance(part, dict):
        found = cast("dict[str, Any]", part)
        here = {found["$ref"]} if isinstance(found.get("$ref"), str) else set[str]()
        return here.union(*(_references(one) for one in found.values()))
    return set[str]().union(*(_references(one) for one in part)) if isinstance(part, list) else set()


class WholeForm(BaseTransformOutputParser[Any]):
    """Parses answers that must follow a schema, and never repairs one.

    LangChain's own parsers close what was cut off, so that an answer with fields missing would look whole. While an
    answer without a class is streamed its unfinished form is shown, and the end is checked.

    Raises:
        OutputParserException: The answer was cut off, or is not valid; the message names the reason.
    """

    fields: type[Any] | None = None
    """The class of the result, of pydantic or of its version 1; None: a dictionary."""
    tool: str | None = None
    """The tool whose arguments are the result; None: the text is."""

    @property
    def _type(self) -> str:
        return "mplus_whole_form"

    def parse(self, text: str) -> Any:
        """The result of a whole text."""
        return self.parse_result([ChatGeneration(message=AIMessage(text))])

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """The result of an answer; with ``partial`` what is known of an unfinished one, or None."""
        message = cast("ChatGeneration", result[0]).message
        return self._unfinished(message) if partial else self._whole(message)

    def _whole(self, message: BaseMessage) -> Any:
        reason, said = message.response_metadata.get("finish_reason"), self._said(message)
        try:
            found = json.loads(said)
        except json.JSONDecodeError as error:
            how = CUT_OFF.get(str(reason), f"it is not JSON ({error})")
            raise OutputParserException(
                f"The answer has not the form that was asked for, because {how}: {said!r:.200}", llm_output=said
            ) from error
        if reason in CUT_OFF and not isinstance(found, dict | list):  # 12 may have been going to be 123
            raise OutputParserException(f"The answer may be cut off, because {CUT_OFF[reason]}: {said!r:.200}")
        if self.fields is None:
            return found
        try:
            is_new = issubclass(self.fields, BaseModel)
            return self.fields.model_validate(found) if is_new else self.fields.parse_obj(found)
        except ValueError as error:
            raise OutputParserException(
                f"The answer does not fit {self.fields.__name__}: {error}", llm_output=said
            ) from error

    def _said(self, message: BaseMessage) -> str:
        """The text that must be JSON: the answer, or the arguments of its call."""
        if self.tool is not None and isinstance(message, AIMessage):
            if message.tool_calls:
                return json.dumps(message.tool_calls[0]["args"], ensure_ascii=False)
            if message.invalid_tool_calls:
                return str(message.invalid_tool_calls[0]["args"])
        return str(message.text)

    def _unfinished(self, message: BaseMessage) -> Any:
        if self.fields is not None or self.tool is not None or not str(message.text).strip():
            return None
        try:
            return parse_partial_json(str(message.text))
        except json.JSONDecodeError:
            return None

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:
        whole, shown = AIMessageChunk(content=""), None
        for chunk in input:
            whole += _as_chunk(chunk)
            if (found := self._unfinished(whole)) is not None and found != shown:
                yield found
                shown = found
        if (found := self._whole(whole)) != shown:
            yield found

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:
        whole, shown = AIMessageChunk(content=""), None
        async for chunk in input:
            whole += _as_chunk(chunk)
            if (found := self._unfinished(whole)) is not None and found != shown:
                yield found
                shown = found
        if (found := self._whole(whole)) != shown:
            yield found


def _as_chunk(chunk: str | BaseMessage) -> AIMessageChunk:
    if isinstance(chunk, AIMessageChunk):
        return chunk
    if isinstance(chunk, AIMessage):
        return AIMessageChunk.model_validate({**chunk.model_dump(), "type": "AIMessageChunk"})
    return AIMessageChunk(content=chunk if isinstance(chunk, str) else chunk.content)
