"""Retrievers, query engines and chat engines of an index."""

from abc import abstractmethod
from typing import Any, Literal, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.memory.types import BaseMemory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import BaseNode, QueryType

from mplus import (
    Embedder,
    FoundSource,
    UnknownNameError,
)
from mplus_integrations.latents import Latents
from mplus_integrations.llama_index.chat_engine import MPlusChatEngine, MPlusQuestionChatEngine, latents_of
from mplus_integrations.llama_index.chat_memory import MPlusMemory
from mplus_integrations.llama_index.documents import KnownDocumentArguments
from mplus_integrations.llama_index.index_arguments import (
    ABOUT_TEXT,
    CHAT_OF_MODE,
    INSTEAD_OF_CHAT,
    INSTEAD_OF_SEARCH,
    LATENT_ENGINE,
    ONE_CALL,
    RETRIEVER,
    TEXT_ENGINE,
    given,
    refuse_about_text,
)
from mplus_integrations.llama_index.llm import MPlusLLM, mplus_llm
from mplus_integrations.llama_index.raising import raising
from mplus_integrations.llama_index.retriever import Findable, MPlusIndexRetriever, checked_query
from mplus_integrations.llama_index.synthesizer import FoundSynthesizer, MPlusSynthesizer

WITHOUT_LLM = {ResponseMode.NO_TEXT: NoText, ResponseMode.CONTEXT_ONLY: ContextOnly}
"""Synthesizers that return what was found, and ask no LLM."""
RecallMode = Literal["latent", "hybrid", "text"]


