"""``MPlusChat``: a LangChain chat model whose memory is latent and never fills the prompt."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr

from mplus import GenerationStream, Memory, MemoryStore, MPlus
from mplus_integrations.langchain.messages import response_metadata, to_chat, to_texts, usage

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
    store: MemoryStore | None = None
    """Named memories on disk; ``memory_key`` says which."""
    memory_key: str | None = None
    """Name of the memory in ``store``; may be given per call."""

    _own_memory: Memory | None = PrivateAttr(default=None)
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

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # A cached answer is only good for the memory it was given with.
        with self._opened(kwargs.get("memory_key")) as memory:
            return f"{super()._get_llm_string(stop, **kwargs)}---memory={memory.fingerprint}"

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of the model's own tokenizer."""
        return self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]

    # --- memory -----------------------------------------------------------------------------------

    @property
    def loaded(self) -> MPlus:
        """The model itself; loaded at the first use."""
        if isinstance(self.model, MPlus):
            return self.model
        with _LOADING:
            if self.model not in _LOADED:
                _LOADED[self.model] = MPlus.from_pretrained(self.model)
            return _LOADED[self.model]

    def _opened(self, memory_key: str | None = None) -> AbstractContextManager[Memory]:
        """The memory of a call: the store's one of that name, the given one, or an own one."""
        key = memory_key or self.memory_key
        if self.store is not None and self.memory is None:
            return self.store.open(key or "default", self.loaded)
        if key is not None and self.store is None:
            raise ValueError(f"memory_key={key!r} without a store: pass store=mplus.MemoryStore(folder) to MPlusChat.")
        if self.memory is not None:
            return nullcontext(self.memory)
        with self._guard:
            if self._own_memory is None:
                self._own_memory = self.loaded.new_memory()
            return nullcontext(self._own_memory)

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
        with self._opened(memory_key) as memory:
            fork = memory.fork()
            for text, own_source, own_metadata in texts:
                report = self.loaded.write(
                    fork, text, source=source or own_source, metadata={**own_metadata, **(metadata or {})}
                )
                written += report.text_tokens
            memory.commit(fork.state)
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
        with self._opened(memory_key) as memory:
            return memory.forget(source)

    # --- answers ----------------------------------------------------------------------------------

    def _begin(
        self,
        memory: Memory,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        kwargs: Mapping[str, Any],
    ) -> GenerationStream:
        return self.loaded.stream(
            memory,
            to_chat(messages),
            max_new_tokens=kwargs.get("max_tokens", self.max_tokens),
            temperature=kwargs.get("temperature", self.temperature),
            top_p=kwargs.get("top_p", self.top_p),
            seed=kwargs.get("seed", self.seed),
            stop=stop or self.stop or (),
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with (
            self._opened(kwargs.get("memory_key")) as memory,
            self._begin(memory, messages, stop, kwargs) as stream,
        ):
            return self._folded(stream)

    def _folded(self, stream: GenerationStream) -> ChatResult:
        for _ in stream:
            pass
        generation = stream.generation
        message = AIMessage(
            generation.text,
            usage_metadata=usage(generation),
            response_metadata=response_metadata(generation, self._model_name),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with (
            self._opened(kwargs.get("memory_key")) as memory,
            self._begin(memory, messages, stop, kwargs) as stream,
        ):
            for piece in stream:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
            generation = stream.generation
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata=usage(generation),
                response_metadata=response_metadata(generation, self._model_name),
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

        def work() -> ChatResult:
            with (
                self._opened(kwargs.get("memory_key")) as memory,
                self._begin(memory, messages, stop, kwargs) as stream,
            ):
                stream.cancel_with(cancelled)
                return self._folded(stream)

        try:
            return await asyncio.to_thread(work)
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
            stream = self._stream(messages, stop, None, **kwargs)
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
