"""``MPlusMemoryBlock``: what LlamaIndex's own ``Memory`` drops, in latent memory."""

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.memory import BaseMemoryBlock
from pydantic import Field, PrivateAttr, model_validator

from mplus_integrations.copies import Referring
from mplus_integrations.latents import Latents, MemoryKeyName
from mplus_integrations.llama_index.chat_memory import MPlusMemory
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.messages import Turn
from mplus_integrations.settings import ConversationName, KnownNames, conversation_name
from mplus_integrations.worker import in_thread


class MPlusMemoryBlock(KnownNames, Referring, BaseMemoryBlock[list[ChatMessage]]):
    """Writes the messages that LlamaIndex's ``Memory`` drops into latent memory, where an ``MPlusLLM`` reads them.

        llm = MPlusLLM(store=MemoryStore("memories"))
        block = MPlusMemoryBlock(llm=llm, memory_key="anna")
        memory = Memory.from_defaults(session_id="monday", memory_blocks=[block], token_limit=2000)

    Its ``session_id`` names the conversation. A user's memory, which ``memory_key`` names, is read in all of her
    conversations; without one, each conversation reads what the LLM has memorized and its own turns.

    A turn is written once, also where a chat engine or an agent reads the conversation as memory before the block takes
    it, and with new objects over the same store. What is forgotten is not written again from what ``Memory`` still
    holds; after a restart this is known of turns before one that is remembered, so call ``Memory.reset`` too.

    It adds no text to prompts: a message without text tells the ``MPlusLLM`` that answers which memory to read.
    LlamaIndex does not call blocks in ``Memory.reset`` and ``Memory.set``: call ``forget`` of the block, or use an
    ``MPlusMemory`` alone.
    """

    _not_pickled: ClassVar[frozenset[str]] = frozenset({"_turns"})

    name: str = "mplus"
    description: str | None = "What was said before, in latent memory."
    llm: MPlusLLM = Field(exclude=True)
    """The LLM that writes the block's turns; they are written into its memory."""
    memory_key: MemoryKeyName = None
    """Name of the memory, such as a user's; None: the LLM's, else in a store that of the conversation."""
    conversation_id: ConversationName = None
    """Name of the conversation; None: the ``session_id`` of LlamaIndex's ``Memory``."""

    _own: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    """Name of the conversation of messages that come without one."""
    _turns: dict[str, MPlusMemory] = PrivateAttr(default_factory=dict[str, MPlusMemory])
    """The conversations by name."""

    @model_validator(mode="after")
    def _is_told_whose(self) -> Self:
        if self.llm._must_name() and self.llm.store is not None and not (self._is_named or self.conversation_id):
            raise self._unnamed()
        return self

    @property
    def _is_named(self) -> bool:
        """Whether it is known whose memory it is."""
        return self.memory_key is not None or self.llm.memory_key is not None

    def _unnamed(self) -> ValueError:
        return ValueError(
            "MPlusMemoryBlock over an LLM with a store, for nobody: expected memory_key=, the name of one user's "
            "memory, or conversation_id=. Give one of them to the block, or memory_key= to its MPlusLLM."
        )

    def latents(self, session_id: str | None = None) -> Latents:
        """The memory with the turns of a conversation.

        Args:
            session_id: The conversation.

        Raises:
            ValueError: The conversation has no name, and neither has the memory in the LLM's store.
        """
        return self._conversation(session_id).latents

    def _conversation(self, session: str | None) -> MPlusMemory:
        """The conversation of a session.

        Raises:
            ValueError: It has no name, and neither has the memory in the LLM's store.
        """
        name = self.conversation_id or conversation_name(session)
        if name is None and self.llm.store is not None and not self._is_named:
            raise self._unnamed()
        return self._called(name or self._own)

    def _called(self, name: str) -> MPlusMemory:
        """The conversation of a name."""
        latents = self.llm.latents(self.llm._present_key(self.memory_key, name)).of_conversation(name)
        found = self._turns.get(name)
        if found is None or not found.latents.is_same(latents):  # a copy may have another memory
            found = MPlusMemory.from_defaults(llm=self.llm, memory=latents, conversation_id=name)
            self._turns[name] = found
        return found

    async def _aget(
        self, messages: list[ChatMessage] | None = None, session_id: str | None = None, **block_kwargs: Any
    ) -> list[ChatMessage]:
        return [Turn.marker(self._conversation(session_id))]

    async def aput(
        self, messages: list[ChatMessage], from_short_term_memory: bool = False, session_id: str | None = None
    ) -> None:
        """Write messages into memory.

        Args:
            messages: The messages.
            from_short_term_memory: Whether LlamaIndex's ``Memory`` drops them.
            session_id: The conversation.

        Raises:
            ValueError: The conversation has no name, and neither has the memory in the LLM's store.
        """
        # LlamaIndex notes the session with the messages, where one from elsewhere could stand too.
        if self.accept_short_term_memory or not from_short_term_memory:
            await in_thread(self._put, messages, session_id)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await self.aput(messages)

    def _put(self, messages: Sequence[ChatMessage], session: str | None) -> None:
        self._conversation(session).put_left(messages)

    def forget(self, conversation_id: str | None = None) -> int:
        """Forget the turns of one conversation for good; notes and other conversations stay.

        Args:
            conversation_id: Its name; None: the block's own, or all those that it has been asked for since it was made.

        Returns:
            How many turns were forgotten.

        Raises:
            ValueError: The name is neither text, a number nor a UUID, or empty.
        """
        wanted = self.conversation_id if conversation_id is None else conversation_name(conversation_id)
        if conversation_id is not None and not (wanted or "").strip():
            raise ValueError(f"conversation_id={conversation_id!r}: expected the name of a conversation, or None.")
        names = list(self._turns) if wanted is None else [wanted]
        return sum(self._called(name).forget_conversation() for name in names)
