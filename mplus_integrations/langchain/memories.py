"""Whose memory a call reads and writes: one that was given, a named one, or an own one."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from pydantic import BaseModel, ConfigDict, PrivateAttr, model_validator

from mplus import Memory, MemoryStore, MPlus
from mplus_integrations.keys import checked_key
from mplus_integrations.langchain.messages import to_texts
from mplus_integrations.models import load, loaded_already
from mplus_integrations.worker import in_thread


class Remembering(BaseModel):
    """A model and the memories it reads; weights are loaded at the first use."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str | MPlus = "smol-135m"
    """Built-in name, local folder, hub repository, or a loaded model."""
    memory: Memory | None = None
    """The one memory of every call; None: named or own ones."""
    store: MemoryStore | None = None
    """Keeps named memories on disk; None: they live as long as this object."""
    memory_key: str | None = None
    """Name of the memory; may be given per call."""

    _own: dict[tuple[str, str | None], Memory] = PrivateAttr(default_factory=dict[tuple[str, str | None], Memory])
    _guard: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        if self.memory is not None and self.memory_key is not None:
            raise ValueError(f"memory= and memory_key={self.memory_key!r:.60}: expected one of them, not both.")
        return self

    @property
    def loaded(self) -> MPlus:
        """The model itself; loaded at the first use."""
        return load(self.model)

    def _model(self, kwargs: Mapping[str, Any]) -> MPlus:
        """The model of a call, which may name another."""
        other = kwargs.get("model")
        return self.loaded if other is None else load(other if isinstance(other, MPlus) else str(other))

    def _known_model(self) -> MPlus | None:
        """The model, if it has been loaded already."""
        return loaded_already(self.model)

    def opened(self, memory_key: str | None = None, model: MPlus | None = None) -> AbstractContextManager[Memory]:
        """The memory of a call: the given one, the one of that name, or an own one.

        Raises:
            ValueError: A name that is no good one, or a name where there is one memory for all calls.
        """
        key = checked_key(memory_key if memory_key is not None else self.memory_key)
        if self.memory is not None:
            if key is not None:
                raise ValueError(
                    f"memory_key={key!r}: this model was made with memory=, which every call reads. Leave memory= out "
                    "to use names."
                )
            return nullcontext(self.memory)
        model = model or self.loaded
        if self.store is not None:
            return self.store.open(key or "default", model)
        with self._guard:
            name = (model.fingerprint, key)
            if name not in self._own:
                self._own[name] = model.new_memory()
            return nullcontext(self._own[name])

    def _keeps_conversations_apart(self, memory_key: str | None) -> bool:
        """Whether nobody said whose memory this is: then a conversation reads no other one's turns."""
        return self.memory is None and self.store is None and memory_key is None and self.memory_key is None

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
            memory_key: Which memory.

        Returns:
            Text tokens written.

        Raises:
            ValueError: Empty text, or something that cannot be written.
        """
        texts = to_texts(items)
        written = 0
        with self.opened(memory_key) as memory, memory.writing():
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
        return await in_thread(self.memorize, items, source=source, metadata=metadata, memory_key=memory_key)

    def forget(self, source: str, *, memory_key: str | None = None) -> int:
        """Remove a source from memory for good; returns how many memory tokens went."""
        with self.opened(memory_key) as memory:
            return memory.forget(source)


def keyed(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a call with the memory that its config names."""
    key = ensure_config(config).get("configurable", {}).get("memory_key")
    return kwargs if key is None or "memory_key" in kwargs else {**kwargs, "memory_key": key}
