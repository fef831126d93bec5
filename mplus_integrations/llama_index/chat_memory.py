"""``MPlusMemory``: conversations in latent memory."""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.llm import LLM
from llama_index.core.memory.types import BaseMemory
from pydantic import Field, PrivateAttr

from mplus import Memory, MemoryStore, MPlus, UnknownNameError
from mplus.forks import ProcessLock
from mplus_integrations.arguments import checked_several, checked_switch
from mplus_integrations.conversations import CONVERSATION, MESSAGE, THREAD, TURN, turns_of
from mplus_integrations.copies import Referring
from mplus_integrations.latents import Latents, MemoryKeyName, all_or_nothing, check_memory, checked_key, forget_all
from mplus_integrations.llama_index.llm import mplus_llm
from mplus_integrations.llama_index.memory_arguments import FROM_DEFAULTS, INSTEAD_OF_MEMORY, refuse_documents
from mplus_integrations.llama_index.messages import ROLES, Turn, id_of, spoken
from mplus_integrations.llama_index.recent_turns import RecentTurns
from mplus_integrations.llama_index.turns import (
    as_left,
    as_turn,
    earlier_place,
    earlier_versions,
    forgettable,
    of_conversation,
)
from mplus_integrations.models import by_fingerprint, load
from mplus_integrations.settings import (
    ConversationName,
    KnownNames,
    PromptTurns,
    conversation_name,
)
from mplus_integrations.store_place import StorePlace
from mplus_integrations.turn_names import before_all

_LIVE: WeakValueDictionary[str, Latents] = WeakValueDictionary()


