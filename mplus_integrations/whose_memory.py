"""The memory that a call reads and writes: a given one, one from a store, or one of the object's own."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar, cast
from uuid import UUID

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
    model_validator,
)

from mplus import Embedder, Memory, MemoryStore, MPlus
from mplus.forks import ProcessLock
from mplus_integrations.conversations import turns_of
from mplus_integrations.copies import PackedMemory, Referring
from mplus_integrations.models import load, loaded_already
from mplus_integrations.saved import SavedByName, not_saved
from mplus_integrations.settings import conversation_name
from mplus_integrations.sources import checked_name, named, refuse_others, time_of, without_blanks
from mplus_integrations.worker import in_thread

UNLOADED_WINDOW = 4096
"""The context window that is reported until weights are loaded; asking for it must not load them."""

Item = TypeVar("Item")
Where = Callable[[str, Mapping[str, Any]], bool]


def checked_key(key: object) -> str | None:
    """A memory's key as text; None stays None.

    Any text is one, whoever chose it, and numbers and UUIDs count as their text. In a store, the memory of a key that
    is no name has an escaped one (``MemoryStore.name_for``).

    Raises:
        ValueError: It is of another type, or empty.
    """
    if key is None:
        return None
    if isinstance(key, bool) or not isinstance(key, str | int | UUID):
        raise ValueError(f"memory_key={key!r:.60} is {type(key).__name__}: expected a string, an integer or a UUID.")
    text = str(key)
    if not text.strip():
        raise ValueError(f"memory_key={text!r:.40}: expected at least one character that is no space.")
    return text


MemoryKeyName = Annotated[str | None, BeforeValidator(checked_key)]
"""The type of a field that names a memory."""


@contextmanager
def all_or_nothing(memory: Memory) -> Generator[Memory]:
    """Yields a fork to change. At the end the memory takes over the fork's changes; after an error it is unchanged."""
    with memory.writing():
        fork = memory.fork()
        yield fork
        memory.adopt(fork)


def forget_all(memory: Memory, sources: Iterable[str]) -> None:
    """Forget sources for good; reads then equal those of a memory that never had them."""
    with all_or_nothing(memory) as fork:
        for name in sources:
            fork.forget(name)


class Latents:
    """A given memory, a named memory in a store, or a memory that is made at its first use.

    A copy of an object that has it refers to the same. In a pickle a memory in a store goes by its name, and another
    one as it is then.
    """

    def __init__(
        self, *, memory: Memory | None = None, store: MemoryStore | None = None, key: str | None = None
    ) -> None:
        self.store = store if memory is None else None
        self.key = (key or "default") if self.store is not None else None
        self.is_of_index = False
        """Whether it holds the documents of an index, which others read too."""
        self.conversation: str | None = None
        """The only conversation that writes its turns here."""
        self._memory = memory
        self._made: dict[str, Memory] = {}
        self._packed: dict[str | None, PackedMemory] = {}
        """Memories of a pickle that were not used since, by the fingerprint of their model; None: the given one."""
        self._guard = ProcessLock()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "Latents":
        return self

    def __getstate__(self) -> dict[str, Any]:
        with self._guard:
            held: dict[str | None, Memory] = {**self._made, **({None: self._memory} if self._memory else {})}
            packed = {**self._packed, **{name: PackedMemory.of(memory) for name, memory in held.items()}}
        about = {"is_of_index": self.is_of_index, "conversation": self.conversation}
        return {"store": self.store, "key": self.key, "packed": packed, **about}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(store=state["store"], key=state["key"])
        self._packed, self.is_of_index = state["packed"], state["is_of_index"]
        self.conversation = state.get("conversation")

    @contextmanager
    def opened(self, model: MPlus) -> Generator[Memory]:
        """The memory for writing. A memory in a store is locked, and saved at the end if it has changed."""
        if self.store is not None:
            key = self.key or "default"
            with self.store.open(MemoryStore.name_for(key), model, id=key, keep_empty=False) as memory:
                yield memory
            return
        yield self._in_process(model)

    def _in_process(self, model: MPlus) -> Memory:
        with self._guard:
            if None in self._packed:
                self._memory = self._packed.pop(None).opened(model)
            if self._memory is not None:
                return self._memory
            name = model.fingerprint
            if name not in self._made:
                packed = self._packed.pop(name, None)
                self._made[name] = model.new_memory() if packed is None else packed.opened(model)
            return self._made[name]

    def is_same(self, other: "Latents") -> bool:
        """Whether both are the same memory."""
        if self.store is not None and other.store is not None:
            return self.store.root.resolve() == other.store.root.resolve() and self.key == other.key
        return self is other or (self._memory is not None and self._memory is other._memory)

    def has_text(self) -> bool:
        """Whether something is remembered in this process."""
        with self._guard:
            held = [*self._made.values(), *([self._memory] if self._memory else [])]
            return bool(self._packed) or any(memory.sources() for memory in held)

    def read(self, model: MPlus) -> Memory:
        """The present memory for reading, without a lock."""
        with self.opened(model) as memory:
            return memory if self.store is None else memory.fork()


