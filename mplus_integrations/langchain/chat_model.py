"""``MPlusChat``: a LangChain chat model whose memory is latent and never fills the prompt."""

import json
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, Field

from mplus import Generation, GenerationStream, Scheduler, parse_tool_calls
from mplus_integrations.history import fitted
from mplus_integrations.langchain.forms import before_calls, form_of, with_schema, with_told, with_tools
from mplus_integrations.langchain.memories import Remembering, keyed
from mplus_integrations.langchain.messages import response_metadata, to_chat, to_tool_calls, usage
from mplus_integrations.worker import in_thread, streamed

MEMORY_STATE = "mplus_memory_state"
"""Carries the state of a call's memory to the key of LangChain's cache."""


class MPlusChat(Remembering, BaseChatModel):
    """Chat with a local model that remembers.

        chat = MPlusChat()
        chat.memorize("My dog is called Biscuit.", source="notes")
        chat.invoke("What is my dog called?").content

    Weights are loaded at the first use, once per process and model. What is written stays out of the
    prompt: it is read from latent memory, the one of ``memory``, ``store`` and ``memory_key``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    temperature: float = 0.0
    """0 always takes the likeliest token."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability."""
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    """Strings that end an answer."""
    seed: int | None = None
    """The same seed gives the same answer."""
    abstain_below: float | None = None
    """Say ``abstain_reply`` instead of an answer in words that is less sure than this; None: never."""
    abstain_reply: str = "I don't know."
    """What is said then."""
    timeout: float | None = None
    """Seconds after which an answer ends as it is; None: never."""
    max_retries: int = 0
    """Accepted for what hosted models need it for; a local model does not retry."""
    streaming: bool = False
    """Accepted; every answer can be streamed."""
    scheduler: Scheduler | None = None
    """``model.serve()``: answers to many users share the model's steps; None: each runs by itself."""

    # --- what LangChain asks ----------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "mplus"

    @property
    def _model_name(self) -> str:
        return self.model if isinstance(self.model, str) else self.model.name

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {
            "model_name": self._model_name,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "stop": self.stop,
            "seed": self.seed,
            "abstain_below": self.abstain_below,
            "abstain_reply": self.abstain_reply,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        found = super()._get_ls_params(stop, **kwargs)
        found["ls_provider"] = "mplus"
        found["ls_model_name"] = str(kwargs.get("model", self._model_name))
        found["ls_temperature"] = kwargs.get("temperature", self.temperature)
        found["ls_max_tokens"] = kwargs.get("max_tokens", self.max_tokens)
        return found

    def _resolve_model_profile(self) -> ModelProfile | None:
        known = self._known_model()
        window = 8192 if known is None else known.weights.backbone.window
        return ModelProfile(
            name=self._model_name,
            max_input_tokens=window - self.max_tokens,
            max_output_tokens=self.max_tokens,
            text_inputs=True,
            text_outputs=True,
            image_inputs=False,
            tool_calling=True,
            tool_choice=True,
            structured_output=True,
        )

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # A cached answer is only good for the memory it was given with.
        state = kwargs.pop(MEMORY_STATE, None) or self._memory_state(kwargs)
        return f"{super()._get_llm_string(stop, **kwargs)}---memory={state}"

    def _memory_state(self, kwargs: Mapping[str, Any]) -> str:
        key = kwargs.get("memory_key")
        with self.opened(key, self._model(kwargs)) as memory:
            return f"{key}:{memory.fingerprint}"

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        # The cache's key is asked for on the event loop, and telling it may load weights and read a disk.
        if isinstance(self.cache, BaseCache) or (self.cache is not False and get_llm_cache() is not None):
            kwargs[MEMORY_STATE] = await in_thread(self._memory_state, kwargs)
        return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    # A memory may be chosen by ``config={"configurable": {"memory_key": …}}``, in chains and agents too.

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answer; ``memory_key`` per call or in ``config["configurable"]``."""
        return super().invoke(input, config, stop=stop, **keyed(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """``invoke`` without blocking the event loop; cancelling it stops generation."""
        return await super().ainvoke(input, config, stop=stop, **keyed(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Answer piece by piece; leaving the loop stops generation."""
        yield from super().stream(input, config, stop=stop, **keyed(config, kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """``stream`` without blocking the event loop."""
        async for chunk in super().astream(input, config, stop=stop, **keyed(config, kwargs)):
            yield chunk

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of the model's own tokenizer."""
        return self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]

    # --- tools and structured output --------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tell the model about tools; what it calls is always a valid call.

        Args:
            tools: Functions, Pydantic classes, LangChain tools or OpenAI tool descriptions.
            tool_choice: None or "auto" (free text or a call), "any" / "required" / True (some call), a
                tool's name or ``{"type": "function", "function": {"name": …}}`` (that call), "none".
            kwargs: Bound as well; ``response_format`` may stand alone, without tools.

        Raises:
            ValueError: An unknown choice, or a tool whose parameters are open.
        """
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
        """Answers of a schema: constrained while they are generated, so they always validate.

        Args:
            schema: Pydantic class, TypedDict or JSON Schema.
            include_raw: Return ``{"raw", "parsed", "parsing_error"}``.
            method: As JSON, or as the arguments of a tool call.
            strict: Always so; accepted for other models' sake.
            kwargs: Bound as well.

        Raises:
            ValueError: An unknown method, or a schema that is open.
        """
        return with_schema(self, schema, method, include_raw=include_raw, strict=strict, kwargs=kwargs)

    # --- answers ----------------------------------------------------------------------------------

    def _begin(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> GenerationStream:
        chat = to_chat(messages)
        if not chat:
            raise ValueError("messages=[]: expected at least one message to answer.")
        form = form_of(kwargs)
        chat = with_told(chat, form.told)
        model, key, tools = self._model(kwargs), kwargs.get("memory_key"), kwargs.get("tools")
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        # What is read is fixed here: neither a later write nor another history of this memory changes it, and
        # a named memory is free for others while this answer is made.
        with self.opened(key, model) as memory, memory.writing():
            room = model.prompt_room(memory)
            prompt = fitted(
                model,
                memory,
                chat,
                room=max(room - min(max_tokens, room // 4), 1),
                tools=tools,
                apart=self._keeps_conversations_apart(key),
            )
            engine = model if self.scheduler is None or "model" in kwargs else self.scheduler
            return engine.stream(
                prompt.memory,
                prompt.messages,
                max_new_tokens=max_tokens,
                temperature=kwargs.get("temperature", self.temperature),
                top_p=kwargs.get("top_p", self.top_p),
                seed=kwargs.get("seed", self.seed),
                stop=stop or self.stop or (),
                tools=tools,
                constraint=form.constraint,
                where=prompt.where,
                timeout=kwargs.get("timeout", self.timeout),
                # A call or a structured answer has no such reply: its form would be broken.
                abstain_below=None if form.constraint else kwargs.get("abstain_below", self.abstain_below),
                abstain_reply=kwargs.get("abstain_reply", self.abstain_reply),
            )

    def _message(self, generation: Generation, kwargs: Mapping[str, Any]) -> AIMessage:
        text, calls = parse_tool_calls(generation.text) if kwargs.get("tools") else (generation.text, [])
        good, bad = to_tool_calls(calls)
        return AIMessage(
            text,
            tool_calls=good,
            invalid_tool_calls=bad,
            usage_metadata=usage(generation),
            response_metadata=response_metadata(generation, self._model(kwargs).name or self._model_name),
        )

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
        left = threading.Event()
        try:
            return await in_thread(self._answered, messages, stop, kwargs, left)
        finally:
            left.set()

    def _answered(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any], left: threading.Event
    ) -> ChatResult:
        with self._begin(messages, stop, kwargs) as stream:
            stream.cancel_with(left)
            for _ in stream:
                pass
            return ChatResult(generations=[ChatGeneration(message=self._message(stream.generation, kwargs))])

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
        left = threading.Event()
        chunks = streamed(lambda: self._chunks(messages, stop, kwargs, left), left)
        async with aclosing(chunks):
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(str(chunk.message.content), chunk=chunk)
                yield chunk

    def _chunks(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any], left: threading.Event
    ) -> Generator[ChatGenerationChunk]:
        held = ""
        with self._begin(messages, stop, kwargs) as stream:
            # While a call is held back no chunk is yielded: whoever leaves must reach the generation itself.
            stream.cancel_with(left)
            for piece in stream:
                if kwargs.get("tools"):
                    piece, held = before_calls(held + piece)
                    if not piece:
                        continue
                yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
            generation = stream.generation
        message = self._message(generation, kwargs)
        calls = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=n)
            for n, call in enumerate(message.tool_calls)
        ]
        calls += [
            tool_call_chunk(name=call["name"], args=call["args"], id=call["id"], index=len(calls) + n)
            for n, call in enumerate(message.invalid_tool_calls)
        ]
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="" if calls else held,
                tool_call_chunks=calls,
                usage_metadata=message.usage_metadata,
                response_metadata=message.response_metadata,
                chunk_position="last",
            )
        )