class MPlusMemory(KnownNames, Referring, BaseMemory):
    """Memory of one conversation, for agents and chat engines.

        memory = MPlusMemory.from_defaults(llm=llm, store=MemoryStore("memories"), memory_key="anna")
        await agent.run("I live in Graz.", memory=memory)

    ``put`` writes every turn into latent memory. ``get`` returns the question and the latest turns before it, as many
    as the model answers best with (``MPlus.prompt_turns``); an ``MPlusLLM`` that answers them reads all others as
    latents. JSON contains the history and the name of the latents, no tensors; a restored memory finds its latents by
    that name. A copy goes on in the same latents.
    """

    _not_pickled: ClassVar[frozenset[str]] = frozenset({"_guard", "_model"})

    model: str = "smol-135m"
    """The model that writes and reads."""
    model_fingerprint: str = ""
    """Fingerprint of the model's weights; empty until they are loaded."""
    store: StorePlace | None = None
    """The store that keeps the latents; None: they live in this process."""
    memory_key: MemoryKeyName = None
    """Their name in the store."""
    live_id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Name of the latents in this process, if there is no store."""
    conversation_id: ConversationName = None
    """Name of the conversation, which tells it from others in the same latents, also after a restart."""
    is_own: bool = True
    """Whether the latents hold only this conversation, so that they can be made again from the history."""
    prompt_turns: PromptTurns | None = None
    """How many of the latest turns before the question ``get`` returns; "all": as many as ``token_limit`` allows. None:
    the model's own number, and "all" if ``token_limit`` is given."""
    token_limit: int | None = Field(default=None, ge=1)
    """Most tokens of turns that ``get`` returns as messages; None: 1024, and only where turns are not counted."""
    chat_history: list[Turn] = Field(default_factory=list[Turn])
    """Turns since the last reset."""

    _model: MPlus | None = PrivateAttr(default=None)
    _latents: Latents | None = PrivateAttr(default=None)
    _guard: ProcessLock = PrivateAttr(default_factory=ProcessLock)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._latents = _LIVE.get(self.live_id) or self._latents
        if self._latents is not None:
            _LIVE[self.live_id] = self._latents

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
        conversation_id: str | None = None,
        prompt_turns: PromptTurns | None = None,
        token_limit: int | None = None,
        **kwargs: Any,
    ) -> "MPlusMemory":
        """Memory for a conversation.

        Args:
            chat_history: Earlier messages; turns that are in the latents already are not written again.
            llm: The model; None: ``Settings.llm``, or ``MPlusLLM()``. Its store is used if none is given.
            memory: Latents to share, such as an LLM's own. Not an index's: an ``MPlusLLM(shared=index.latents)`` reads
                those beside the conversation.
            store: Keeps the latents on disk.
            memory_key: Name of the latents in the store. Conversations that must be separate need different names.
            conversation_id: Name of the conversation. ``set`` then forgets also what an earlier process wrote and the
                history has no longer, and no turn is taken for that of a conversation that began alike.
            prompt_turns: How many of the latest turns before the question ``get`` returns; None: as ``llm`` has it.
            token_limit: Most tokens of recent turns that ``get`` returns as messages.
            kwargs: No others are accepted.

        Raises:
            ValueError: The LLM cannot read latents, the name is not allowed, a store has no name, or the latents hold
                the documents of an index, which others read too.
        """
        UnknownNameError.check(kwargs, FROM_DEFAULTS, of="MPlusMemory.from_defaults", instead=INSTEAD_OF_MEMORY)
        llm = mplus_llm(llm)
        key = checked_key(memory_key if memory_key is not None else llm.memory_key)
        check_memory(memory, store)
        store = store or llm.store
        if memory is not None:
            if memory_key is not None:
                raise ValueError(f"memory= and memory_key={memory_key!r:.60}: expected one of them, not both.")
            latents = Latents(memory=memory) if isinstance(memory, Memory) else memory
            refuse_documents(latents, memory)
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
            conversation_id=conversation_id,
            is_own=memory is None,
            prompt_turns=llm.prompt_turns if prompt_turns is None and token_limit is None else prompt_turns,
            token_limit=token_limit,
        )
        if isinstance(llm.model, MPlus):  # JSON that is made before the first turn finds it too
            found._model, found.model_fingerprint = llm.model, load(llm.model).fingerprint
        found._latents = latents
        _LIVE[found.live_id] = latents
        if chat_history:
            found.set(chat_history)
        return found

    # --- model and latents ------------------------------------------------------------------------

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
        """The memory with all turns.

        Raises:
            ValueError: The memory was restored from JSON, and its latents are neither in a store nor in this process.
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
        self._write(memory, self.chat_history)
        return Latents(memory=memory)

    # --- methods of LlamaIndex's BaseMemory -------------------------------------------------------

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """The question and the latest turns before it; the LLM reads the others as latents.

        Where none is given but something is remembered, a message without text says which latents to read.

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
        standing = turns[self._recent.start(turns) if turns else 0 :]
        given: list[ChatMessage] = [turn.given_by(self, stays=True) for turn in [*system, *standing]]
        if not standing and self.latents.read(self.loaded).sources():
            given.append(Turn.marker(self))
        return given

    def recent(self) -> list[ChatMessage]:
        """The turns since the last reset that ``token_limit`` allows, for a prompt that tells what was said."""
        turns = [turn for turn in self.chat_history if ROLES[turn.role] != "system"]
        return [turn.given_by(self) for turn in turns[self._recent.start_by_tokens(turns) if turns else 0 :]]

    def get_all(self) -> list[ChatMessage]:
        """All turns since the last reset."""
        return [turn.given_by(self) for turn in self.chat_history]

    def put(self, message: ChatMessage) -> None:
        """Write a turn into memory."""
        self.put_messages([message])

    def put_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Write turns into memory; after an error none is written.

        A message of the history that comes back with other content, a ``Turn`` of its own or one with the same
        ``additional_kwargs["id"]``, takes the place of the earlier one, which is forgotten.
        """
        messages = checked_several(messages, "messages", ChatMessage)
        with self._guard:
            said, more, gone = list[ChatMessage](self.chat_history), list[ChatMessage](), set[str]()
            for message in messages:
                place = earlier_place(message, self.chat_history)
                if place is None:
                    more.append(message)
                else:
                    gone |= forgettable([self.chat_history[place]])
                    said[place] = message
            self.chat_history = self._remembered(said, more, gone=gone)

    def put_left(self, messages: Sequence[ChatMessage]) -> None:
        """Write messages that have left the prompt, in the order in which they leave it.

        An engine that reads the conversation as memory may have written them; what was forgotten since stays so.
        """
        messages = [message for message in checked_several(messages, "messages", ChatMessage) if message.blocks]
        name, latents = self.conversation_id, self.latents
        assert name is not None
        assert latents.handled is not None
        with self._guard, latents.opened(self.loaded) as memory, memory.adding():
            known, last = memory.told(), [turn.source for turn in self.chat_history[-1:]]
            turns, fresh = as_left(messages, known, name, after=last[0] if last else None, handled=latents.handled)
            gone = earlier_versions(fresh, known, name)
            self._change(memory, gone, fresh)
            latents.handled.difference_update(gone)
            latents.handled.update(turn.source for turn in turns)
            self.chat_history = turns[-1:] or self.chat_history  # needed only for the names of the next turns

    def set(self, messages: Sequence[ChatMessage]) -> None:
        """Replace the history.

        Turns that are in memory already are not written again. What this conversation has written and the history says
        no longer is forgotten; a turn that was in memory before may be another conversation's too, and stays.
        """
        messages = checked_several(messages, "messages", ChatMessage)
        with self._guard:
            self.chat_history = self._remembered(messages, (), gone=None)

    def reset(self, forget: bool = False) -> None:
        """Begin a new conversation, which has no name. What was said before stays in memory.

        Args:
            forget: Also forget all turns of this and earlier conversations; notes and documents stay.
        """
        with self._guard:
            if checked_switch(forget, "forget"):
                with self.latents.opened(self.loaded) as memory:
                    forget_all(memory, [source.name for source in memory.sources() if TURN in source.metadata])
            self.chat_history, self.conversation_id = [], None

    async def areset(self, forget: bool = False) -> None:
        """``reset`` without blocking the event loop."""
        await asyncio.to_thread(self.reset, forget)

    def forget_conversation(self, conversation_id: str | None = None) -> int:
        """Forget the turns of one conversation for good; notes, documents and other conversations stay.

        Args:
            conversation_id: Its name; None: this conversation, which then begins anew under its name.

        Returns:
            How many turns were forgotten.

        Raises:
            ValueError: The name is neither text, a number nor a UUID, or empty.
        """
        wanted = None if conversation_id is None else conversation_name(conversation_id)
        if conversation_id is not None and not (wanted or "").strip():
            raise ValueError(f"conversation_id={conversation_id!r}: expected the name of a conversation, or None.")
        with self._guard:
            is_this = wanted is None or wanted == self.conversation_id
            name = self.conversation_id if is_this else wanted
            with self.latents.opened(self.loaded) as memory:
                known = {source.name for source in memory.sources()}
                said = set(turns_of(memory, name)) if name is not None else set[str]()
                said |= forgettable(self.chat_history) & known if is_this else set()
                if said:
                    forget_all(memory, sorted(said))
            if is_this:
                self.chat_history = []
        return len(said)

    async def aforget_conversation(self, conversation_id: str | None = None) -> int:
        """``forget_conversation`` without blocking the event loop."""
        return await asyncio.to_thread(self.forget_conversation, conversation_id)

    # --- internal ---------------------------------------------------------------------------------

    @property
    def _recent(self) -> RecentTurns:
        return RecentTurns(self.loaded, self.prompt_turns, self.token_limit)

    def _remembered(
        self, messages: Sequence[ChatMessage], more: Sequence[ChatMessage], *, gone: "set[str] | None"
    ) -> list[Turn]:
        """Messages as turns; those that are not in memory are written, all or nothing.

        Args:
            messages: The present history. Its turns are kept as they are; other messages are recognised.
            more: What is said now, even if it was said before.
            gone: Turns that are forgotten, unless they are said; None: all that this conversation has written.
        """
        said, kept = [spoken(message) for message in (*messages, *more)], {id(turn) for turn in self.chat_history}
        turns: list[Turn] = []
        fresh: list[Turn] = []
        with self.latents.opened(self.loaded) as memory, memory.adding():
            known = memory.told()
            mine = forgettable(self.chat_history) | of_conversation(known, self.conversation_id)
            written = {name: source.texts for name, source in known.items()}
            for place, (message, text) in enumerate(zip((*messages, *more), said, strict=True)):
                if isinstance(message, Turn) and id(message) in kept:
                    turns.append(message)
                    continue
                before = turns[-1].source if turns else before_all(self.conversation_id)
                turn = as_turn(message, text, before, written, is_new=place >= len(messages))
                turn.is_shared = turn.source in known and turn.source not in mine
                if text and turn.source not in written:
                    fresh.append(turn)
                    written[turn.source] = (text,)
                turns.append(turn)
            gone = ((mine if gone is None else gone) & set(known)) | earlier_versions(
                fresh, known, self.conversation_id
            )
            self._change(memory, gone - {turn.source for turn in turns}, fresh)
        return turns

    def _change(self, memory: Memory, gone: "set[str]", fresh: Sequence[Turn]) -> None:
        if not gone:
            self._write(memory, fresh)
            return
        with all_or_nothing(memory) as fork:
            for name in sorted(gone):
                fork.forget(name)
            self._write(fork, fresh)

    def _write(self, memory: Memory, turns: Sequence[Turn]) -> None:
        """Write turns; those of several calls in a row go through the model together."""
        said = [(spoken(turn), turn) for turn in turns if spoken(turn)]
        if said:
            self.loaded.write(
                memory,
                [text for text, _ in said],
                source=[turn.source for _, turn in said],
                metadata=[self._about(turn) for _, turn in said],
                keep_text=True,
                later=True,
            )

    def _about(self, turn: Turn) -> dict[str, Any]:
        """Metadata of a turn."""
        of = None if self._latents is None else self._latents.conversation
        names = {THREAD: self.conversation_id, CONVERSATION: of, MESSAGE: id_of(turn)}
        return {TURN: True, **{key: name for key, name in names.items() if name is not None}, "role": ROLES[turn.role]}
