"""The memories that calls read: a given one, a named one in a store, or one that is made at its first use."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator

from mplus import Memory, MemoryNotFoundError, MemoryStore, MPlus
from mplus.forks import ProcessLock
from mplus_integrations.copies import PackedMemory

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
    names = list(sources)
    with all_or_nothing(memory) if names else nullcontext(memory) as fork:
        for name in names:
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
        self.is_nobodys = False
        """Whether it is an object's memory without a name: each conversation there reads only its own turns."""
        self.conversation: str | None = None
        """The only conversation that writes its turns here."""
        self.handled: set[str] | None = None
        """Names of its turns that memory has or had, where several write them; what was forgotten stays so."""
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
        about = {name: getattr(self, name) for name in ("is_of_index", "is_nobodys", "conversation")}
        return {"store": self.store, "key": self.key, "packed": packed, **about}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(store=state["store"], key=state["key"])
        self._packed, self.is_of_index = state["packed"], state["is_of_index"]
        self.is_nobodys, self.conversation = state.get("is_nobodys", False), state.get("conversation")
        self.handled = None if self.conversation is None else set[str]()

    def of_conversation(self, name: str) -> "Latents":
        """The same memory, into which the conversation of this name writes its turns."""
        found = Latents()
        vars(found).update(vars(self), conversation=name, handled=set[str]())
        return found

    @contextmanager
    def opened(self, model: MPlus) -> Generator[Memory]:
        """The memory for writing. A memory in a store is locked, and saved at the end if it has changed."""
        before = None if self.handled is None else set(self.handled)
        try:
            with self._opened(model) as memory:
                yield memory
        except BaseException:
            self.handled = before  # what was written may not have been saved
            raise

    @contextmanager
    def _opened(self, model: MPlus) -> Generator[Memory]:
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
        return self._made is other._made or (self._memory is not None and self._memory is other._memory)

    def has_text(self) -> bool:
        """Whether something is remembered in this process."""
        with self._guard:
            held = [*self._made.values(), *([self._memory] if self._memory else [])]
            return bool(self._packed) or any(memory.told() for memory in held)

    def read(self, model: MPlus) -> Memory:
        """The memory for reading alone. One in a store is as it was last saved: nobody waits while it is written.

        Raises:
            MemoryLockedError: This thread has it open, perhaps with changes that are not saved yet.
        """
        if self.store is None:
            return self._in_process(model)
        name = MemoryStore.name_for(self.key or "default")
        self.store.refuse_again(name)
        try:
            return self.store.load(name, model)
        except MemoryNotFoundError:
            return model.new_memory()


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
            found = self._by_name.setdefault(key, Latents())
            found.is_nobodys = key is None
            return found

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
