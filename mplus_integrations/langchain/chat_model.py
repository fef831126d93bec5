"""``MPlusChat``: a LangChain chat model whose memory is latent and never fills the prompt."""

import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal

from langchain_core.caches import BaseCache
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field, SecretStr

from mplus import source_filter
from mplus_integrations.answering import Answer, Piece
from mplus_integrations.forms import check_form, is_forced, response_format
from mplus_integrations.history import OURS
from mplus_integrations.langchain.messages import memorized, to_chat, to_last_chunk, to_message, usage
from mplus_integrations.langchain.named_calls import CONFIG_SEEN, NamedCalls
from mplus_integrations.langchain.structured import FORM, as_json_schema, as_tool, with_schema, with_tools
from mplus_integrations.latents import Latents, Shared
from mplus_integrations.memorized import Memorized
from mplus_integrations.settings import Call
from mplus_integrations.worker import answered, in_thread, streamed

MEMORY_STATE = "mplus_memory_state"
"""Argument that passes the state of a call's memory to the key of LangChain's cache."""
WITHOUT_EFFECT = frozenset(
    {
        *("strict", "stream", "stream_usage", "ls_structured_output_format", "structured_output_format"),
        *(MEMORY_STATE, CONFIG_SEEN, FORM),
    }
)
"""Arguments that LangChain and its agents pass to every chat model; they have no effect here. Forms are always
strict and the last chunk always has the usage; the other arguments are for LangChain itself."""


