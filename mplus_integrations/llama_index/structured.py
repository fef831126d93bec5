"""Answers of a Pydantic class, constrained while they are generated."""

from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.instrumentation import get_dispatcher  # pyright: ignore[reportPrivateImportUsage]
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel, ValidationError

dispatcher = get_dispatcher(__name__)


class StructuredPredict(LLM):
    """The four ``structured_predict`` members, without a detour over tool calls or over asking for JSON.

    The form is enforced token by token, so an answer is invalid only where it was cut off.
    """

    @dispatcher.span
    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """An object of a class.

        Raises:
            ValueError: The class has fields that are open, or ``max_tokens`` cut the answer off.
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
        """The object as it grows, parts of it missing at first; the last one is whole."""
        dispatcher.event(_start(output_cls, prompt, prompt_args))
        messages = self._get_messages(prompt, **prompt_args)
        partial: Any = None
        for response in self.stream_chat(messages, **asking(output_cls, llm_kwargs)):
            partial = _step(output_cls, response, partial)
            yield partial
        _done(partial)

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
            partial: Any = None
            async for response in await self.astream_chat(messages, **asking(output_cls, llm_kwargs)):
                partial = _step(output_cls, response, partial)
                yield partial
            _done(partial)

        return objects()


def _start(
    output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]
) -> LLMStructuredPredictStartEvent:
    return LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)


def asking(output_cls: type[BaseModel], llm_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of a call whose answer is JSON of a class."""
    schema = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    return {**(llm_kwargs or {}), "response_format": {"type": "json_schema", "json_schema": schema}}


def parsed(output_cls: type[BaseModel], response: ChatResponse) -> BaseModel:
    """The object that an answer is.

    Raises:
        ValueError: It was cut off.
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


def _step(output_cls: type[BaseModel], response: ChatResponse, before: Any) -> Any:
    found = (
        parsed(output_cls, response)  # the last one
        if response.raw is not None
        else process_streaming_objects(response, output_cls, None if before is None else [before])
    )
    dispatcher.event(LLMStructuredPredictInProgressEvent(output=found))
    return found


def _done(found: Any) -> Any:
    dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found
