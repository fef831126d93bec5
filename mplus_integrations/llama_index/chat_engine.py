"""Conversations about documents. Both are read as latents; no conversation reads another's turns."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine
from llama_index.core.chat_engine.types import (
    AGENT_CHAT_RESPONSE_TYPE,
    BaseChatEngine,
    StreamingAgentChatResponse,
)
from llama_index.core.memory import Memory
from llama_index.core.memory.types import BaseMemory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import NodeWithScore

from mplus_integrations.arguments import checked_text
from mplus_integrations.conversations import CONVERSATION, TURN
from mplus_integrations.latents import Latents
from mplus_integrations.llama_index.chat_memory import MPlusMemory
from mplus_integrations.llama_index.left_nodes import LeftNodes
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.memory_block import MPlusMemoryBlock
from mplus_integrations.llama_index.messages import Turn
from mplus_integrations.llama_index.retriever import MPlusIndexRetriever
from mplus_integrations.llama_index.synthesizer import MPlusSynthesizer
from mplus_integrations.llama_index.text_room import TextRoom
from mplus_integrations.worker import in_thread


def latents_of(memory: BaseMemory) -> Latents:
    """The latents of a conversation: those of an ``MPlusMemory`` or of a block, else new ones.

    New ones are for turns outside the prompt.
    """
    if isinstance(memory, MPlusMemory):
        return memory.latents
    if isinstance(memory, Memory):
        blocks = [block for block in memory.memory_blocks if isinstance(block, MPlusMemoryBlock)]
        if blocks:
            return blocks[0].latents(memory.session_id)
    return Latents().of_conversation(uuid4().hex)


def told(memory: BaseMemory, history: Sequence[ChatMessage]) -> list[ChatMessage]:
    """What was said, to be put into words: the recent turns of an ``MPlusMemory``, which gives few for an answer."""
    if isinstance(memory, MPlusMemory) and not any(isinstance(m, Turn) and not m.is_marker for m in history):
        history = memory.recent()
    return [message for message in history if not (isinstance(message, Turn) and message.is_marker)]


class KnownMessages(BaseChatEngine):
    """A chat engine that refuses a message that is no text, before anything is said or remembered.

    Raises:
        ValueError: It is none, of every way to ask.
    """

    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AGENT_CHAT_RESPONSE_TYPE:
        """Answer a message."""
        return super().chat(checked_text(message, "message"), chat_history)  # pyright: ignore[reportAbstractUsage]

    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AGENT_CHAT_RESPONSE_TYPE:
        """``chat`` without blocking the event loop."""
        return await super().achat(checked_text(message, "message"), chat_history)  # pyright: ignore[reportAbstractUsage]

    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """Answer a message piece by piece."""
        return super().stream_chat(checked_text(message, "message"), chat_history)  # pyright: ignore[reportAbstractUsage]

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """``stream_chat`` without blocking the event loop."""
        return await super().astream_chat(checked_text(message, "message"), chat_history)  # pyright: ignore[reportAbstractUsage]


class MPlusQuestionChatEngine(KnownMessages, CondenseQuestionChatEngine):
    """Rephrases each question so that it stands alone. If the model returns nothing, the question is asked as it is."""

    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """Answer a message piece by piece."""
        return _citing(super().stream_chat(message, chat_history))

    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """``stream_chat`` without blocking the event loop."""
        return _citing(await super().astream_chat(message, chat_history))

    def _condense_question(self, chat_history: list[ChatMessage], last_message: str) -> str:
        condensed = super()._condense_question(told(self._memory, chat_history), last_message)
        return condensed if condensed.strip() else last_message

    async def _acondense_question(self, chat_history: list[ChatMessage], last_message: str) -> str:
        condensed = await super()._acondense_question(told(self._memory, chat_history), last_message)
        return condensed if condensed.strip() else last_message


def _citing(response: StreamingAgentChatResponse) -> StreamingAgentChatResponse:
    """A streamed answer with the nodes of the answer that it streams, to which those are added that are read."""
    for source in response.sources:
        if isinstance(source.raw_output, StreamingResponse | AsyncStreamingResponse):
            response.source_nodes = source.raw_output.source_nodes
    return response


class MPlusChatEngine(KnownMessages, CondensePlusContextChatEngine):
    """Chats about an index: the question and the latest turns are in the prompt, everything else is read as latents.

    The documents and the conversation stay in memories of their own, which are read together.

    Args:
        retriever: Finds the nodes that are cited.
        llm: The model.
        memory: The conversation.
        own: The latents of the conversation; None: those of ``memory``.
        skip_condense: Ask the question without rephrasing it.
        system_prompt: First message of the prompt.
        node_postprocessors: Applied to the cited nodes; if given, only the remaining nodes are read.
        condense_prompt: Prompt for rephrasing a question so that it stands alone.
        callback_manager: Notified of every answer.
        verbose: Print rephrased questions.
    """

    def __init__(
        self,
        retriever: MPlusIndexRetriever,
        llm: MPlusLLM,
        memory: BaseMemory,
        *,
        own: Latents | None = None,
        skip_condense: bool = True,
        system_prompt: str | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        condense_prompt: str | PromptTemplate | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            retriever,
            llm,
            memory,
            condense_prompt=condense_prompt,
            skip_condense=skip_condense,
            system_prompt=system_prompt,
            node_postprocessors=node_postprocessors,
            callback_manager=callback_manager,
            verbose=verbose,
        )
        self._nodes, self._reader, self._own = retriever, llm, own or latents_of(memory)
        self._llm = llm.without_memory()  # it puts questions into other words
        self._has_own = own is None and not isinstance(memory, MPlusMemory)

    def reset(self) -> None:
        """Begin a new conversation. Only an ``MPlusMemory`` remembers those before it."""
        super().reset()
        if self._has_own:
            self._own = latents_of(self._memory)

    def _get_nodes(self, message: str) -> list[NodeWithScore]:
        return self._read(super()._get_nodes(message))

    async def _aget_nodes(self, message: str) -> list[NodeWithScore]:
        return await in_thread(self._read, await super()._aget_nodes(message))

    def _read(self, nodes: Sequence[NodeWithScore]) -> list[NodeWithScore]:
        """The nodes that are read: these are cited."""
        index = self._nodes.index
        model = self._reader.loaded
        memory = index.latents.read(model)
        own = [] if self._own.is_same(index.latents) else [self._own.read(model)]
        return LeftNodes.of(nodes, memory, index.index_struct.nodes, TextRoom.of(model, memory, *own)).nodes

    def _condense_question(self, chat_history: list[ChatMessage], latest_message: str) -> str:
        condensed = super()._condense_question(told(self._memory, chat_history), latest_message)
        return condensed if condensed.strip() else latest_message

    async def _acondense_question(self, chat_history: list[ChatMessage], latest_message: str) -> str:
        condensed = await super()._acondense_question(told(self._memory, chat_history), latest_message)
        return condensed if condensed.strip() else latest_message

    def _get_response_synthesizer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, chat_history: Sequence[ChatMessage], streaming: bool = False
    ) -> MPlusSynthesizer:
        before = list(chat_history)
        if self._system_prompt:
            before.insert(0, ChatMessage(role=MessageRole.SYSTEM, content=self._system_prompt))
        documents, index = self._nodes.where(), self._nodes.index

        def where(name: str, metadata: Mapping[str, Any]) -> bool:
            return TURN in metadata or CONVERSATION in metadata or documents(name, metadata)

        limited = self._nodes.is_limited or index.is_shared
        mixed = self._own.is_same(index.latents)  # the user chose to write turns beside the documents
        return MPlusSynthesizer(
            self._reader,
            index.latents,
            where=None if not limited else where if mixed else documents,
            # A rephrased question is used both for reading and for citing.
            only_nodes=bool(self._node_postprocessors) or not self._skip_condense,
            before=before,
            own=self._own,
            streaming=streaming,
            callback_manager=self.callback_manager,
            known=index.index_struct.nodes,
            adds_to_nodes=True,
        )
