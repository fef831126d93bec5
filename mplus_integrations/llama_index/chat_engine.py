"""Conversations about documents. Both are read as latents; no conversation reads another's turns."""

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
    """A fork of an index's latents for the turns of one conversation; it follows changes of the index."""

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
    """Rephrases each question so that it stands alone. If the model returns nothing, the question is asked as it is."""

    def _condense_question(self, chat_history: list[ChatMessage], last_message: str) -> str:
        condensed = super()._condense_question(chat_history, last_message)
        return condensed if condensed.strip() else last_message

    async def _acondense_question(self, chat_history: list[ChatMessage], last_message: str) -> str:
        condensed = await super()._acondense_question(chat_history, last_message)
        return condensed if condensed.strip() else last_message


class MPlusChatEngine(CondensePlusContextChatEngine):
    """Chats about an index: recent turns and the question are in the prompt, everything else is read as latents.

    Args:
        retriever: Finds the nodes that are cited.
        llm: The model.
        memory: The conversation.
        latents: The memory to read.
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
            # A rephrased question is used both for reading and for citing.
            only_nodes=bool(self._node_postprocessors) or not self._skip_condense,
            before=before,
            streaming=streaming,
            callback_manager=self.callback_manager,
        )
