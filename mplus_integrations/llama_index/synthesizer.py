"""Answers from latent memory instead of pasted text, for LlamaIndex's query and chat engines."""

import warnings
from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
from copy import copy
from types import MethodType
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW, DEFAULT_NUM_OUTPUTS
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.settings import Settings
from llama_index.core.types import RESPONSE_TEXT_TYPE
from pydantic import BaseModel

from mplus import UnknownNameError
from mplus_integrations.conversations import CONVERSATION, THREAD
from mplus_integrations.latents import Latents, Shared, Where
from mplus_integrations.llama_index.citing import Citing
from mplus_integrations.llama_index.left_nodes import LeftNodes
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.nodes import NODE
from mplus_integrations.llama_index.retriever import Findable
from mplus_integrations.llama_index.structured import asking, parsed
from mplus_integrations.llama_index.text_room import TextRoom
from mplus_integrations.whose_memory import UNLOADED_WINDOW
from mplus_integrations.worker import in_thread

PACKING = (
    "Settings.context_window, Settings.num_output and Settings.prompt_helper say how text is packed into prompts, and "
    "have no effect on answers from latents. Use MPlusLLM(max_tokens=…) for the length of answers; the window is the "
    "model's own. Set Settings.prompt_helper = None and Settings.chat_prompt_helper = None to be rid of them."
)
NOTHING = NodeWithScore(node=TextNode(text=""))
CONTEXT = "What follows is known:"
"""Begins what stands in the prompt of nodes that are not in memory as they are."""
RESPONSE = frozenset({"node_ids", "as_text", "unread", "citing"})
"""Arguments of a response beside question and texts."""
NO_TEXTS: Mapping[str, str] = {}


