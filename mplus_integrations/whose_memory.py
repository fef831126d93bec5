"""Whose memory a call reads and writes: a given one, one from a store, or one of the object's own."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from typing import Any, ClassVar, Generic, Self, TypeVar, cast
from uuid import UUID

from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
    model_validator,
)

from mplus import Embedder, Memory, MemoryStore, MPlus
from mplus_integrations.conversations import turns_of
from mplus_integrations.copies import Referring
from mplus_integrations.latents import (
    Given,
    Latents,
    MemoryKeyName,
    OwnMemories,
    Shared,
    all_or_nothing,
    checked_key,
    forget_all,
)
from mplus_integrations.memorized import NOTE, Memorized, called, changed
from mplus_integrations.models import load, loaded_already
from mplus_integrations.saved import SavedByName, not_saved
from mplus_integrations.settings import conversation_name
from mplus_integrations.sources import checked_name, named, refuse_marks, refuse_others, time_of, without_blanks
from mplus_integrations.worker import in_thread

UNLOADED_WINDOW = 4096
"""The context window that is reported until weights are loaded; asking for it must not load them."""

Item = TypeVar("Item")


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

    @field_validator("store", mode="before")
    @classmethod
    def _is_store(cls, store: Any) -> Any:
        if isinstance(store, str | PathLike):
            raise ValueError("store= is a path: expected a mplus.MemoryStore. Write store=mplus.MemoryStore(path).")
        return store

    @field_validator("memory", mode="before")
    @classmethod
    def _is_memory(cls, memory: Any) -> Any:
        if isinstance(memory, str):
            raise ValueError("memory= is a text: expected a mplus.Memory. The name of a memory goes into memory_key=.")
        return memory

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

        Under an id of its own a document or message is there once: with another text it takes the place of what it said
        before, and what is there already is not written again, unless it was said at another time. Notes under its name
        stay, as do messages of other roles: what comes second has its kind behind its name, as in "7 (document)". Ids
        of messages that are counted anew in every conversation, such as "3", prove nothing.

        Args:
            items: Texts, documents or messages. The id of a document or message names its source, and in LangChain also
                a document's ``metadata["source"]``.
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
        found = self._as_written(given, named(source), metadata, _each_time(at, given))
        if not found:
            return 0
        with self.opened(self._present_key(memory_key)) as memory, memory.adding():
            refuse_others(memory, (one.source for one in found if one.source))
            gone, fresh = changed(found, memory.told())
            with all_or_nothing(memory) if gone else nullcontext(memory) as written:
                for name in sorted(gone):
                    written.forget(name)
                if not fresh:
                    return 0
                return self.loaded.write(
                    written,
                    [one.text for one in fresh],
                    source=[one.source for one in fresh],
                    metadata=[one.metadata for one in fresh],
                    keep_text=True,
                    progress=show_progress,
                    later=True,
                    at=None if all(one.at is None for one in fresh) else [one.at for one in fresh],
                    dated=dated,
                ).text_tokens

    def _as_written(
        self, items: Sequence[Item], source: str | None, metadata: Mapping[str, Any] | None, times: Sequence[Any]
    ) -> list[Memorized]:
        """Items as they are written, without those of several that have no text."""
        if metadata is not None and not isinstance(metadata, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"metadata={metadata!r:.60}: expected a mapping, such as {{'author': 'Anna'}}.")
        found: list[Memorized] = []
        for item, time in zip(items, times, strict=True):
            one = self._memorized(item)
            about = {**one.metadata, **(metadata or {})}
            refuse_marks(about, f"number {len(found)}")
            one = one._replace(metadata=about, at=time)
            found.append(one if source is None else one._replace(source=source, is_own=False, kind=NOTE))
        if self._may_be_blank(items):
            numbered = {f"number {n} ({one.source})": one for n, one in enumerate(found)}  # a source may have several
            found = list(without_blanks(numbered, lambda item: item.text).values())
        return found

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

        Where a note, a document or a message go by the same name, all of them are removed.

        Raises:
            ValueError: The name is neither text, a number nor a UUID, or empty; or as for ``latents``.
        """
        name = checked_name(source, "source")
        with self.opened(self._present_key(memory_key)) as memory:
            names = called(memory, name)
            if len(names) < 2:
                return memory.forget(names[0] if names else name)
            with all_or_nothing(memory) as written:
                return sum(written.forget(one) for one in names)

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
    def _memorized(self, item: Any) -> Memorized:
        """An item as it is written.

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