class MPlusChat(NamedCalls):
    """Chat with a local model that remembers.

        chat = MPlusChat()
        chat.memorize("My dog is called Biscuit.", source="notes")
        chat.invoke("What is my dog called?").content

    Weights are loaded at the first use, once per process and model. Written texts are not put into the prompt;
    they are read from the latent memory given by ``memory``, or by ``store`` and ``memory_key``, and from ``shared``
    ones beside it. A config, or the context of a graph, names the memory of a call too: ``memory_key``, else
    ``user_id``; with a store and no other name also ``thread_id``, ``session_id`` or ``conversation_id``.

    Arguments of a call, bound or given: all answer settings of the constructor, ``stop``, ``memory_key``, ``where``
    (the sources to read), ``model``, ``tools``, ``tool_choice``, ``parallel_tool_calls`` and ``response_format``.
    Another name is an error; None stands for the default.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True, hide_input_in_errors=True)

    stop: str | list[str] | None = Field(default=None, alias="stop_sequences")
    """Strings that end an answer."""
    max_retries: int = 0
    """Accepted for compatibility and ignored: a local model does not retry."""
    streaming: bool = False
    """Accepted for compatibility and ignored: every answer can be streamed."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Accepted for compatibility and ignored: a local model needs no key."""

    # --- LangChain's interface --------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "mplus"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model_name": self.model_name, **self._own_settings()}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        found = super()._get_ls_params(stop, **kwargs)
        found["ls_provider"] = "mplus"
        found["ls_model_name"] = str(kwargs.get("model") or self.model_name)
        return found

    def _resolve_model_profile(self) -> ModelProfile | None:
        return ModelProfile(
            name=self.model_name,
            max_input_tokens=self.window - self.max_tokens,
            max_output_tokens=self.max_tokens,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
        )

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # A cached answer is valid only for the same state of the memory.
        state = kwargs.pop(MEMORY_STATE, None) or self._memory_state(kwargs)
        for name in ("where", "conversation_says"):
            kwargs.pop(name, None)
        return f"{super()._get_llm_string(stop, **kwargs)}---memory={state}"

    def _memory_state(self, kwargs: Mapping[str, Any]) -> str:
        call = self._call(None, kwargs)
        states: list[str] = []
        own, beside = self._memories_of(call)
        for latents in (own, *(shared.latents for shared in beside)):
            with latents.opened(self._model_of(call)) as memory:
                read = None
                if call.where is not None:
                    fits = source_filter(call.where)
                    read = [source.name for source in memory.sources() if fits(source.name, source.metadata)]
                states.append(f"{memory.fingerprint}:{read}")
        return f"{call.memory_key}:{':'.join(states)}"

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # LangChain computes the cache's key on the event loop. That may load weights, so a thread does it first.
        if isinstance(self.cache, BaseCache) or (self.cache is not False and get_llm_cache() is not None):
            kwargs[MEMORY_STATE] = await in_thread(self._memory_state, kwargs)
        return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of the model's own tokenizer, or of ``custom_get_token_ids``."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]

    def get_num_tokens_from_messages(
        self,
        messages: Sequence[BaseMessage],
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Tokens of a prompt with these messages and tools, those of the chat template included.

        Raises:
            ValueError: There are no messages, or one cannot be read.
        """
        given = [{key: value for key, value in turn.items() if key not in OURS} for turn in to_chat(messages)]
        return self.loaded.count_tokens(given, tools=[as_tool(tool) for tool in tools] if tools else None)

    def without_memory(self) -> Runnable[LanguageModelInput, AIMessage]:
        """This model for calls that read and write no memory.

        For steps that put something into other words: the rephrasing of ``create_history_aware_retriever``, a summary,
        a judge. The whole conversation stands in the prompt, as far as it fits.
        """
        return self.bind(use_memory=False)

    # --- tools and structured output --------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Give the model tools; its calls are always valid.

        Args:
            tools: Functions, Pydantic classes, LangChain tools or OpenAI tool descriptions.
            tool_choice: None or "auto" (free text or a call), "any" / "required" / True (some call), a
                tool's name or ``{"type": "function", "function": {"name": …}}`` (that call), "none".
            kwargs: Bound as well. With ``response_format`` an answer that calls no tool has that form; it may stand
                alone, without tools.

        Raises:
            ValueError: The choice is unknown, or a tool allows any parameters.
        """
        self._call(None, kwargs)
        return with_tools(self, tools, tool_choice, kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A model whose answers follow a schema; decoding is constrained, so they always validate.

        Args:
            schema: Pydantic class, TypedDict or JSON Schema.
            include_raw: Return ``{"raw", "parsed", "parsing_error"}``.
            method: As JSON, or as the arguments of a tool call.
            strict: Accepted for compatibility; answers are always strict.
            kwargs: Bound as well.

        Raises:
            ValueError: The method is unknown, or the schema allows any properties.
        """
        self._call(None, kwargs)
        return with_schema(self, schema, method, include_raw=include_raw, strict=strict, kwargs=kwargs)

    # --- answers ----------------------------------------------------------------------------------

    def _call(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> Call:
        given = {name: value for name, value in kwargs.items() if name not in WITHOUT_EFFECT}
        if isinstance(schema := given.get("response_format"), type):
            given["response_format"] = response_format(schema.__name__, as_json_schema(schema))
        return self._as_call({"stop": None if stop == [] else stop, **self._asked_in(None, given)})

    def _memories_of(self, call: Call) -> tuple[Latents, list[Shared]]:
        """The memory of a call, and those that it reads beside it."""
        if not call.use_memory:
            return Latents(), []
        return self.latents(call.memory_key), self.shared_memories()

    def _present_key(self, memory_key: str | None, conversation: str | None = None) -> str | None:
        # A step of a chain or graph writes into the memory that its answers read.
        if memory_key is not None or self.memory is not None:
            return memory_key
        return self._asked_in(None, {"conversation_id": conversation}).get("memory_key")

    def _memorized(self, item: Any) -> Memorized:
        return memorized(item)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._answered(messages, stop, kwargs, threading.Event())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await answered(partial(self._answered, messages, stop, kwargs))

    def _answered(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any], left: threading.Event
    ) -> ChatResult:
        call = self._call(stop, kwargs)
        latents, shared = self._memories_of(call)
        answer = _checked(call, kwargs, self._answer(to_chat(messages), call, latents, left, shared=shared))
        return ChatResult(generations=[ChatGeneration(message=to_message(answer))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages, stop, kwargs, threading.Event()):
            if run_manager is not None:
                run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(streamed(partial(self._chunks, messages, stop, kwargs))) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
                yield chunk

    def _chunks(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any], left: threading.Event
    ) -> Generator[ChatGenerationChunk]:
        call = self._call(stop, kwargs)
        latents, shared = self._memories_of(call)
        told = (0, 0)
        for piece in self._pieces(to_chat(messages), call, latents, left, shared=shared):
            if isinstance(piece, Piece):
                message = AIMessageChunk(content=str(piece), usage_metadata=usage(piece.tokens, told))
                told = piece.tokens
            else:
                message = to_last_chunk(_checked(call, kwargs, piece), told)
            yield ChatGenerationChunk(message=message)


def _checked(call: Call, kwargs: Mapping[str, Any], answer: Answer) -> Answer:
    """The answer. JSON, a call that was asked for and a form of an agent must be whole where no parser checks it.

    Of a call that the model was free to make, ``invalid_tool_calls`` of the message tells what is wrong.
    """
    calls, invalid = [one for _, one in answer.calls], [one for _, one in answer.invalid_calls]
    must_be_whole = call.response_format is not None or is_forced(call)
    if kwargs.get(FORM, "chat" if must_be_whole else "parser") == "chat":
        check_form(call, answer.generation, calls, invalid)
    return answer