class MPlusSynthesizer(BaseSynthesizer):
    """Asks the LLM the question alone. Documents are read as latents, and the nodes are cited.

    Cited are the nodes that were found, and after them those that the answer has read beside them.

    A node whose text is not the one in memory, as a postprocessor leaves it that masks or replaces, stands in the
    prompt as it is, and its latents are not read.

    Args:
        llm: The model.
        latents: The memory with the documents.
        where: A test of its sources to read.
        only_nodes: Read only the given nodes, as after a filter or a reranker.
        before: Messages before the question.
        own: The memory of a conversation, read beside the documents; its turns are written there. None: they are
            written beside the documents.
        streaming: Return answers piece by piece.
        output_cls: A Pydantic class for the answers.
        callback_manager: Notified of every answer.
        known: Ids of the nodes that were written, such as ``index.index_struct.nodes``. One that memory has no longer
            was forgotten, and is neither read nor cited.
        adds_to_nodes: Add the nodes that are read to the list of those that were found, which a chat engine returns.
    """

    def __init__(
        self,
        llm: MPlusLLM,
        latents: Latents,
        *,
        where: Where | None = None,
        only_nodes: bool = False,
        before: Sequence[ChatMessage] = (),
        own: Latents | None = None,
        streaming: bool = False,
        output_cls: type[BaseModel] | None = None,
        callback_manager: CallbackManager | None = None,
        known: Collection[str] = (),
        adds_to_nodes: bool = False,
    ) -> None:
        super().__init__(llm=llm, callback_manager=callback_manager, streaming=streaming, output_cls=output_cls)
        warn_of_packing()
        self._reader, self._latents, self._where = llm, latents, where
        self._only_nodes, self._before, self._own = only_nodes, list(before), own
        self._known, self._adds_to_nodes = known, adds_to_nodes

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        UnknownNameError.check(prompts_dict, (), of="update_prompts of answers from latents, which have no prompt,")

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer a question; the nodes that are read are cited.

        Without nodes, and without a conversation that could answer, the answer is "Empty Response", as that of
        LlamaIndex's own synthesizers, and the LLM is not called.
        """
        UnknownNameError.check(response_kwargs, RESPONSE, of="MPlusSynthesizer")
        found = self._left(nodes)
        if not found.nodes and not self._has_conversation():
            return super().synthesize(query, [], additional_source_nodes)
        cited, citing = found.nodes or [NOTHING], self._citing(query, nodes)
        response = super().synthesize(query, cited, additional_source_nodes, **found.arguments, citing=citing)
        return citing.cited_in(response if found.nodes else _uncited(response, additional_source_nodes))

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """``synthesize`` without blocking the event loop."""
        UnknownNameError.check(response_kwargs, RESPONSE, of="MPlusSynthesizer")
        found = await in_thread(self._left, nodes)
        if not found.nodes and not await in_thread(self._has_conversation):
            return await super().asynthesize(query, [], additional_source_nodes)
        cited, citing = found.nodes or [NOTHING], self._citing(query, nodes)
        response = await super().asynthesize(query, cited, additional_source_nodes, **found.arguments, citing=citing)
        return citing.cited_in(response if found.nodes else _uncited(response, additional_source_nodes))

    def _citing(self, query: str | QueryBundle, nodes: list[NodeWithScore]) -> Citing:
        return Citing(self._reader, self._latents, query, found=nodes if self._adds_to_nodes else None)

    def _left(self, nodes: Sequence[NodeWithScore]) -> LeftNodes:
        model = self._reader.loaded
        memory = self._latents.read(model)
        own = [] if self._own is None or self._own.is_same(self._latents) else [self._own.read(model)]
        return LeftNodes.of(nodes, memory, self._known, TextRoom.of(model, memory, *own))

    def _has_conversation(self) -> bool:
        """Whether there is a conversation to answer from."""
        said = [m for m in self._before if m.role != MessageRole.SYSTEM]
        own = None if self._own is None or self._own.is_same(self._latents) else self._own
        if said or own is None:
            return bool(said)
        held = own.read(self._reader.loaded).sources()
        return any(CONVERSATION not in one.metadata or one.metadata.get(THREAD) == own.conversation for one in held)

    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        node_ids: Sequence[str] = (),
        as_text: Mapping[str, str] = NO_TEXTS,
        unread: Collection[str] = (),
        citing: Citing | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """The answer itself; ``as_text`` stands in the prompt, and ``text_chunks``, which hold metadata too, do not.

        Raises:
            ValueError: An argument that does not exist.
        """
        UnknownNameError.check(response_kwargs, RESPONSE, of="MPlusSynthesizer")
        llm = self._bound(node_ids, {*as_text, *unread}, citing)
        messages = self._messages(query_str, as_text.values())
        if self._output_cls is not None:
            return parsed(self._output_cls, llm.chat(messages, **asking(self._output_cls)))
        if self._streaming:
            return _deltas(llm, messages)
        return llm.chat(messages).message.content or ""

    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        node_ids: Sequence[str] = (),
        as_text: Mapping[str, str] = NO_TEXTS,
        unread: Collection[str] = (),
        citing: Citing | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """``get_response`` without blocking the event loop."""
        UnknownNameError.check(response_kwargs, RESPONSE, of="MPlusSynthesizer")
        llm = self._bound(node_ids, {*as_text, *unread}, citing)
        messages = self._messages(query_str, as_text.values())
        if self._output_cls is not None:
            return parsed(self._output_cls, await llm.achat(messages, **asking(self._output_cls)))
        if self._streaming:
            return _adeltas(llm, messages)
        return (await llm.achat(messages)).message.content or ""

    def _messages(self, query: str, texts: Collection[str]) -> list[ChatMessage]:
        """The question, after the texts that are not in memory as they are."""
        context = [ChatMessage(role=MessageRole.SYSTEM, content="\n\n".join([CONTEXT, *texts]))] if texts else []
        lead = sum(message.role == MessageRole.SYSTEM for message in self._before[:1])
        question = ChatMessage(role=MessageRole.USER, content=query)
        return [*self._before[:lead], *context, *self._before[lead:], question]

    def _bound(self, node_ids: Sequence[str], others: Collection[str], citing: Citing | None = None) -> MPlusLLM:
        """The LLM that reads the latents of nodes, except ``others``, and says what it has read."""
        heard = None if citing is None else citing.hear
        beside = self._where.now() if isinstance(self._where, Findable) else self._where
        allowed, changed = frozenset(node_ids) - frozenset(others), frozenset(others)

        def of_nodes(name: str, metadata: Mapping[str, Any]) -> bool:
            if name in changed or (self._only_nodes and NODE in metadata and name not in allowed):
                return False
            # Turns of the conversation are not nodes, but are read too.
            return (self._only_nodes and NODE in metadata) or beside is None or bool(beside(name, metadata))

        where = of_nodes if changed or self._only_nodes else beside
        if self._own is None or self._own.is_same(self._latents):
            return self._reader.reading(self._latents, where, heard=heard)
        return self._reader.reading(self._own, shared=[Shared(self._latents, where)], heard=heard)


class FoundSynthesizer(BaseSynthesizer):
    """A synthesizer that puts text into prompts, and an LLM that reads latents beside it.

    Of a node whose text is not the one in memory, as a postprocessor leaves it, only the text is read.

    Args:
        stock: The synthesizer of LlamaIndex.
        llm: The model.
        latents: The memory with the documents.
        where: A test of its sources to read; None: all.
        only_nodes: Read only the latents of the given nodes, as after a filter or a reranker.
        known: Ids of the nodes that were written, as for an ``MPlusSynthesizer``.
    """

    def __init__(
        self,
        stock: BaseSynthesizer,
        llm: MPlusLLM,
        latents: Latents,
        where: Where | None,
        *,
        only_nodes: bool = True,
        known: Collection[str] = (),
    ) -> None:
        super().__init__(llm=llm, streaming=stock._streaming, output_cls=stock._output_cls)
        self._stock, self._reader, self._latents, self._where = stock, llm, latents, where
        self._only_nodes, self._known = only_nodes, known

    def _get_prompts(self) -> PromptDictType:
        return self._stock._get_prompts()

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        self._stock._update_prompts(prompts_dict)

    def _of(self, nodes: Sequence[NodeWithScore], citing: Citing) -> tuple[BaseSynthesizer, list[NodeWithScore]]:
        """The synthesizer for some nodes, and those of them that are left."""
        left = LeftNodes.of(nodes, self._latents.read(self._reader.loaded), self._known)
        names, others = left.as_latents, left.as_text.keys() | left.unread
        beside = self._where.now() if isinstance(self._where, Findable) else self._where

        def where(name: str, about: Mapping[str, Any]) -> bool:
            is_read = name in names if self._only_nodes else name not in others
            return is_read and (beside is None or beside(name, about))

        found = copy(self._stock)
        found._llm, found._streaming = self._reader.reading(self._latents, where, heard=citing.hear), self._streaming
        for name, value in vars(found).items():  # such as what makes the programs of a ``Refine``
            if getattr(value, "__self__", None) is self._stock:
                setattr(found, name, MethodType(value.__func__, found))
        return found, left.nodes

    def synthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer a question from the text and the latents of some nodes."""
        citing = Citing(self._reader, self._latents, query)
        found, left = self._of(nodes, citing)
        return citing.cited_in(found.synthesize(query, left, additional_source_nodes, **response_kwargs))

    async def asynthesize(
        self,
        query: str | QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """``synthesize`` without blocking the event loop."""
        citing = Citing(self._reader, self._latents, query)
        found, left = await in_thread(self._of, nodes, citing)
        return citing.cited_in(await found.asynthesize(query, left, additional_source_nodes, **response_kwargs))

    def get_response(self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any) -> RESPONSE_TEXT_TYPE:
        """The answer of the stock synthesizer."""
        return self._stock.get_response(query_str, text_chunks, **response_kwargs)

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """``get_response`` without blocking the event loop."""
        return await self._stock.aget_response(query_str, text_chunks, **response_kwargs)


def warn_of_packing() -> None:
    """Say that sizes of prompts which somebody has set do nothing here."""
    windows, outputs = {DEFAULT_CONTEXT_WINDOW, UNLOADED_WINDOW}, {DEFAULT_NUM_OUTPUTS}
    if Settings._llm is not None:  # LlamaIndex makes a helper of its sizes where one is only looked at
        own = Settings._llm.metadata
        windows, outputs = {*windows, own.context_window}, {*outputs, own.num_output}
    for helper in (Settings._prompt_helper, Settings._chat_prompt_helper):
        if helper is not None and (
            helper.context_window not in windows
            or helper.num_output not in outputs
            or getattr(helper, "chunk_size_limit", None) is not None
        ):
            warnings.warn(PACKING, stacklevel=3)
            return


def _uncited(response: RESPONSE_TYPE, others: Sequence[NodeWithScore] | None) -> RESPONSE_TYPE:
    response.source_nodes = list(others or [])
    response.metadata = {}
    return response


def _deltas(llm: MPlusLLM, messages: Sequence[ChatMessage]) -> Generator[str, None, None]:
    for chunk in llm.stream_chat(messages):
        yield chunk.delta or ""


async def _adeltas(llm: MPlusLLM, messages: Sequence[ChatMessage]) -> AsyncGenerator[str, None]:
    async for chunk in await llm.astream_chat(messages):
        yield chunk.delta or ""