class Engines(KnownDocumentArguments):
    """What an index is asked through. Its documents are in ``latents``."""

    llm: MPlusLLM
    latents: Latents
    is_shared: bool

    @abstractmethod
    def node(self, found: FoundSource) -> BaseNode:
        """The node of a source."""

    def as_retriever(self, **kwargs: Any) -> MPlusIndexRetriever:
        """A retriever that returns nodes with scores.

        Args:
            kwargs: similarity_top_k, filters, node_ids, doc_ids, since, until, as_of, callback_manager, verbose.

        Raises:
            ValueError: There is another argument.
        """
        takes = RETRIEVER | {"callback_manager", "verbose"}
        UnknownNameError.check(kwargs, takes, of="as_retriever", instead=INSTEAD_OF_SEARCH)
        return MPlusIndexRetriever(self, **{name: value for name, value in kwargs.items() if value is not None})

    def as_query_engine(
        self, llm: LLMType | None = None, recall: RecallMode | None = None, **kwargs: Any
    ) -> BaseQueryEngine:
        """A query engine that answers questions and cites nodes.

        Args:
            llm: Another LLM to answer with. If it is not an ``MPlusLLM``, it gets text.
            recall: "latent": the question is asked alone and the documents are read as memory; "text": the text
                of the retrieved nodes is put into the prompt, as in RAG; "hybrid": both.
            kwargs: For the retriever (similarity_top_k, filters, node_ids, doc_ids, since, until, as_of) and for the
                engine.

        Raises:
            ValueError: An argument is unknown, or is for text in the prompt and ``recall`` is "latent".
        """
        reader = self.llm if llm is None else self._as_embedding(llm)
        recall = recall or ("latent" if isinstance(reader, MPlusLLM) else "text")
        if recall not in ("latent", "hybrid", "text"):
            raise ValueError(f"recall={recall!r}: expected 'latent', 'hybrid' or 'text'.")
        if recall != "text" and not isinstance(reader, MPlusLLM):
            raise ValueError(f"recall={recall!r} with {type(reader).__name__}: only an MPlusLLM reads latents.")
        kwargs = given(kwargs, RETRIEVER | TEXT_ENGINE | ABOUT_TEXT)
        if recall == "latent":
            refuse_about_text(kwargs, "or use recall='hybrid'")
        takes = RETRIEVER | (LATENT_ENGINE if recall == "latent" else TEXT_ENGINE)
        UnknownNameError.check(kwargs, takes, of="as_query_engine", instead=INSTEAD_OF_SEARCH)
        retriever = self.as_retriever(**{k: v for k, v in kwargs.items() if k in RETRIEVER})
        engine = {k: v for k, v in kwargs.items() if k not in RETRIEVER}
        where = self.where(retriever)
        if recall == "latent":
            engine["response_synthesizer"] = MPlusSynthesizer(
                cast("MPlusLLM", reader),
                self.latents,
                where=where,
                only_nodes=bool(engine.get("node_postprocessors")),
                streaming=engine.pop("streaming", False),
                output_cls=engine.pop("output_cls", None),
                callback_manager=engine.get("callback_manager"),
                known=self._index_struct.nodes,
            )
        elif recall == "hybrid":
            reader = cast("MPlusLLM", reader).reading(self.latents, where)
        without_llm = WITHOUT_LLM.get(cast("ResponseMode", engine.get("response_mode")))
        if without_llm is not None and "response_synthesizer" not in engine:
            engine["response_synthesizer"] = without_llm(llm=reader)  # else LlamaIndex asks for a hosted LLM
        is_own = "response_synthesizer" in engine
        made = MPlusQueryEngine.from_args(retriever, llm=reader, **engine)
        if not is_own and isinstance(reader, MPlusLLM):
            raising(made._response_synthesizer)
        if recall == "hybrid" and "response_synthesizer" not in engine:
            made._response_synthesizer = FoundSynthesizer(
                made._response_synthesizer,
                cast("MPlusLLM", reader),
                self.latents,
                where,
                # What a filter or a reranker has taken away is not read as latents either.
                only_nodes=bool(engine.get("node_postprocessors")),
                known=self._index_struct.nodes,
            )
        return made

    def as_chat_engine(
        self, chat_mode: ChatMode | None = ChatMode.BEST, llm: LLMType | None = None, **kwargs: Any
    ) -> BaseChatEngine:
        """A chat engine for conversations about the documents, which are read as memory.

        Args:
            chat_mode: BEST (the default) and CONTEXT: the question as it was asked, after the recent turns.
                CONDENSE_PLUS_CONTEXT and CONDENSE_QUESTION: put into words of its own first, without any memory.
                SIMPLE: without the documents.
            llm: Another ``MPlusLLM`` of the same weights.
            kwargs: memory, chat_history, system_prompt, verbose, node_postprocessors, a prompt for condensing,
                and what the retriever takes. The latents of an ``MPlusMemory`` are read beside the documents in every
                mode, also after a restart, and are never mixed with them. Without ``memory`` the engine makes one.

        Raises:
            ValueError: The mode or an argument is unknown.
        """
        chat_mode = ChatMode.BEST if chat_mode is None else chat_mode
        if not isinstance(chat_mode, str) or chat_mode not in CHAT_OF_MODE:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"chat_mode={chat_mode!r}: expected BEST, CONTEXT, CONDENSE_PLUS_CONTEXT, CONDENSE_QUESTION or SIMPLE. "
                "For an agent, give a FunctionAgent or ReActAgent this index's query engine as a tool."
            )
        every = frozenset[str]().union(*CHAT_OF_MODE.values())
        kwargs = given(kwargs, every | ABOUT_TEXT | ONE_CALL)
        refuse_about_text(kwargs, "or build LlamaIndex's own chat engine on as_retriever()")
        UnknownNameError.check(kwargs, every, of="as_chat_engine", instead=INSTEAD_OF_CHAT)
        takes = CHAT_OF_MODE[ChatMode(chat_mode)]
        UnknownNameError.check(kwargs, takes, of=f"as_chat_engine with {ChatMode(chat_mode).name}")
        reader = self.llm if llm is None else mplus_llm(self._as_embedding(llm))
        retriever = self.as_retriever(**{k: v for k, v in kwargs.items() if k in RETRIEVER})
        chat = {k: v for k, v in kwargs.items() if k not in RETRIEVER}
        history, memory = chat.pop("chat_history", None), chat.pop("memory", None)
        if memory is None:
            memory = MPlusMemory.from_defaults(chat_history=history, llm=reader, memory=Latents())
        elif history is not None:
            memory.set(history)
        if chat_mode == ChatMode.SIMPLE:
            return SimpleChatEngine.from_defaults(llm=reader, memory=memory, **chat)
        if chat_mode == ChatMode.CONDENSE_QUESTION:
            return self._question_engine(retriever, reader, memory, **chat)
        return MPlusChatEngine(
            retriever,
            reader,
            memory,
            skip_condense=chat_mode != ChatMode.CONDENSE_PLUS_CONTEXT,
            callback_manager=self._callback_manager,
            **chat,
        )

    def _question_engine(
        self,
        retriever: MPlusIndexRetriever,
        reader: MPlusLLM,
        memory: BaseMemory,
        *,
        system_prompt: str | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        **chat: Any,
    ) -> BaseChatEngine:
        """A chat engine that asks a query engine questions that it has put into words of their own."""
        synthesizer = MPlusSynthesizer(
            reader,
            self.latents,
            where=self.where(retriever),
            only_nodes=bool(node_postprocessors),
            before=[ChatMessage(role=MessageRole.SYSTEM, content=system_prompt)] if system_prompt else [],
            own=latents_of(memory),
            callback_manager=self._callback_manager,
            known=self._index_struct.nodes,
        )
        engine = RetrieverQueryEngine(retriever, synthesizer, node_postprocessors, self._callback_manager)
        return MPlusQuestionChatEngine.from_defaults(
            query_engine=engine, llm=reader.without_memory(), memory=memory, **chat
        )

    def _as_embedding(self, given: LLMType) -> LLM:
        """Another LLM, with the embedder of the index unless it has one of its own.

        Raises:
            ValueError: It is none.
        """
        try:
            llm = resolve_llm(given, self._callback_manager)
        except AssertionError as error:
            raise ValueError(f"llm={given!r:.60} is {type(given).__name__}: expected an LLM, or its name.") from error
        if isinstance(llm, MPlusLLM) and llm.embedder is None:
            return embedding_with(llm, self.llm.embedder)
        return llm

    def where(self, retriever: MPlusIndexRetriever) -> Any:
        """A test of the sources to read for answers about what a retriever may find; None: all sources."""
        return Findable(retriever) if retriever.is_limited or self.is_shared else None


