"""Calls of a chat model whose memory a config, a context or metadata names, in chains and agents too."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.callbacks import BaseCallbackManager, Callbacks
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig

from mplus_integrations.answering import Answering
from mplus_integrations.langchain.configs import asked_in, has_lost_names

CONFIG_SEEN = "mplus_config_seen"
"""Argument that says that the config of a call was looked at, so that a missing name is none that was lost."""


class NamedCalls(Answering[str | Document | BaseMessage], BaseChatModel):
    """The ways to ask a chat model; ``configs.asked_in`` finds the names of a call for all of them.

    A call has its config, or only its callbacks and metadata, as of chains such as ``LLMChain``.
    """

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer several conversations, as chains such as ``LLMChain`` do, which do not pass their config on."""
        kwargs = self._keyed_without_config(kwargs, callbacks, metadata)
        return super().generate(messages, stop, callbacks, metadata=metadata, **kwargs)

    async def agenerate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """``generate`` without blocking the event loop."""
        kwargs = self._keyed_without_config(kwargs, callbacks, metadata)
        return await super().agenerate(messages, stop, callbacks, metadata=metadata, **kwargs)

    def _keyed_without_config(
        self, kwargs: dict[str, Any], callbacks: Callbacks, metadata: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Arguments of a call of which only callbacks and metadata are known, with the memory that they name.

        Raises:
            ValueError: A chain asks without a name, which it may have been given and lost.
        """
        seen = kwargs.pop(CONFIG_SEEN, False)
        kwargs = self._asked_in(None, kwargs, callbacks, metadata)
        is_in_chain = isinstance(callbacks, BaseCallbackManager) and callbacks.parent_run_id is not None
        self.refuse_lost_key(kwargs, is_lost=is_in_chain and not seen)
        return kwargs

    def _keyed(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call with the names that its config gives.

        Raises:
            ValueError: A chain asks without a name, which it may have been given and lost.
        """
        found = self._asked_in(config, kwargs)
        self.refuse_lost_key(found, is_lost=has_lost_names(config))
        return found

    def refuse_lost_key(self, asked: Mapping[str, Any], *, is_lost: bool) -> None:
        """Refuse a call without a name where a chain may have lost it, unless ``require_key`` says otherwise.

        Raises:
            ValueError: It reads a memory of the store and names none.
        """
        has_key = asked.get("memory_key") is not None or self.memory_key is not None
        is_free = has_key or asked.get("use_memory") is False or self.store is None
        if is_lost and not is_free and self.require_key is None:
            raise self._no_key("A chain asked that passes no config on")

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """Answer; ``memory_key`` per call or in ``config["configurable"]``."""
        return super().invoke(input, config, stop=stop, **self._keyed(config, kwargs), **{CONFIG_SEEN: True})

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """``invoke`` without blocking the event loop; cancelling it stops generation."""
        return await super().ainvoke(input, config, stop=stop, **self._keyed(config, kwargs), **{CONFIG_SEEN: True})

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """Answer piece by piece; leaving the loop stops generation."""
        yield from super().stream(input, config, stop=stop, **self._keyed(config, kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """``stream`` without blocking the event loop."""
        async for chunk in super().astream(input, config, stop=stop, **self._keyed(config, kwargs)):
            yield chunk

    def _asked_in(
        self,
        config: RunnableConfig | None,
        kwargs: dict[str, Any],
        callbacks: Callbacks = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Arguments of a call, with the names that its config gives to its memory and its conversation."""
        return asked_in(
            config, kwargs, callbacks, metadata, memory=self.memory, store=self.store, memory_key=self.memory_key
        )
