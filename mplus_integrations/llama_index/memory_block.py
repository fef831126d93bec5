"""``MPlusMemoryBlock``: what LlamaIndex's own ``Memory`` drops, in latent memory."""

from collections.abc import Sequence
from typing import Any, ClassVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory.memory import BaseMemoryBlock
from pydantic import Field, PrivateAttr

from mplus_integrations.copies import Referring
from mplus_integrations.llama_index.chat_memory import MPlusMemory
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.settings import KnownNames
from mplus_integrations.worker import in_thread


class MPlusMemoryBlock(KnownNames, Referring, BaseMemoryBlock[str]):
    """Writes the messages that LlamaIndex's ``Memory`` drops into the memory that its LLM reads.

        llm = MPlusLLM(store=MemoryStore("memories"), memory_key="anna")
        memory = Memory.from_defaults(memory_blocks=[MPlusMemoryBlock(llm=llm)], token_limit=2000)

    It adds nothing to prompts. LlamaIndex does not call blocks in ``Memory.reset`` and ``Memory.set``: call
    ``forget`` of the block, or use an ``MPlusMemory`` alone.
    """

    _not_pickled: ClassVar[frozenset[str]] = frozenset({"_turns"})

    name: str = "mplus"
    description: str | None = "What was said before, in latent memory."
    llm: MPlusLLM = Field(exclude=True)
    """The LLM that reads the block's turns; they are written into its memory."""

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
        conversation.chat_history = conversation.chat_history[-1:]  # needed only for the names of the next turns

    def forget(self) -> None:
        """Forget all turns that were written."""
        self._conversation.reset(forget=True)
