"""``MPlusLLM``: a LlamaIndex LLM whose memory is latent and never fills the prompt."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    ToolCallBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.schema import BaseNode
from llama_index.core.tools import BaseTool
from pydantic import Field, PrivateAttr, field_serializer, model_validator

from mplus import GenerationStream, Memory, MemoryStore, MPlus, Scheduler
from mplus_integrations.forms import before_calls, form_of, tool_choice, with_told
from mplus_integrations.history import Where, fitted
from mplus_integrations.keys import checked_key
from mplus_integrations.llama_index.latents import Latents, Turn
from mplus_integrations.llama_index.messages import (
    Prompt,
    as_message,
    as_prompt,
    described,
    to_chat,
    to_completion,
    to_response,
    to_texts,
)
from mplus_integrations.llama_index.read_part import chosen, without_repetition
from mplus_integrations.llama_index.structured import StructuredPredict, schema_of
from mplus_integrations.models import load, loaded_already
from mplus_integrations.worker import in_thread, streamed

UNLOADED_WINDOW = 4096
"""What the context window is taken to be until weights are loaded: asking for it must not load them."""

SAMPLING = ("temperature", "top_p", "seed", "timeout", "abstain_below", "abstain_reply")
CALL_SETTINGS = frozenset(
    {*SAMPLING, "max_tokens", "stop", "tools", "tool_choice", "allow_parallel_tool_calls", "response_format"}
    | {"memory_key", "where"}
)


F = TypeVar("F", bound=Callable[..., Any])


def _reported_chat(function: F) -> F:
    """LlamaIndex's callbacks and instrumentation around a member that chats."""
    return llm_chat_callback()(function)


def _reported_completion(function: F) -> F:
    """The same around a member that completes."""
    return llm_completion_callback()(function)


