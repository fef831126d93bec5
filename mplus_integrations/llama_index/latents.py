"""Where the latents of a conversation or corpus are, and the turns that say so.

LlamaIndex passes an LLM nothing but messages. So the messages that a memory of ours gives are ``Turn``s:
each knows under which name it has been written, and whose latents are to be read with it.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from llama_index.core.base.llms.types import ChatMessage
from pydantic import PrivateAttr

from mplus import Memory, MemoryStore, MPlus


class Latents:
    """A memory that is given, one that a store keeps under a name, or one that is made when it is needed."""

    def __init__(
        self, *, memory: Memory | None = None, store: MemoryStore | None = None, key: str | None = None
    ) -> None:
        self.store = store if memory is None else None
        self.key = (key or "default") if self.store is not None else None
        self._memory = memory
        self._guard = threading.Lock()

    @contextmanager
    def opened(self, model: MPlus) -> Generator[Memory]:
        """The memory itself, for writing; a stored one is locked, and saved at the end."""
        if self.store is not None:
            with self.store.open(self.key or "default", model) as memory:
                yield memory
            return
        with self._guard:
            if self._memory is None:
                self._memory = model.new_memory()
        yield self._memory

    def read(self, model: MPlus) -> Memory:
        """The memory as it is now: nobody has to wait while an answer is generated from it."""
        with self.opened(model) as memory:
            return memory if self.store is None else memory.fork()


class Remembers(Protocol):
    """Whatever knows where its latents are; finding them may take loading, so it is asked late."""

    @property
    def latents(self) -> Latents:
        """Where they are."""
        ...


class Turn(ChatMessage):
    """A message that has been written into latent memory."""

    source: str = ""
    """The name under which it was written."""

    _given_by: Remembers | None = PrivateAttr(default=None)

    @property
    def latents(self) -> Latents | None:
        """What is to be read beside the message; None once it went through JSON."""
        return None if self._given_by is None else self._given_by.latents

    def given_by(self, memory: Remembers) -> "Turn":
        """A copy to hand out, which may be changed."""
        turn = Turn(role=self.role, blocks=[b.model_copy() for b in self.blocks], source=self.source)
        turn.additional_kwargs = dict(self.additional_kwargs)
        turn._given_by = memory
        return turn
