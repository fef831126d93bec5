"""Conversations whose turns are all latents: ``MPlusMemory``, and ``MPlusMemoryBlock`` for LlamaIndex's own memory."""

import asyncio
import threading
import uuid
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import LLM
from llama_index.core.memory.memory import BaseMemoryBlock
from llama_index.core.memory.types import BaseMemory
from pydantic import Field, PrivateAttr

from mplus import Memory, MemoryStore, MPlus, UnknownNameError
from mplus_integrations.history import turn_name
from mplus_integrations.llama_index.index_storage import StorePlace
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.messages import ROLES, Turn, spoken
from mplus_integrations.models import by_fingerprint, load
from mplus_integrations.settings import INSTEAD, KnownNames
from mplus_integrations.whose_memory import Latents, MemoryKeyName, all_or_nothing, checked_key, forget_all
from mplus_integrations.worker import in_thread

TURN = "mplus_turn"
"""Marks the sources of a memory that are turns of a conversation, beside documents and notes."""
MESSAGE_TOKENS = 4
"""What a chat template adds to a message, about."""

_LIVE: WeakValueDictionary[str, Latents] = WeakValueDictionary()


class MPlusMemory(KnownNames, BaseMemory):
    """Memory of one conversation, for agents and chat engines.

        memory = MPlusMemory.from_defaults(llm=llm, store=MemoryStore("memories"), memory_key="anna")
        await agent.run("I live in Graz.", memory=memory)

    Every turn is written into latent memory when it is put. ``get`` gives the most recent ones as messages;
    an ``MPlusLLM`` that answers them reads all others as latents. In JSON stand the history and the name of
    the latents, never tensors: a restored memory finds its latents again by that name.
    """

    model: str = "smol-135m"
    """The model that writes and reads."""
    model_fingerprint: str = ""
    """Its weights; empty until they were needed."""
    store: StorePlace | None = None
    """The store that keeps the latents; None: they live in this process."""
    memory_key: MemoryKeyName = None
    """Their name in the store."""
    live_id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Their name in this process, where there is no store."""
    is_own: bool = True
    """Whether nothing but this conversation is in the latents, so that they can be made again from it."""
    token_limit: int = Field(default=1024, ge=1)
    """Most tokens of recent turns that are given as messages."""
    chat_history: list[Turn] = Field(default_factory=list[Turn])
    """What has been said since the last reset."""

    _model: MPlus | None = PrivateAttr(default=None)
    _latents: Latents | None = PrivateAttr(default=None)
    _guard: threading.RLock = PrivateAttr(default_factory=threading.RLock)

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "MPlusMemory"

    @classmethod
    def from_defaults(
        cls,
        chat_history: list[ChatMessage] | None = None,
        llm: LLM | None = None,
        *,
        memory: Memory | Latents | None = None,
        store: MemoryStore | None = None,
        memory_key: str | None = None,
        token_limit: int | None = None,
        **kwargs: Any,
    ) -> "MPlusMemory":
        """Memory for a conversation.

        Args:
            chat_history: What has been said already; turns that the latents have are not written again.
            llm: The model; None: ``MPlusLLM()``. Its store is used where none is given.
            memory: Latents to share, such as an index's or an LLM's own.
            store: Keeps the latents on disk.
            memory_key: Their name there: one for each conversation that must not see others.
            token_limit: Most tokens of recent turns that are given as messages.
            kwargs: None are known.

        Raises:
            ValueError: An LLM that cannot read latents, a bad name, or a store without a name.
        """
        known = ("chat_history", "llm", "memory", "store", "memory_key", "token_limit")
        UnknownNameError.check(kwargs, known, of="MPlusMemory.from_defaults", instead=INSTEAD)
        llm = MPlusLLM() if llm is None else llm
        if not isinstance(llm, MPlusLLM):
            raise ValueError(f"llm={type(llm).__name__}: expected an MPlusLLM, the only one that can read latents.")
        key = checked_key(memory_key if memory_key is not None else llm.memory_key)
        store = store or llm.store
        if memory is not None:
            if memory_key is not None:
                raise ValueError(f"memory= and memory_key={memory_key!r:.60}: expected one of them, not both.")
            latents = Latents(memory=memory) if isinstance(memory, Memory) else memory
            store, key = latents.store, latents.key
        elif store is not None and key is None:
            raise ValueError("store= without memory_key=: expected a name, so that this conversation is found again.")
        elif key is not None and store is None:
            latents = llm.latents(key)
        else:
            latents = Latents(store=store, key=key)
        found = cls(
            model=llm.model_name,
            store=None if store is None else StorePlace.of(store),
            memory_key=key,
            is_own=memory is None,
            token_limit=cls.model_fields["token_limit"].default if token_limit is None else token_limit,
        )
        found._model = llm.model if isinstance(llm.model, MPlus) else None
        found._latents = latents
        _LIVE[found.live_id] = latents
        if chat_history:
            found.set(chat_history)
        return found

    # --- where it is ------------------------------------------------------------------------------

    @property
    def loaded(self) -> MPlus:
        """The model itself; loaded at the first use."""
        if self._model is None:
            self._model = by_fingerprint(self.model_fingerprint)
        model = load(self._model or self.model)
        self._model, self.model_fingerprint = model, model.fingerprint
        return model

    @property
    def latents(self) -> Latents:
        """Where everything that was said is.

        Raises:
            ValueError: It was restored from JSON, and its latents are neither in a store nor in this process.
        """
        with self._guard:
            if self._latents is None:
                self._latents = self._found_again()
                _LIVE[self.live_id] = self._latents
            return self._latents

    def _found_again(self) -> Latents:
        if self.store is not None:
            return Latents(store=self.store.opened(), key=self.memory_key)
        alive = _LIVE.get(self.live_id)
        if alive is not None:
            return alive
        if not self.is_own:
            raise ValueError(
                "The latents that this memory shared are not in this process any more. Make it again with "
                "MPlusMemory.from_defaults(memory=…, chat_history=…), or keep them with store= and memory_key=."
            )
        memory = self.loaded.new_memory()
        for turn in self.chat_history:
            self._write(memory, turn.source, turn)
        return Latents(memory=memory)

    # --- what LlamaIndex asks ---------------------------------------------------------------------

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """The most recent turns, beginning with a question; the LLM reads the others as latents.

        Args:
            input: Accepted and not used, as ``initial_token_count`` is: which turns are given depends on neither.
            kwargs: ``initial_token_count``.

        Raises:
            ValueError: Another argument.
        """
        UnknownNameError.check(kwargs, {"input", "initial_token_count"}, of="MPlusMemory.get")
        turns = self.chat_history  # never changed in place
        first = next((n for n, turn in enumerate(turns) if ROLES[turn.role] != "system"), len(turns))
        system, turns = turns[:first], turns[first:]
        start = self._window(turns) if turns else 0
        return [turn.given_by(self) for turn in [*system, *turns[start:]]]

    def get_all(self) -> list[ChatMessage]:
        """Everything said since the last reset."""
        return [turn.given_by(self) for turn in self.chat_history]

    def put(self, message: ChatMessage) -> None:
        """Remember a turn, for good."""
        self.put_messages([message])

    def put_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Remember turns; all of them or, after an error, none."""
        with self._guard:
            self.chat_history = [*self.chat_history, *self._remembered(messages, self.chat_history, new=True)]

    def set(self, messages: Sequence[ChatMessage]) -> None:
        """Make these the history; turns that have been written are recognised, and none is forgotten."""
        with self._guard:
            self.chat_history = self._remembered(messages, [], new=False)

    def reset(self, forget: bool = False) -> None:
        """Begin a new conversation.

        Args:
            forget: Forget everything that was said in this and earlier ones too; notes and documents stay.
        """
        with self._guard:
            if forget:
                with self.latents.opened(self.loaded) as memory:
                    forget_all(memory, [source.name for source in memory.sources() if TURN in source.metadata])
            self.chat_history = []

    async def areset(self, forget: bool = False) -> None:
        """``reset`` without blocking the event loop."""
        await asyncio.to_thread(self.reset, forget)

    # --- inside -----------------------------------------------------------------------------------

    def _window(self, turns: Sequence[Turn]) -> int:
        """Where the recent turns begin: at a question, so that no answer or result stands without it."""
        tokenizer, used, start = self.loaded.tokenizer, 0, len(turns)
        for turn in reversed(turns):
            used += len(tokenizer(spoken(turn), add_special_tokens=False)["input_ids"]) + MESSAGE_TOKENS
            if used > self.token_limit:
                break
            start -= 1
        if start == 0:
            return 0
        asked = [n for n, turn in enumerate(turns) if turn.role == MessageRole.USER]
        return next((n for n in asked if n >= start), asked[-1] if asked else min(start, len(turns) - 1))

    def _remembered(self, messages: Sequence[ChatMessage], before: Sequence[Turn], *, new: bool) -> list[Turn]:
        """The messages as turns, written where they have not been; nothing has changed if one cannot be."""
        said = [spoken(message) for message in messages]
        name = before[-1].source if before else ""
        turns: list[Turn] = []
        with self.latents.opened(self.loaded) as memory, all_or_nothing(memory) as fork:
            written = {source.name: source.texts for source in memory.sources()}
            for message, text in zip(messages, said, strict=True):
                known = message.source if isinstance(message, Turn) else ""
                if new or written.get(known) != (text,):
                    known = turn_name(name, {"role": ROLES[message.role], "content": text})
                    known = _free(known, written) if new else known
                turn = Turn(role=message.role, blocks=list(message.blocks), source=known)
                turn.additional_kwargs = dict(message.additional_kwargs)
                if text and known not in written:
                    self._write(fork, known, turn)
                    written[known] = (text,)
                turns.append(turn)
                name = known
        return turns

    def _write(self, memory: Memory, name: str, turn: ChatMessage) -> None:
        text = spoken(turn)
        if text:
            metadata = {TURN: True, "role": ROLES[turn.role]}
            self.loaded.write(memory, text, source=name, metadata=metadata, keep_text=True)