class MPlusLLM(StructuredPredict, FunctionCallingLLM):
    """A local model that remembers.

        llm = MPlusLLM()
        llm.memorize("My dog is called Biscuit.", source="notes")
        llm.complete("What is my dog called?").text

    Weights are loaded at the first use, once per process and model. Messages that come from an
    ``MPlusMemory`` are read with its latents; everything else with the memory that this object names.
    """

    model: str | MPlus = "smol-135m"
    """Built-in name, local folder, hub repository, or a loaded model."""
    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.0, ge=0)
    """0 always takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability."""
    stop: list[str] | None = None
    """Strings that end an answer."""
    seed: int | None = None
    """The same seed gives the same answer."""
    abstain_below: float | None = None
    """Say ``abstain_reply`` instead of an answer in words that is less sure than this; None: never."""
    abstain_reply: str = "I don't know."
    """What is said then."""
    timeout: float | None = None
    """Seconds after which an answer ends as it is; None: never."""
    memory: Memory | None = Field(default=None, exclude=True)
    """The one memory of every call; None: named or own ones."""
    store: MemoryStore | None = Field(default=None, exclude=True)
    """Keeps named memories on disk; None: they live as long as this object."""
    memory_key: str | None = None
    """Name of the memory; may be given per call."""
    scheduler: Scheduler | None = Field(default=None, exclude=True)
    """``model.serve()``: answers to many users share the model's steps; None: each runs by itself."""

    _own: dict[str | None, Latents] = PrivateAttr(default_factory=dict[str | None, Latents])
    _bound: Latents | None = PrivateAttr(default=None)
    _bound_where: Where | None = PrivateAttr(default=None)
    _guard: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        checked_key(self.memory_key)
        if self.memory is not None and (self.memory_key is not None or self.store is not None):
            raise ValueError("memory= beside store= or memory_key=: expected one memory, or names, not both.")
        return self

    @field_serializer("model")
    def _named(self, model: str | MPlus) -> str:
        return model if isinstance(model, str) else model.name

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "mplus_llm"

    @property
    def loaded(self) -> MPlus:
        """The model itself; loaded at the first use."""
        return load(self.model)

    @property
    def model_name(self) -> str:
        """The name of the model."""
        return self.model if isinstance(self.model, str) else self.model.name

    @property
    def metadata(self) -> LLMMetadata:
        """Sizes and abilities; the window is what is left of it beside a full memory."""
        known = loaded_already(self.model)
        window = UNLOADED_WINDOW
        if known is not None:
            config = self.memory.config if self.memory is not None else known.memory_config
            prefix = config.short_term_tokens + config.recalled_tokens + 1
            window = known.weights.backbone.window
            window -= prefix if prefix < window else 0
        return LLMMetadata(
            context_window=window,
            num_output=min(self.max_tokens, window // 2),
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model_name,
        )

    # --- memory -----------------------------------------------------------------------------------

    def latents(self, memory_key: str | None = None) -> Latents:
        """Where the memory of a call is: the given one, the one of that name, or an own one.

        Raises:
            ValueError: A name that is no good one, or a name where there is one memory for all calls.
        """
        key = checked_key(memory_key if memory_key is not None else self.memory_key)
        if self.memory is not None and key is not None:
            raise ValueError(
                f"memory_key={key!r}: this LLM was made with memory=, which every call reads. Leave memory= out to "
                "use names."
            )
        if self.memory is not None or self.store is not None:
            return Latents(memory=self.memory, store=self.store, key=key)
        with self._guard:
            return self._own.setdefault(key, Latents())

    def reading(self, latents: Latents | Memory, where: Where | None = None) -> "MPlusLLM":
        """This LLM, reading one memory whatever its messages say; weights are shared.

        Args:
            latents: What is read.
            where: Only sources for which this says so.
        """
        bound = self.model_copy()
        bound._bound = Latents(memory=latents) if isinstance(latents, Memory) else latents
        bound._bound_where = where
        return bound

    def memorize(
        self,
        items: "str | BaseNode | ChatMessage | Sequence[str | BaseNode | ChatMessage]",
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
    ) -> int:
        """Write texts, documents, nodes or messages into memory.

        Args:
            items: What to remember. A document's or node's id names its source.
            source: One source for everything.
            metadata: Comes back with what is recalled.
            memory_key: Which memory.

        Returns:
            Text tokens written.

        Raises:
            ValueError: Empty text, or something that cannot be written; nothing is written then.
        """
        texts, model, written = to_texts(items), self.loaded, 0
        with self.latents(memory_key).opened(model) as memory, memory.writing():
            fork = memory.fork()
            for text, name, own in texts:
                about = {**own, **(metadata or {})}
                written += model.write(fork, text, source=source or name, metadata=about, keep_text=True).text_tokens
            memory.adopt(fork)
        return written

    async def amemorize(
        self,
        items: "str | BaseNode | ChatMessage | Sequence[str | BaseNode | ChatMessage]",
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
    ) -> int:
        """``memorize`` without blocking the event loop."""
        return await in_thread(self.memorize, items, source=source, metadata=metadata, memory_key=memory_key)

    def forget(self, source: str, *, memory_key: str | None = None) -> int:
        """Remove a source from memory for good; returns how many memory tokens went."""
        with self.latents(memory_key).opened(self.loaded) as memory:
            return memory.forget(source)

    # --- the eight members ------------------------------------------------------------------------

    @_reported_chat
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._answered(messages, kwargs, threading.Event())

    @_reported_chat
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer piece by piece; leaving the loop stops generation."""
        self._check(messages, kwargs)
        return self._chunks(messages, kwargs, threading.Event())

    @_reported_chat
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """``chat`` without blocking the event loop; cancelling it stops generation."""
        return await self._aanswered(messages, kwargs)

    @_reported_chat
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """``stream_chat`` without blocking the event loop."""
        return self._achunks(messages, kwargs)

    @_reported_completion
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one message; ``formatted``: go on from the very text that is given."""
        return to_completion(self._answered(as_prompt(prompt, formatted), kwargs, threading.Event()))

    @_reported_completion
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """``complete`` piece by piece; leaving the loop stops generation."""
        asked = as_prompt(prompt, formatted)
        self._check(asked, kwargs)
        chunks = self._chunks(asked, kwargs, threading.Event())
        return (to_completion(chunk) for chunk in chunks)

    @_reported_completion
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """``complete`` without blocking the event loop; cancelling it stops generation."""
        return to_completion(await self._aanswered(as_prompt(prompt, formatted), kwargs))

    @_reported_completion
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """``stream_complete`` without blocking the event loop."""
        chunks = self._achunks(as_prompt(prompt, formatted), kwargs)

        async def completions() -> CompletionResponseAsyncGen:
            try:
                async for chunk in chunks:
                    yield to_completion(chunk)
            finally:
                await chunks.aclose()

        return completions()

    # --- tools ------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        choice = kwargs.pop("tool_choice", None)
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        if not tools:
            return {"messages": messages, **kwargs}
        return {
            "messages": messages,
            "tools": [described(tool) for tool in tools],
            "tool_choice": tool_choice(choice) if choice is not None else "required" if tool_required else "auto",
            "allow_parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer; those that are not valid stand in ``raw["invalid_tool_calls"]`` and are left out.

        Raises:
            ValueError: There is none, and that is an error.
        """
        calls = [
            ToolSelection(tool_id=call.tool_call_id or "", tool_name=call.tool_name, tool_kwargs=call.tool_kwargs)
            for call in response.message.blocks
            if isinstance(call, ToolCallBlock) and isinstance(call.tool_kwargs, dict)
        ]
        if calls or not error_on_no_tool_call:
            return calls
        raw = response.raw if isinstance(response.raw, dict) else {}
        if invalid := raw.get("invalid_tool_calls"):
            raise ValueError(
                f"The model's call {invalid[0]['text']!r:.120} is not valid ({invalid[0]['error']}); it ended because "
                f"of {raw.get('finish_reason')!r}. Allow it more max_tokens."
            )
        raise ValueError(f"Expected at least one tool call, but the answer is {response.message.content!r:.120}.")

    # --- answers ----------------------------------------------------------------------------------

    def _check(self, prompt: Prompt, kwargs: Mapping[str, Any]) -> None:
        if unknown := kwargs.keys() - CALL_SETTINGS:
            raise ValueError(
                f"Unknown setting {sorted(unknown)[0]!r}: expected one of {', '.join(sorted(CALL_SETTINGS))}."
            )
        if not isinstance(prompt, str):
            to_chat(prompt)

    def _memory_of(self, prompt: Prompt, kwargs: Mapping[str, Any]) -> Latents:
        if kwargs.get("memory_key") is not None:
            return self.latents(kwargs["memory_key"])
        if self._bound is not None:
            return self._bound
        turns = [] if isinstance(prompt, str) else [m for m in reversed(prompt) if isinstance(m, Turn)]
        return next((found for turn in turns if (found := turn.latents) is not None), None) or self.latents()

    def _begin(self, prompt: Prompt, kwargs: Mapping[str, Any]) -> GenerationStream:
        self._check(prompt, kwargs)
        model, latents = self.loaded, self._memory_of(prompt, kwargs)
        tools = kwargs.get("tools")
        form = form_of(tools, tool_choice(kwargs.get("tool_choice")), schema_of(kwargs.get("response_format")))
        max_tokens = kwargs.get("max_tokens") or self.max_tokens
        with latents.opened(model) as memory:
            asked: str | list[dict[str, Any]] = prompt if isinstance(prompt, str) else []
            where: Where | None = None
            if not isinstance(prompt, str):
                room = model.prompt_room(memory)
                asked, memory, where = fitted(
                    model,
                    memory,
                    with_told(to_chat(prompt), form.told),
                    room=max(room - min(max_tokens, room // 4), 1),
                    tools=tools,
                    apart=latents is self._own.get(None),
                )
            # A stored memory is read as it is now, so that nobody has to wait for it meanwhile.
            memory = memory if latents.store is None else memory.fork()
        memory, asked, where = without_repetition(
            model, memory, asked, [where, self._bound_where, chosen(kwargs.get("where"))]
        )
        sampling = {name: kwargs.get(name, getattr(self, name)) for name in SAMPLING}
        if form.constraint is not None:
            sampling["abstain_below"] = None  # a call or an object has no such reply: its form would be broken
        return (self.scheduler or model).stream(
            memory,
            asked,
            max_new_tokens=max_tokens,
            stop=kwargs.get("stop") or self.stop or (),
            tools=tools,
            constraint=form.constraint,
            where=where,
            **sampling,
        )

    def _chunks(
        self, prompt: Prompt, kwargs: Mapping[str, Any], left: threading.Event
    ) -> Generator[ChatResponse, None, None]:
        """The answer as it grows; the last one has its calls, and ``raw``."""
        has_tools = bool(kwargs.get("tools"))
        shown, held = "", ""
        with self._begin(prompt, kwargs) as stream:
            # While a call is held back nothing is yielded: whoever leaves must reach the generation itself.
            stream.cancel_with(left)
            for piece in stream:
                if has_tools:
                    piece, held = before_calls(held + piece)
                if piece:
                    shown += piece
                    yield ChatResponse(message=as_message(shown), delta=piece)
            generation = stream.generation
        last = to_response(
            generation, self.model_name, tools=has_tools, parallel=kwargs.get("allow_parallel_tool_calls", True)
        )
        rest = "" if last.message.content is None else last.message.content.removeprefix(shown)
        yield last.model_copy(update={"delta": rest})

    def _answered(self, prompt: Prompt, kwargs: Mapping[str, Any], left: threading.Event) -> ChatResponse:
        *_, last = self._chunks(prompt, kwargs, left)
        return last.model_copy(update={"delta": None})

    async def _aanswered(self, prompt: Prompt, kwargs: Mapping[str, Any]) -> ChatResponse:
        left = threading.Event()
        try:
            return await in_thread(self._answered, prompt, kwargs, left)
        except asyncio.CancelledError:
            left.set()
            raise

    def _achunks(self, prompt: Prompt, kwargs: Mapping[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        self._check(prompt, kwargs)
        left = threading.Event()
        return streamed(partial(self._chunks, prompt, kwargs, left), left)
