"""Whose memory a call reads and writes: one that was given, one that a store keeps, or an own one."""

import threading
from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Generic, Self, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_serializer, model_validator

from mplus import Memory, MemoryStore, MPlus
from mplus_integrations.models import load, loaded_already
from mplus_integrations.worker import in_thread

UNLOADED_WINDOW = 4096
"""What the context window is taken to be until weights are loaded: asking for it must not load them."""

Item = TypeVar("Item")


def checked_key(key: object) -> str | None:
    """A name for a memory, or None.

    Raises:
        ValueError: It is no good name.
    """
    return None if key is None else MemoryStore.check_name(key, "memory_key=")


MemoryKeyName = Annotated[str | None, AfterValidator(checked_key)]
"""The type of a field that names a memory."""


@contextmanager
def all_or_nothing(memory: Memory) -> Generator[Memory]:
    """A fork to change, which the memory becomes at the end; after an error the memory is as it was."""
    with memory.writing():
        fork = memory.fork()
        yield fork
        memory.adopt(fork)


def counted(items: Sequence[Item], show_progress: bool) -> Iterable[Item]:
    """The items, with a bar that counts them where it is asked for."""
    if not show_progress:
        return items
    from tqdm.auto import tqdm  # in a notebook without ipywidgets the import warns

    return tqdm(items, "writing")


def forget_all(memory: Memory, sources: Iterable[str]) -> None:
    """Forget sources for good; reads are then as if they had never been there."""
    with all_or_nothing(memory) as fork:
        for name in sources:
            fork.forget(name)


class Latents:
    """A memory that is given, one that a store keeps under a name, or one that is made when it is needed."""

    def __init__(
        self, *, memory: Memory | None = None, store: MemoryStore | None = None, key: str | None = None
    ) -> None:
        self.store = store if memory is None else None
        self.key = (key or "default") if self.store is not None else None
        self._memory = memory
        self._made: dict[str, Memory] = {}
        self._guard = threading.Lock()

    @contextmanager
    def opened(self, model: MPlus) -> Generator[Memory]:
        """The memory itself, for writing; a stored one is locked, and saved at the end."""
        if self.store is not None:
            with self.store.open(self.key or "default", model) as memory:
                yield memory
            return
        if self._memory is not None:
            yield self._memory
            return
        with self._guard:
            if model.fingerprint not in self._made:
                self._made[model.fingerprint] = model.new_memory()
        yield self._made[model.fingerprint]

    def read(self, model: MPlus) -> Memory:
        """The memory as it is now: nobody has to wait while it is read."""
        with self.opened(model) as memory:
            return memory if self.store is None else memory.fork()


class Remembering(BaseModel, Generic[Item]):
    """A model and the memories it reads; weights are loaded at the first use."""

    # Errors name the argument and what is expected; its value could be a key, or a whole memory.
    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    model: str | MPlus = "smol-135m"
    """Built-in name, local folder, hub repository, or a loaded model."""
    memory: Memory | None = Field(default=None, exclude=True)
    """The one memory of every call; None: named or own ones."""
    store: MemoryStore | None = Field(default=None, exclude=True)
    """Keeps named memories on disk; None: they live as long as this object."""
    memory_key: MemoryKeyName = None
    """Name of the memory; may be given per call."""

    _own: dict[str | None, Latents] = PrivateAttr(default_factory=dict[str | None, Latents])
    _guard: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        if self.memory is not None and (self.memory_key is not None or self.store is not None):
            raise ValueError(
                "memory= beside store= or memory_key=: expected one of them, a single memory or names of memories."
            )
        return self

    @field_serializer("model")
    def _named(self, model: str | MPlus) -> str:
        return model if isinstance(model, str) else model.name

    @property
    def loaded(self) -> MPlus:
        """The model itself; loaded at the first use."""
        return load(self.model)

    @property
    def model_name(self) -> str:
        """The name of the model."""
        return self.model if isinstance(self.model, str) else self.model.name

    @property
    def window(self) -> int:
        """Tokens of prompt and answer beside a full memory; asking loads nothing."""
        known = loaded_already(self.model)
        return UNLOADED_WINDOW if known is None else known.prompt_room(self.memory or known.new_memory())

    def latents(self, memory_key: str | None = None) -> Latents:
        """Where the memory of a call is: the given one, the one of that name, or an own one.

        Raises:
            ValueError: A name that is no good one, or a name where there is one memory for all calls.
        """
        key = checked_key(memory_key if memory_key is not None else self.memory_key)
        if self.memory is not None and key is not None:
            raise ValueError(
                f"memory_key={key!r}: this {type(self).__name__} was made with memory=, which every call reads. Leave "
                "memory= out to use names."
            )
        if self.memory is not None or self.store is not None:
            return Latents(memory=self.memory, store=self.store, key=key)
        with self._guard:
            return self._own.setdefault(key, Latents())

    def opened(self, memory_key: str | None = None) -> AbstractContextManager[Memory]:
        """The memory of a call itself, for writing; a stored one is locked, and saved at the end.

        Raises:
            ValueError: As for ``latents``.
        """
        return self.latents(memory_key).opened(self.loaded)

    def memorize(
        self,
        items: Item | Sequence[Item],
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
        show_progress: bool = False,
    ) -> int:
        """Write texts, documents or messages into memory.

        Args:
            items: What to remember. A document's id names its source, and in LangChain also its
                ``metadata["source"]`` and a message's id.
            source: One source for everything.
            metadata: Comes back with what is recalled.
            memory_key: Which memory.
            show_progress: Show a bar, in a terminal or a notebook.

        Returns:
            Text tokens written.

        Raises:
            ValueError: Empty text, or something that cannot be written; nothing is written then.
        """
        several = isinstance(items, Sequence) and not isinstance(items, str)
        texts = [self._to_text(item) for item in (cast("Sequence[Item]", items) if several else [items])]
        with self.opened(memory_key) as memory, all_or_nothing(memory) as fork:
            return sum(
                self.loaded.write(
                    fork,
                    text,
                    source=source or name,
                    metadata={**own, **(metadata or {})},
                    keep_text=True,
                    progress=show_progress and len(texts) == 1,
                ).text_tokens
                for text, name, own in counted(texts, show_progress and len(texts) > 1)
            )

    async def amemorize(
        self,
        items: Item | Sequence[Item],
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
        show_progress: bool = False,
    ) -> int:
        """``memorize`` without blocking the event loop."""
        return await in_thread(
            self.memorize,
            items,
            source=source,
            metadata=metadata,
            memory_key=memory_key,
            show_progress=show_progress,
        )

    def forget(self, source: str, *, memory_key: str | None = None) -> int:
        """Remove a source from memory for good; returns how many memory tokens went."""
        with self.opened(memory_key) as memory:
            return memory.forget(source)

    @abstractmethod
    def _to_text(self, item: Any) -> tuple[str, str | None, dict[str, Any]]:
        """The text of something to memorize, the name of its source if it has one, and its metadata.

        Raises:
            ValueError: Something that is no text.
        """