def check_memory(memory: object, store: object, *, name: str = "memory") -> None:
    """Check that arguments are a memory and a store, where they are given.

    Raises:
        ValueError: One is something else.
    """
    if memory is not None and not isinstance(memory, Memory | Latents):
        raise ValueError(f"{name}={memory!r:.40} is {type(memory).__name__}: expected a Memory, or another's latents.")
    if store is not None and not isinstance(store, MemoryStore):
        raise ValueError(f"store={store!r:.40} is {type(store).__name__}: expected mplus.MemoryStore(folder).")


class OwnMemories:
    """The memories of an object without a store, by name; every copy of the object has the same ones."""

    def __init__(self) -> None:
        self._by_name: dict[str | None, Latents] = {}
        self._guard = ProcessLock()

    def get(self, key: str | None) -> Latents:
        """The memory of that name, made at its first use."""
        with self._guard:
            return self._by_name.setdefault(key, Latents())

    def is_unnamed(self, latents: Latents) -> bool:
        """Whether these are the latents without a name."""
        return latents is self._by_name.get(None)

    def has_text(self) -> bool:
        """Whether something is remembered in one of them."""
        with self._guard:
            held = list(self._by_name.values())
        return any(latents.has_text() for latents in held)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "OwnMemories":
        return self

    def __getstate__(self) -> dict[str, Any]:
        with self._guard:
            return {"by_name": dict(self._by_name)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__()
        self._by_name.update(state["by_name"])


@dataclass(frozen=True)
class Shared:
    """A memory that is read beside the one of a conversation and never written, such as documents for all.

    Attributes:
        latents: The memory.
        where: A test of its sources to read; None: all.
    """

    latents: Latents
    where: Where | None = None

    @property
    def name(self) -> str:
        """The name that cites it: its name in its store, else "shared"."""
        return self.latents.key or "shared"


Given = Memory | Latents | str
"""A memory, or the name of one in the object's store."""


class Remembering(SavedByName, Referring, Generic[Item]):
    """A model and its memories; weights are loaded at the first use."""

    _not_pickled: ClassVar[frozenset[str]] = frozenset({"_embedding"})

    # Errors name the argument, not its value, which could be a secret or very large.
    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    model: str | MPlus = "smol-135m"
    """Built-in name, local folder, hub repository, or a loaded model."""
    embedder: Any = Field(default=None)
    """Your own embedder, to find what a question is about beside the model's own scorer: LangChain ``Embeddings``, a
    LlamaIndex ``BaseEmbedding``, a function, or an ``mplus.Embedder``."""
    memory: Memory | None = Field(default=None)
    """The memory of every call; None: named memories, or one of the object's own."""
    store: MemoryStore | None = Field(default=None)
    """Keeps named memories on disk; None: they live as long as this object."""
    memory_key: MemoryKeyName = None
    """Name of the memory; may be given per call."""
    shared: Given | Sequence[Given] | None = Field(default=None)
    """Memories that every call reads beside its own and never writes: documents for all users. A text is the name of a
    memory in the store."""

    require_key: bool | None = None
    """Whether a call must name its memory where there is a store. None: in a server, which has ``scheduler=``, and
    where a chain calls the model without passing its config on, so that a name may have been lost."""
    own: OwnMemories = Field(default_factory=OwnMemories, repr=False)
    """Memories that are neither given nor in a store; an object made from this one's fields has the same."""

    _embedding: tuple[MPlus, Embedder, MPlus] | None = PrivateAttr(default=None)
    """A model, an embedder, and the model with it."""

    @field_validator("embedder")
    @classmethod
    def _is_embedder(cls, embedder: Any) -> Embedder | None:
        return None if embedder is None else Embedder.of(embedder)

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        if self.memory is not None and (self.memory_key is not None or self.store is not None):
            raise ValueError(
                "memory= beside store= or memory_key=: expected one of them, a single memory or names of memories."
            )
        return self

    @model_validator(mode="after")
    def _shared_is_found(self) -> Self:
        self.shared_memories()
        return self

    @field_serializer("own")
    def _noted(self, own: OwnMemories) -> dict[str, str] | None:
        return not_saved(own) if own.has_text() else None

    @field_serializer("require_key")
    def _still_required(self, require_key: bool | None) -> bool | None:
        return True if self._must_name() else require_key  # the scheduler that asks for it is not saved

    @field_serializer("model")
    def _named(self, model: str | MPlus) -> str:
        return model if isinstance(model, str) else model.name

    @property
    def loaded(self) -> MPlus:
        """The model itself; loaded at the first use."""
        return self._loaded(self.model)

    def _loaded(self, model: str | MPlus) -> MPlus:
        """A model, with the embedder of this object."""
        plain = load(model)
        if self.embedder is None:
            return plain
        known = self._embedding
        if known is None or known[0] is not plain or known[1] is not self.embedder:
            known = self._embedding = (plain, self.embedder, plain.with_embedder(self.embedder))
        return load(known[2])

    @property
    def model_name(self) -> str:
        """The name of the model."""
        return self.model if isinstance(self.model, str) else self.model.name

    @property
    def window(self) -> int:
        """Number of tokens for prompt and answer with a full memory; does not load weights."""
        known = loaded_already(self.model)
        return UNLOADED_WINDOW if known is None else known.prompt_room(self.memory or known.new_memory())

    def latents(self, memory_key: str | None = None) -> Latents:
        """The memory of a call: the given one, the one of that name, or one of the object's own.

        Raises:
            ValueError: The name is not allowed, or a name was given beside ``memory=``.
        """
        key = checked_key(memory_key if memory_key is not None else self.memory_key)
        if self.memory is not None and key is not None:
            raise ValueError(
                f"memory_key={key!r}: this {type(self).__name__} was made with memory=, which every call reads. Leave "
                "memory= out to use names."
            )
        if self.store is not None and key is None and self._must_name():
            raise self._no_key("No memory_key= was given for this call")
        if self.memory is not None or self.store is not None:
            return Latents(memory=self.memory, store=self.store, key=key)
        return self.own.get(key)

    def _must_name(self) -> bool:
        """Whether a call must name a memory of the store."""
        return bool(self.require_key)

    def _no_key(self, what: str) -> ValueError:
        return ValueError(
            f"{what}, and this {type(self).__name__} has a store: expected the name of one user's memory. Give "
            "memory_key= to the call, its config (as metadata too, where a chain passes no more on) or the object; "
            "require_key=False reads 'default' for everyone."
        )

    def shared_memories(self) -> list[Shared]:
        """The memories that every call reads beside its own.

        Raises:
            ValueError: A memory is named, and there is no store.
        """
        given = self.shared
        several: Sequence[Given] = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]  # pyright: ignore[reportAssignmentType]
        found: list[Shared] = []
        for one in several if given is not None else ():
            if isinstance(one, str) and self.store is None:
                raise ValueError(
                    f"shared={one!r:.60} without store=: expected the store that has it, or a memory itself."
                )
            if isinstance(one, str):
                found.append(Shared(Latents(store=self.store, key=checked_key(one))))
            else:
                found.append(Shared(Latents(memory=one) if isinstance(one, Memory) else one))
        return found

    def opened(self, memory_key: str | None = None) -> AbstractContextManager[Memory]:
        """The memory of a call for writing. A memory in a store is locked, and saved at the end.

        Raises:
            ValueError: As for ``latents``.
        """
        return self.latents(memory_key).opened(self.loaded)

    def memorize(
        self,
        items: Item | Sequence[Item],
        *,
        source: str | int | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
        show_progress: bool = False,
        at: Any = None,
        dated: bool = False,
    ) -> int:
        """Write texts, documents or messages into memory.

        Args:
            items: Texts, documents or messages. A document's id names its source, and in LangChain also its
                ``metadata["source"]`` and a message's id.
            source: One source for all items.
            metadata: Metadata of the sources, returned when they are recalled.
            memory_key: Name of the memory.
            show_progress: Show a bar, in a terminal or a notebook.
            at: When they were said, all or each, as ``MPlus.write`` takes it. None: a message's own time where it has
                one ("timestamp" or "created_at"), else now.
            dated: Begin each text with a time with its date for the reader.

        Returns:
            Text tokens written.

        Raises:
            ValueError: Empty text, or something that cannot be written; nothing is written then.
        """
        several = isinstance(items, Sequence) and not isinstance(items, str)
        given = list(cast("Sequence[Item]", items)) if several else [cast("Item", items)]
        times = _each_time(at, given)
        texts = [(*self._to_text(item), time) for item, time in zip(given, times, strict=True)]
        if self._may_be_blank(given):
            numbered = {f"number {n} ({one[1]})": one for n, one in enumerate(texts)}  # several may be of one source
            texts = list(without_blanks(numbered, lambda item: item[0]).values())
        if not texts:
            return 0
        if metadata is not None and not isinstance(metadata, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"metadata={metadata!r:.60}: expected a mapping, such as {{'author': 'Anna'}}.")
        names = [named(source) or name for _, name, _, _ in texts]
        with self.opened(self._present_key(memory_key)) as memory:
            refuse_others(memory, filter(None, names))
            return self.loaded.write(
                memory,
                [text for text, *_ in texts],
                source=names,
                metadata=[{**own, **(metadata or {})} for _, _, own, _ in texts],
                keep_text=True,
                progress=show_progress,
                later=True,
                at=None if all(time is None for *_, time in texts) else [time for *_, time in texts],
                dated=dated,
            ).text_tokens

    def _may_be_blank(self, items: Sequence[Any]) -> bool:
        """Whether items may have no text, as pages of a file; others are errors then."""
        return len(items) > 1 and all(not isinstance(item, str) for item in items)

    async def amemorize(
        self,
        items: Item | Sequence[Item],
        *,
        source: str | int | None = None,
        metadata: Mapping[str, Any] | None = None,
        memory_key: str | None = None,
        show_progress: bool = False,
        at: Any = None,
        dated: bool = False,
    ) -> int:
        """``memorize`` without blocking the event loop."""
        return await in_thread(
            self.memorize,
            items,
            source=source,
            metadata=metadata,
            memory_key=memory_key,
            show_progress=show_progress,
            at=at,
            dated=dated,
        )

    def forget(self, source: str | int | UUID, *, memory_key: str | None = None) -> int:
        """Remove a source from memory for good; returns how many memory tokens were removed, 0 if there is no such one.

        Raises:
            ValueError: The name is neither text, a number nor a UUID, or empty; or as for ``latents``.
        """
        name = checked_name(source, "source")
        with self.opened(self._present_key(memory_key)) as memory:
            return memory.forget(name)

    def forget_conversation(self, conversation_id: str | int | UUID, *, memory_key: str | None = None) -> int:
        """Forget all turns of a conversation for good: of a ``conversation_id=``, or a thread or session of a config.

        Notes, documents and other conversations stay.

        Args:
            conversation_id: Its name.
            memory_key: Name of the memory with its turns; None: the one that a call reads for this conversation.

        Returns:
            How many turns were forgotten; 0 if there is no such conversation, or no memory of that name.

        Raises:
            ValueError: The name is neither text, a number nor a UUID; or as for ``latents``.
        """
        name = conversation_name(conversation_id)
        if name is None or not name.strip():
            raise ValueError(f"conversation_id={conversation_id!r}: expected the name of a conversation.")
        key = self._present_key(memory_key, name)
        is_single = key is not None or self.memory_key is not None or self.memory is not None or self.store is not None
        turns = 0
        for one in (key,) if is_single else (None, name):  # an agent's middleware names memories by their threads
            with self.opened(one) as memory:
                if said := turns_of(memory, name):
                    forget_all(memory, said)
            turns += len(said)
        return turns

    async def aforget_conversation(self, conversation_id: str | int | UUID, *, memory_key: str | None = None) -> int:
        """``forget_conversation`` without blocking the event loop."""
        return await in_thread(self.forget_conversation, conversation_id, memory_key=memory_key)

    def _present_key(self, memory_key: str | None, conversation: str | None = None) -> str | None:
        """The name of the memory of a call: the given one, or one that a framework knows.

        Conversations do not meet in a store: where nothing else names a memory, the conversation does.
        """
        is_unnamed = memory_key is None and self.memory_key is None
        return conversation if is_unnamed and self.memory is None and self.store is not None else memory_key

    @abstractmethod
    def _to_text(self, item: Any) -> tuple[str, str | None, dict[str, Any]]:
        """The text of an item, the name of its source if it has one, and its metadata.

        Raises:
            ValueError: The item has no text.
        """


def _each_time(at: Any, items: Sequence[Any]) -> list[Any]:
    """When each item was said: as given, else its own time."""
    if isinstance(at, list | tuple):
        several = list(cast("Sequence[Any]", at))
        if len(several) != len(items):
            raise ValueError(f"{len(several)} times for {len(items)} items: expected one for each, or one for all.")
        return several
    return [time_of(item) if at is None else at for item in items]
