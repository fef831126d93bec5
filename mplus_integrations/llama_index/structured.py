"""Answers that are objects of a Pydantic class, by constrained decoding."""

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.instrumentation import get_dispatcher  # pyright: ignore[reportPrivateImportUsage]
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.program.utils import create_flexible_model, process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel, ValidationError

from mplus import UnknownNameError
from mplus_integrations.forms import response_format
from mplus_integrations.settings import INSTEAD, Call

dispatcher = get_dispatcher(__name__)
OF_A_CALL = {
    name: f"an argument of its calls, such as chat(messages, {name}=…)" for name in (*Call.model_fields, *INSTEAD)
}
"""Settings of a call, with what to write where they have no meaning."""


class StructuredPredict(LLM):
    """The four ``structured_predict`` methods, by constrained decoding instead of tool calls.

    The form is enforced token by token, so an answer is invalid only if it was cut off.
    """

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> StructuredLLM:
        """This LLM, whose answers are objects of a class.

        Args:
            output_cls: The class.
            kwargs: ``callback_manager``. Settings of answers are arguments of its calls, such as ``max_tokens``.

        Raises:
            UnknownNameError: Another argument.
        """
        UnknownNameError.check(kwargs, {"callback_manager"}, of="as_structured_llm", instead=OF_A_CALL)
        return super().as_structured_llm(output_cls, **kwargs)

    def _get_prompt(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        _refuse_settings(prompt, prompt_args)
        return super()._get_prompt(prompt, **prompt_args)

    def _get_messages(self, prompt: BasePromptTemplate, **prompt_args: Any) -> list[ChatMessage]:
        _refuse_settings(prompt, prompt_args)
        return super()._get_messages(prompt, **prompt_args)

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """The answer as an object of a class.

        Raises:
            ValueError: The class has fields that allow any properties, or ``max_tokens`` cut the answer off.
        """
        dispatcher.event(_start(output_cls, prompt, prompt_args))
        response = self.chat(self._get_messages(prompt, **prompt_args), **asking(output_cls, llm_kwargs))
        return _done(parsed(output_cls, response))

    @dispatcher.span
    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """``structured_predict`` without blocking the event loop."""
        dispatcher.event(_start(output_cls, prompt, prompt_args))
        response = await self.achat(self._get_messages(prompt, **prompt_args), **asking(output_cls, llm_kwargs))
        return _done(parsed(output_cls, response))

    @dispatcher.span
    def stream_structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """The object as it grows; fields may be missing until the last item, which is complete."""
        dispatcher.event(_start(output_cls, prompt, prompt_args))
        messages = self._get_messages(prompt, **prompt_args)
        growing = _Growing(output_cls)
        for response in self.stream_chat(messages, **asking(output_cls, llm_kwargs)):
            yield growing.step(response)
        _done(growing.found)

    @dispatcher.span
    async def astream_structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """``stream_structured_predict`` without blocking the event loop."""

        async def objects() -> AsyncGenerator[Any, None]:
            dispatcher.event(_start(output_cls, prompt, prompt_args))
            messages = self._get_messages(prompt, **prompt_args)
            growing = _Growing(output_cls)
            async for response in await self.astream_chat(messages, **asking(output_cls, llm_kwargs)):
                yield growing.step(response)
            _done(growing.found)

        return objects()


def _refuse_settings(prompt: BasePromptTemplate, given: Mapping[str, Any]) -> None:
    """Refuse settings of a call where values of a template belong, which would drop them.

    Raises:
        UnknownNameError: The template has no variable of that name.
    """
    maps = (prompt.template_var_mappings, prompt.function_mappings, prompt.kwargs)
    variables = {*prompt.template_vars, *(name for names in maps for name in names or {})}
    lost = next((name for name in given if name in OF_A_CALL and name not in variables), None)
    if lost is not None:
        raise UnknownNameError(
            f"The prompt has no variable {lost!r}, and settings of a call are none. Use llm_kwargs={{{lost!r}: …}} of "
            f"structured_predict, or model_copy(update={{{lost!r}: …}}) of the LLM."
        )


def _start(
    output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]
) -> LLMStructuredPredictStartEvent:
    return LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)


def asking(output_cls: type[BaseModel], llm_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a call whose answer is JSON of a class."""
    form = response_format(output_cls.__name__, output_cls.model_json_schema())
    return {**(llm_kwargs or {}), "response_format": form}


def parsed(output_cls: type[BaseModel], response: ChatResponse) -> BaseModel:
    """Parse an answer into an object.

    Raises:
        ValueError: The answer was cut off.
    """
    text = response.message.content or ""
    try:
        return output_cls.model_validate_json(text)
    except ValidationError as error:
        reason = response.raw["finish_reason"] if isinstance(response.raw, dict) else "unknown"
        raise ValueError(
            f"{text!r:.120} is no {output_cls.__name__}: the answer ended because of {reason!r}. Allow it more "
            f"max_tokens, or give fields of the class a limit. ({error.error_count()} errors)"
        ) from error


class _Growing:
    """An object whose JSON arrives piece by piece."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self.found: Any = None
        self._whole = output_cls
        self._partial = create_flexible_model(output_cls)

    def step(self, response: ChatResponse) -> Any:
        """The object as far as it is known; complete with the last piece, which has a finish reason."""
        if isinstance(response.raw, dict) and "finish_reason" in response.raw:
            self.found = parsed(self._whole, response)
        else:
            before = None if self.found is None else [self.found]
            self.found = process_streaming_objects(response, self._partial, before, flexible_mode=False)
        dispatcher.event(LLMStructuredPredictInProgressEvent(output=self.found))
        return self.found


def _done(found: Any) -> Any:
    dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found