class MPlusQueryEngine(RetrieverQueryEngine):
    """LlamaIndex's query engine, which refuses what is no question, and a prompt that it does not have."""

    def query(self, str_or_query_bundle: QueryType) -> RESPONSE_TYPE:
        """Answer a question.

        Raises:
            ValueError: It is neither text nor a ``QueryBundle``.
        """
        return super().query(checked_query(str_or_query_bundle))

    async def aquery(self, str_or_query_bundle: QueryType) -> RESPONSE_TYPE:
        """``query`` without blocking the event loop."""
        return await super().aquery(checked_query(str_or_query_bundle))

    def update_prompts(self, prompts_dict: PromptDictType) -> None:
        """Change prompts.

        Raises:
            ValueError: There is no such prompt; answers from latents have none.
        """
        UnknownNameError.check(prompts_dict, self.get_prompts(), of="update_prompts of this engine")
        super().update_prompts(prompts_dict)


def embedding_with(llm: MPlusLLM, embed_model: Any) -> MPlusLLM:
    """The LLM with an embedder; it shares weights and memories with the given one."""
    if embed_model is None:
        return llm
    if isinstance(embed_model, str):
        embed_model = resolve_embed_model(embed_model)
    found = llm.model_copy(update={"embedder": Embedder.of(embed_model)})
    found._embedding = None
    return found
