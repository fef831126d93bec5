"""``MPlusChat``: a LangChain chat model whose memory is latent and never fills the prompt."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableMap, RunnablePassthrough
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, PrivateAttr

from mplus import Constraint, Generation, GenerationStream, Memory, MemoryStore, MPlus, parse_tool_calls
from mplus_integrations.langchain.history import fitted
from mplus_integrations.langchain.messages import response_metadata, to_chat, to_texts, to_tool_calls, usage

OPEN_CALL = "<tool_call>"

_LOADED: dict[str, MPlus] = {}
_LOADING = threading.Lock()


class MPlusChat(BaseChatModel):
    """Chat with a local model that remembers.

        chat = MPlusChat()
        chat.memorize("My dog is called Biscuit.", source="notes")
        chat.invoke("What is my dog called?").content

    Weights are loaded at the first use, once per process and model. What is written stays out of the
    prompt: it is read from latent memory.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    model: str | MPlus = "smol-135m"
    """Built-in name, local folder, hub repository, or a loaded model."""
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
    memory: Memory | None = None
    """What is remembered; None: an own, empty memory, or those of ``store``."""
    timeout: float | None = None
    """Seconds after which an answer ends as it is; None: never."""
    max_retries: int = 0
    """Accepted for what hosted models need it for; a local model does not retry."""
    streaming: bool = False
    """Accepted; every answer can be streamed."""
    store: MemoryStore | None = None
    """Named memories on disk; ``memory_key`` says which."""
    memory_key: str | None = None
    """Name of the memory in ``store``; may be given per call."""

    _own_memories: dict[str, Memory] = PrivateAttr(default_factory=dict[str, Memory])
    _guard: threading.RLock = PrivateAttr(default_factory=threading.RLock)

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
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        found = super()._get_ls_params(stop, **kwargs)
        found["ls_provider"] = "mplus"
        found["ls_model_name"] = str(kwargs.get("model", self._model_name))
        found["ls_temperature"] = kwargs.get("temperature", self.temperature)
        found["ls_max_tokens"] = kwargs.get("max_tokens", self.max_tokens)
        return found

    def _resolve_model_profile(self) -> ModelProfile | None:
        known = self.model if isinstance(self.model, MPlus) else _LOADED.get(self.model)
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
        key = kwargs.get("memory_key")
        with self.opened(key, self._model(kwargs)) as memory:
            return f"{super()._get_llm_string(stop, **kwargs)}---memory={key}:{memory.fingerprint}"

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
        return super().invoke(input, config, stop=stop, **_keyed(config, kwargs))

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """``invoke`` without blocking the event loop; cancelling it stops generation."""
        return await super().ainvoke(input, config, stop=stop, **_keyed(config, kwargs))

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Answer piece by piece; leaving the loop stops generation."""
        yield from super().stream(input, config, stop=stop, **_keyed(config, kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """``stream`` without blocking the event loop."""
        async for chunk in super().astream(input, config, stop=stop, **_keyed(config, kwargs)):
            yield chunk

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of the model's own tokenizer."""
        return self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]

    # --- memory -----------------------------------------------------------------------------------

    @property
    def loaded(self) -> MPlus:
        """The model itself; loaded at the first use."""
        return self.model if isinstance(self.model, MPlus) else _load(self.model)

    def _model(self, kwargs: Mapping[str, Any]) -> MPlus:
        """The model of a call, which may name another."""
        other = kwargs.get("model")
        return self.loaded if other is None else other if isinstance(other, MPlus) else _load(str(other))

    def opened(self, memory_key: str | None = None, model: MPlus | None = None) -> AbstractContextManager[Memory]:
        """The memory of a call: the store's one of that name, the given one, or an own one."""
        key = memory_key or self.memory_key
        model = model or self.loaded
        if self.store is not None and self.memory is None:
            return self.store.open(key or "default", model)
        if key is not None and self.store is None:
            raise ValueError(f"memory_key={key!r} without a store: pass store=mplus.MemoryStore(folder) to MPlusChat.")
        if self.memory is not None:
            return nullcontext(self.memory)
        with self._guard:
            fingerprint = model.weights.fingerprint
            if fingerprint not in self._own_memories:
                self._own_memories[fingerprint] = model.new_memory()
            return nullcontext(self._own_memories[fingerprint])

    def memorize(
        self,
        items: str | Document | BaseMessage | Sequence[str | Document | BaseMessage],
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
    ) -> int:
        """Write texts, documents or messages into memory.

        Args:
            items: What to remember. A document's id or ``metadata["source"]`` names its source.
            source: One source for everything.
            metadata: Comes back with what is recalled.
            memory_key: Which memory of the store.

        Returns:
            Text tokens written.

        Raises:
            ValueError: Empty text, or something that cannot be written.
        """
        texts = to_texts(items)
        written = 0
        with self.opened(memory_key) as memory:
            fork = memory.fork()
            for text, own_source, own_metadata in texts:
                report = self.loaded.write(
                    fork,
                    text,
                    source=source or own_source,
                    metadata={**own_metadata, **(metadata or {})},
                    keep_text=True,
                )
                written += report.text_tokens
            memory.adopt(fork)
        return written

    async def amemorize(
        self,
        items: str | Document | BaseMessage | Sequence[str | Document | BaseMessage],
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
    ) -> int:
        """``memorize`` without blocking the event loop."""
        return await asyncio.to_thread(self.memorize, items, source=source, metadata=metadata, memory_key=memory_key)

    def forget(self, source: str, *, memory_key: str | None = None) -> int:
        """Remove a source from memory for good; returns how many memory tokens went."""
        with self.opened(memory_key) as memory:
            return memory.forget(source)

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
        kwargs.pop("strict", None)  # calls are always strict
        if not tools:
            return cast("Runnable[LanguageModelInput, AIMessage]", self.bind(**kwargs))
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        choice = _choice(tool_choice)
        if choice != "none":
            Constraint.tool_calls(formatted, choice)  # a bad schema or name fails here, not at the first answer
        bound = self.bind(tools=formatted, tool_choice=choice, **kwargs)
        return cast("Runnable[LanguageModelInput, AIMessage]", bound)

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
        is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
        wanted = convert_to_json_schema(schema)
        note = {"kwargs": {"method": method, "strict": strict}, "schema": wanted}
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]
            model = self.bind_tools([schema], tool_choice=name, ls_structured_output_format=note, **kwargs)
            parser: Any = (
                PydanticToolsParser(tools=[cast("Any", schema)], first_tool_only=True)
                if is_class
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        elif method in ("json_schema", "json_mode"):
            Constraint.json_schema(wanted)
            wrapped = {"type": "json_schema", "json_schema": {"name": wanted.get("title", "answer"), "schema": wanted}}
            model = self.bind(response_format=wrapped, ls_structured_output_format=note, **kwargs)
            parser = PydanticOutputParser(pydantic_object=cast("Any", schema)) if is_class else JsonOutputParser()
        else:
            raise ValueError(f"method={method!r}: expected 'json_schema', 'function_calling' or 'json_mode'.")
        if not include_raw:
            return model | parser
        parsed = RunnablePassthrough.assign(parsed=_raw | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    # --- answers ----------------------------------------------------------------------------------

    def _begin(
        self,
        model: MPlus,
        memory: Memory,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
    ) -> GenerationStream:
        chat = to_chat(messages)
        if not chat:
            raise ValueError("messages=[]: expected at least one message to answer.")
        tools, choice = kwargs.get("tools"), kwargs.get("tool_choice", "auto")
        schema = _response_schema(kwargs.get("response_format"))
        constraint = None
        if schema is not None:
            constraint = Constraint.json_schema(schema)
            told = f"Answer with JSON of this schema: {json.dumps(schema, ensure_ascii=False)}"
            chat = (
                [{"role": "system", "content": told}, *chat]
                if chat[0]["role"] != "system"
                else [{"role": "system", "content": f"{chat[0]['content']}\n\n{told}"}, *chat[1:]]
            )
        elif tools and choice != "none":
            constraint = Constraint.tool_calls(tools, choice)
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        room = max(model.prompt_room(memory) - min(max_tokens, model.prompt_room(memory) // 4), 1)
        chat = fitted(model, memory, chat, room=room, tools=tools)
        return model.stream(
            memory,
            chat,
            max_new_tokens=max_tokens,
            temperature=kwargs.get("temperature", self.temperature),
            top_p=kwargs.get("top_p", self.top_p),
            seed=kwargs.get("seed", self.seed),
            stop=stop or self.stop or (),
            tools=tools,
            constraint=constraint,
            timeout=self.timeout,
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

    def _answered(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
        cancelled: threading.Event,
    ) -> ChatResult:
        model = self._model(kwargs)
        with (
            self.opened(kwargs.get("memory_key"), model) as memory,
            self._begin(model, memory, messages, stop, kwargs) as stream,
        ):
            stream.cancel_with(cancelled)
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
        yield from self._chunks(messages, stop, run_manager, kwargs, threading.Event())

    def _chunks(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | None,
        kwargs: Mapping[str, Any],
        cancelled: threading.Event,
    ) -> Iterator[ChatGenerationChunk]:
        model = self._model(kwargs)
        held = ""
        with (
            self.opened(kwargs.get("memory_key"), model) as memory,
            self._begin(model, memory, messages, stop, kwargs) as stream,
        ):
            # While a call is held back no chunk is yielded: whoever leaves must reach the generation itself.
            stream.cancel_with(cancelled)
            for piece in stream:
                if kwargs.get("tools"):
                    piece, held = _without_calls(held + piece)
                    if not piece:
                        continue
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
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

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        cancelled = threading.Event()
        try:
            return await asyncio.to_thread(self._answered, messages, stop, kwargs, cancelled)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        """Runs the whole stream in one worker thread; leaving early stops it there."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[ChatGenerationChunk | BaseException | None] = asyncio.Queue()
        left = threading.Event()

        def work() -> None:
            last: BaseException | None = None
            stream = self._chunks(messages, stop, None, kwargs, left)
            try:
                for chunk in stream:
                    if left.is_set():
                        break
                    loop.call_soon_threadsafe(queue.put_nowait, chunk)
            except BaseException as error:
                last = error
            finally:
                close = getattr(stream, "close", None)
                if close is not None:
                    close()
                loop.call_soon_threadsafe(queue.put_nowait, last)

        worker = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if run_manager is not None:
                    await run_manager.on_llm_new_token(str(item.message.content), chunk=item)
                yield item
        finally:
            left.set()
            await asyncio.shield(worker)


def _raw(found: dict[str, Any]) -> Any:
    return found["raw"]


def _load(name: str) -> MPlus:
    with _LOADING:
        if name not in _LOADED:
            _LOADED[name] = MPlus.from_pretrained(name)
        return _LOADED[name]


def _keyed(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call with the memory that its config names."""
    key = ensure_config(config).get("configurable", {}).get("memory_key")
    return kwargs if key is None or "memory_key" in kwargs else {**kwargs, "memory_key": key}


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


def _without_calls(text: str) -> tuple[str, str]:
    """Text that can be shown now, and what has to wait because it is or may become a tool call."""
    at = text.find(OPEN_CALL)
    if at < 0:
        most = min(len(OPEN_CALL) - 1, len(text))
        at = next((len(text) - n for n in range(most, 0, -1) if OPEN_CALL.startswith(text[-n:])), len(text))
    return text[:at], text[at:]
