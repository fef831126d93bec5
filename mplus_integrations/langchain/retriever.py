"""``MPlusRetriever``: finds documents, turns and notes in the memory of a chat."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from pydantic import BeforeValidator, ConfigDict

from mplus import UnknownNameError, source_filter
from mplus_integrations.arguments import checked_text
from mplus_integrations.langchain.chat_model import MPlusChat
from mplus_integrations.langchain.configs import has_lost_names
from mplus_integrations.langchain.documents import DEFAULT_K, checked_k, document_of
from mplus_integrations.latents import MemoryKeyName, Where
from mplus_integrations.settings import KnownNames
from mplus_integrations.sources import headings_of
from mplus_integrations.worker import in_thread


class MPlusRetriever(KnownNames, BaseRetriever):
    """Returns the sources that the model's own scorer finds for a query: documents, turns and notes.

    A document that is nothing but a heading is never returned. Their metadata has ``source``, ``relevance`` and
    ``score`` (from 0 to 1, ``mplus.FoundSource.score``), unless their user gave some of that name.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    chat: MPlusChat
    """Whose memory is searched."""
    memory_key: MemoryKeyName = None
    """Which memory of the chat, unless the call names one; None: the one that the config names, else the chat's own."""
    k: Annotated[int, BeforeValidator(checked_k)] = DEFAULT_K
    """Most documents."""
    where: Mapping[str, Any] | Callable[[str, Mapping[str, Any]], Any] | None = None
    """Which sources: a filter of metadata, or a test of name and metadata."""
    since: Any = None
    """Only what was said from then on, as ``MPlus.search`` takes it."""
    until: Any = None
    """Only what was said up to then."""
    as_of: Any = None
    """The memory as it was then."""

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """The sources that are found; ``k`` and ``memory_key`` per call, the latter also in ``config``."""
        return super().invoke(input, config, **self._keyed(config, kwargs))

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """``invoke`` without blocking the event loop."""
        return await super().ainvoke(input, config, **self._keyed(config, kwargs))

    def _keyed(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call, with the name of its memory: that of the call, the retriever, or the config.

        Raises:
            ValueError: A chain asks without a name, which it may have been given and lost.
        """
        if self.chat.memory is not None:  # it has no names, and a graph's config may name a memory of another chat
            return kwargs
        own = {} if self.memory_key is None or kwargs.get("memory_key") is not None else {"memory_key": self.memory_key}
        found = self.chat._asked_in(config, {**kwargs, **own})
        self.chat.refuse_lost_key(found, is_lost=has_lost_names(config))
        return {name: value for name, value in found.items() if name in kwargs or name == "memory_key"}

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return self._found(query, kwargs)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await in_thread(self._found, query, kwargs)

    def _found(self, query: str, kwargs: Mapping[str, Any]) -> list[Document]:
        UnknownNameError.check(kwargs, {"k", "memory_key"}, of="MPlusRetriever.invoke")
        k = self.k if kwargs.get("k") is None else checked_k(kwargs["k"])
        key = self.memory_key if kwargs.get("memory_key") is None else kwargs["memory_key"]
        query = checked_text(query, "query")
        with self.chat.opened(key) as memory:
            times = {"since": self.since, "until": self.until, "as_of": self.as_of}
            headings, fits = headings_of(memory), None if self.where is None else source_filter(self.where)
            where: Where = lambda name, about: name not in headings and (fits is None or bool(fits(name, about)))
            found = self.chat.loaded.search(memory, query, limit=k, where=where, **times)
        documents: list[Document] = []
        for source in found:
            document = document_of(source.source, source)
            about = {"source": source.source, "relevance": source.relevance, "score": source.score}
            document.metadata = {**about, **document.metadata}
            documents.append(document)
        return documents
