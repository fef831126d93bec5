"""Conversations about documents: both are read as latents, and neither sees another conversation's."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine
from llama_index.core.memory.types import BaseMemory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate

from mplus import Memory, MPlus
from mplus_integrations.history import CONVERSATION
from mplus_integrations.llama_index.chat_memory import TURN
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.retriever import MPlusIndexRetriever
from mplus_integrations.llama_index.synthesizer import MPlusSynthesizer
from mplus_integrations.whose_memory import Latents


class Alongside(Latents):
    """A fork of an index's latents that takes the turns of one conversation, and follows the index as it changes."""

    def __init__(self, index: Latents) -> None:
        super().__init__()
        self._index = index
        self._seen = ""

    @contextmanager
    def opened(self, model: MPlus) -> Generator[Memory]:
        """The fork, brought up to date."""
        documents = self._index.read(model)
        with self._guard:
            if self._memory is None:
                self._memory, self._seen = documents.fork(), documents.fingerprint
            elif documents.fingerprint != self._seen:
                fresh = documents.fork()
                for turn in self._memory.sources():
                    if TURN in turn.metadata or CONVERSATION in turn.metadata:
                        text = "\n".join(turn.texts)
                        model.write(fresh, text, source=turn.name, metadata=turn.metadata, keep_text=True)
                self._memory, self._seen = fresh, documents.fingerprint
        yield self._memory


class MPlusQuestionChatEngine(CondenseQuestionChatEngine):
    """Puts each question into words of its own; one that the model has no words for is asked as it is."""

    def _condense_question(self, chat_history: list[ChatMessage], last_message: str) -> str:
        condensed = super()._condense_question(chat_history, last_message)
        return condensed if condensed.strip() else last_message

    async def _acondense_question(self, chat_history: list[ChatMessage], last_message: str) -> str:
        condensed = await super()._acondense_question(chat_history, last_message)
        return condensed if condensed.strip() else last_message


class MPlusChatEngine(CondensePlusContextChatEngine):
    """Chats about an index: the question stands after the recent turns, everything else is latent.

    Args:
        retriever: Finds the nodes that are cited.
        llm: The model.
        memory: The conversation.
        latents: What is read.
        skip_condense: Ask the question as it is.
        system_prompt: Stands before everything.
        node_postprocessors: Applied to the nodes that are cited; only those left are read then.
        condense_prompt: How to ask for a question in words of its own.
        callback_manager: Told about every answer.
        verbose: Print questions that were put into other words.
    """

    def __init__(
        self,
        retriever: MPlusIndexRetriever,
        llm: MPlusLLM,
        memory: BaseMemory,
        *,
        latents: Latents,
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
        self._nodes, self._reader, self._latents = retriever, llm, latents

    def _condense_question(self, chat_history: list[ChatMessage], latest_message: str) -> str:
        condensed = super()._condense_question(chat_history, latest_message)
        return condensed if condensed.strip() else latest_message

    async def _acondense_question(self, chat_history: list[ChatMessage], latest_message: str) -> str:
        condensed = await super()._acondense_question(chat_history, latest_message)
        return condensed if condensed.strip() else latest_message

    def _get_response_synthesizer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, chat_history: Sequence[ChatMessage], streaming: bool = False
    ) -> MPlusSynthesizer:
        before = list(chat_history)
        if self._system_prompt:
            before.insert(0, ChatMessage(role=MessageRole.SYSTEM, content=self._system_prompt))
        documents = self._nodes.where()

        def where(name: str, metadata: Mapping[str, Any]) -> bool:
            return TURN in metadata or CONVERSATION in metadata or documents(name, metadata)

        return MPlusSynthesizer(
            self._reader,
            self._latents,
            where=where if self._nodes.is_limited or self._nodes.index.is_shared else None,
            # A question put into other words decides what is read, as well as what is cited.
            only_nodes=bool(self._node_postprocessors) or not self._skip_condense,
            before=before,
            streaming=streaming,
            callback_manager=self.callback_manager,
        )