class MPlusMemoryBlock(KnownNames, BaseMemoryBlock[str]):
    """Takes the messages that LlamaIndex's ``Memory`` drops, into the memory that its LLM reads.

        llm = MPlusLLM(store=MemoryStore("memories"), memory_key="anna")
        memory = Memory.from_defaults(memory_blocks=[MPlusMemoryBlock(llm=llm)], token_limit=2000)

    It adds nothing to prompts. ``Memory.reset`` does not reach blocks, and ``Memory.set`` goes past them: use
    ``forget`` here, or an ``MPlusMemory`` alone.
    """

    name: str = "mplus"
    description: str | None = "What was said before, in latent memory."
    llm: MPlusLLM = Field(exclude=True)
    """Reads what the block is given: its ``memory``, its ``memory_key``, or its own."""

    _turns: MPlusMemory | None = PrivateAttr(default=None)

    @property
    def _conversation(self) -> MPlusMemory:
        if self._turns is None:
            self._turns = MPlusMemory.from_defaults(llm=self.llm, memory=self.llm.latents())
        return self._turns

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await in_thread(self._put, messages)

    def _put(self, messages: Sequence[ChatMessage]) -> None:
        conversation = self._conversation
        conversation.put_messages(messages)
        conversation.chat_history = conversation.chat_history[-1:]  # only to name the next ones

    def forget(self) -> None:
        """Forget every turn that was written, for good."""
        self._conversation.reset(forget=True)


def _free(name: str, taken: "dict[str, Any]") -> str:
    """The name, numbered where it has been said before: said again, it is news again."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
