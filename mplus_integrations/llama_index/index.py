"""``MPlusIndex``: replaces a ``VectorStoreIndex``; an embedding model is not needed, but can be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.indices.loading import load_index_from_storage
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
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
from llama_index.core.storage import StorageContext
from llama_index.core.storage.docstore.types import RefDocInfo

from mplus import (
    Embedder,
    FoundSource,
    Memory,
    MemoryMismatchError,
    MemoryNotFoundError,
    MemoryStore,
    MPlus,
    UnknownNameError,
)
from mplus_integrations.arguments import checked_folder, checked_id, checked_several, checked_switch
from mplus_integrations.llama_index.chat_engine import MPlusChatEngine, MPlusQuestionChatEngine, latents_of
from mplus_integrations.llama_index.chat_memory import MPlusMemory
from mplus_integrations.llama_index.documents import KnownDocumentArguments
from mplus_integrations.llama_index.index_arguments import (
    ABOUT_TEXT,
    CHAT_OF_MODE,
    INSTEAD_OF_CHAT,
    INSTEAD_OF_INDEX,
    INSTEAD_OF_SEARCH,
    LATENT_ENGINE,
    MAKING,
    ONE_CALL,
    PASSED_ON,
    RETRIEVER,
    TEXT_ENGINE,
    given,
    refuse_about_text,
)
from mplus_integrations.llama_index.index_storage import (
    STRUCT_TYPES,
    LatentsBesideIndex,
    MPlusStruct,
    namespace,
    saved_folder,
)
from mplus_integrations.llama_index.llm import MPlusLLM, mplus_llm
from mplus_integrations.llama_index.nodes import NODE, as_node, check_metadata, described, write_nodes, written_text
from mplus_integrations.llama_index.raising import raising
from mplus_integrations.llama_index.retriever import Findable, MPlusIndexRetriever, checked_query
from mplus_integrations.llama_index.synthesizer import FoundSynthesizer, MPlusSynthesizer
from mplus_integrations.store_place import StorePlace
from mplus_integrations.whose_memory import Latents, check_memory, checked_key, forget_all
from mplus_integrations.worker import in_thread

WITHOUT_LLM = {ResponseMode.NO_TEXT: NoText, ResponseMode.CONTEXT_ONLY: ContextOnly}
"""Synthesizers that return what was found, and ask no LLM."""
RecallMode = Literal["latent", "hybrid", "text"]

_COPIES = (
    "An MPlusIndex is neither copied nor pickled: two of them would write into one memory. Save it with "
    "persist(folder), and open it there with MPlusIndex.load(folder)."
)


class MPlusIndex(KnownDocumentArguments):
    """Documents in latent memory.

        index = MPlusIndex.from_documents(documents, llm=llm)
        index.as_query_engine().query("What do the documents say about …?")

    Args:
        nodes: Nodes to write; ``from_documents`` makes them.
        llm: Reads the latents; None: ``Settings.llm`` if that is an ``MPlusLLM``, else ``MPlusLLM()``.
        memory: Latents to share, such as an LLM's own; None: the index has its own.
        store: Keeps the latents on disk.
        memory_key: Name of the latents in the store.
        embed_model: Finds nodes beside the model's own scorer: a ``BaseEmbedding``, or a function from texts to
            vectors. None: the LLM's own ``embedder``, if it has one.
        time_key: Key of the metadata that says when a node was said, such as "creation_date"; kept with the index.
            Nodes without it count from when they are written. Retrievers choose by it: ``since``, ``until``, ``as_of``.
        kwargs: Arguments of LlamaIndex's ``BaseIndex``.
    """

    index_struct_cls = MPlusStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        llm: LLM | None = None,
        *,
        memory: Memory | Latents | None = None,
        store: MemoryStore | None = None,
        memory_key: str | None = None,
        embed_model: Any = None,
        index_struct: MPlusStruct | None = None,
        storage_context: StorageContext | None = None,
        persist_dir: str | Path | None = None,
        show_progress: bool = False,
        time_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        UnknownNameError.check(kwargs, PASSED_ON | MAKING, of="MPlusIndex", instead=INSTEAD_OF_INDEX)
        self.llm = _embedding_with(mplus_llm(llm), embed_model)
        storage_context = storage_context or StorageContext.from_defaults()
        struct = index_struct or MPlusStruct()
        struct.time_key = struct.time_key if time_key is None else time_key
        check_memory(memory, store)
        if memory is not None and memory_key is not None:
            raise ValueError(f"memory= and memory_key={memory_key!r:.60}: expected one of them, not both.")
        if struct.store is not None and store is None and memory is None:
            store, memory_key = StorePlace(**struct.store).opened(), struct.memory_key
        if store is not None and memory_key is None:
            raise ValueError("store= without memory_key=: expected a name, so that the index is found again.")
        if memory_key is not None and store is None:
            raise ValueError(f"memory_key={memory_key!r:.60} without store=: pass mplus.MemoryStore(folder).")
        self.is_shared = memory is not None
        if isinstance(memory, Latents):
            self.latents = memory
        else:
            self.latents = Latents(memory=memory, store=store, key=checked_key(memory_key))
            self.latents.is_of_index = memory is None
        if store is not None:
            struct.store, struct.memory_key = StorePlace.of(store).model_dump(), memory_key
        elif index_struct is not None and memory is None:
            self.latents = _restored(self.llm, index_struct, storage_context, persist_dir)
            self.latents.is_of_index = True
        super().__init__(
            nodes=nodes,
            index_struct=index_struct,
            storage_context=storage_context,
            show_progress=show_progress,
            # The structure must exist while nodes are written.
            **({"struct": struct} if index_struct is None else {}),
            **kwargs,
        )
        self._keep_beside()

    @classmethod
    def from_latents(
        cls,
        llm: LLM | None = None,
        *,
        memory: Memory | Latents | None = None,
        store: MemoryStore | None = None,
        memory_key: str | None = None,
        **kwargs: Any,
    ) -> "MPlusIndex":
        """An index over nodes that are in a memory already, such as those of an ingestion pipeline."""
        index = cls(nodes=[], llm=llm, memory=memory, store=store, memory_key=memory_key, **kwargs)
        found = [s for s in index.latents.read(index.llm.loaded).sources() if NODE in s.metadata]
        index.insert_nodes([as_node(source.name, source) for source in found])
        return index

    @classmethod
    def load(
        cls, persist_dir: str | Path, llm: LLM | None = None, *, index_id: str | None = None, **kwargs: Any
    ) -> "MPlusIndex":
        """An index that was persisted, with its latents.

        Args:
            persist_dir: The folder.
            llm: As for a new index.
            index_id: Which index, if there are several.
            kwargs: Other arguments of the constructor.

        Raises:
            MemoryNotFoundError: There is no index.
            ValueError: There is another kind of index, or an argument does not exist.
        """
        UnknownNameError.check(kwargs, PASSED_ON | MAKING, of="MPlusIndex.load", instead=INSTEAD_OF_INDEX)
        folder = checked_folder(persist_dir, "persist_dir")
        try:
            context = StorageContext.from_defaults(persist_dir=folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MemoryNotFoundError(
                f"{persist_dir}: no saved index. Expected a folder that index.persist(folder) has written."
            ) from error
        index = load_index_from_storage(context, index_id=index_id, llm=llm, persist_dir=persist_dir, **kwargs)
        if not isinstance(index, cls):
            raise ValueError(
                f"persist_dir={str(persist_dir)!r} holds a {type(index).__name__}; expected an MPlusIndex."
            )
        return index

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "MPlusIndex":
        raise ValueError(_COPIES)

    def __getstate__(self) -> dict[str, Any]:
        raise ValueError(_COPIES)

    def persist(self, persist_dir: str | Path) -> None:
        """Save text, structure and latents into a folder, as ``storage_context.persist`` does."""
        self.storage_context.persist(persist_dir=checked_folder(persist_dir, "persist_dir"))

    def set_index_id(self, index_id: str) -> None:
        """Give the index another id."""
        checked_id(index_id, "index_id")
        self.storage_context.vector_stores.pop(namespace(self.index_id), None)
        super().set_index_id(index_id)
        self._keep_beside()

    def _keep_beside(self) -> None:
        name = namespace(self.index_id)
        stored = self.latents.store is not None
        beside = LatentsBesideIndex.of(name, lambda: None if stored else self.latents.read(self.llm.loaded))
        self.storage_context.vector_stores[name] = beside

    # --- writing: into memory first, so that an error leaves everything unchanged -----------------------

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> MPlusStruct:
        struct: MPlusStruct = build_kwargs.get("struct") or self._index_struct
        self._write(struct, nodes)
        if nodes and not struct.nodes:
            which = ", ".join(map(described, nodes[:5]))
            raise ValueError(f"{len(nodes)} nodes, none of them with text ({which}): expected some. Check the reader.")
        return struct

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> MPlusStruct:
        """Write nodes; their text is added to the document store, as in every index."""
        nodes = checked_several(nodes, "nodes", BaseNode)
        struct = self._build_index_from_nodes(nodes, **build_kwargs)
        self._docstore.add_documents(nodes, allow_update=True)
        return struct

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._write(self._index_struct, nodes)

    def _write(self, struct: MPlusStruct, nodes: Sequence[BaseNode]) -> None:
        model = self.llm.loaded
        check_metadata(nodes)
        with self.latents.opened(model) as memory:
            ids = write_nodes(model, memory, nodes, show_progress=self._show_progress, time_key=struct.time_key)
        documents = {node.node_id: node.ref_doc_id or "" for node in nodes}
        struct.nodes.update({name: documents[name] for name in ids})

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Write further nodes.

        Raises:
            ValueError: An argument that does not exist. Nothing is written then.
        """
        UnknownNameError.check(insert_kwargs, {"nodes"}, of="insert_nodes")
        self._insert(nodes)
        super().insert_nodes(nodes)  # what has been written is not written again

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """``insert_nodes`` without blocking the event loop."""
        await in_thread(self.insert_nodes, nodes, **insert_kwargs)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id], **delete_kwargs)

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Forget nodes: reads of the memory then equal those of one that never had them.

        Raises:
            ValueError: An argument does not exist or is of another type; nothing is forgotten.
        """
        UnknownNameError.check(delete_kwargs, {"node_ids", "delete_from_docstore"}, of="delete_nodes")
        node_ids = checked_several(node_ids, "node_ids", str)
        checked_switch(delete_from_docstore, "delete_from_docstore")
        mine = [name for name in node_ids if name in self._index_struct.nodes]
        with self.latents.opened(self.llm.loaded) as memory:
            forget_all(memory, mine)
        for name in mine:
            del self._index_struct.nodes[name]
        super().delete_nodes([], delete_from_docstore=delete_from_docstore)
        if delete_from_docstore:
            for name in node_ids:
                self.docstore.delete_document(name, raise_error=False)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """``delete_nodes`` without blocking the event loop."""
        await in_thread(self.delete_nodes, node_ids, delete_from_docstore, **delete_kwargs)

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The documents that were written, with their nodes and metadata."""
        documents = dict.fromkeys(filter(None, self._index_struct.nodes.values()))
        infos = {document: self.docstore.get_ref_doc_info(document) for document in documents}
        return {document: info for document, info in infos.items() if info is not None}

    def node(self, found: FoundSource) -> BaseNode:
        """The node of a source, from the document store unless the memory has another text by now."""
        node = self.docstore.get_node(found.source, raise_error=False)
        is_same = node is not None and (not found.texts or written_text(node) == "\n".join(found.texts))
        return node if node is not None and is_same else as_node(found.source, found)

    # --- reading ----------------------------------------------------------------------------------

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
            return _embedding_with(llm, self.llm.embedder)
        return llm

    def where(self, retriever: MPlusIndexRetriever) -> Any:
        """A test of the sources to read for answers about what a retriever may find; None: all sources."""
        return Findable(retriever) if retriever.is_limited or self.is_shared else None


for _name in STRUCT_TYPES:
    INDEX_STRUCT_TYPE_TO_INDEX_CLASS[_name] = MPlusIndex


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


def _embedding_with(llm: MPlusLLM, embed_model: Any) -> MPlusLLM:
    """The LLM with an embedder; it shares weights and memories with the given one."""
    if embed_model is None:
        return llm
    if isinstance(embed_model, str):
        embed_model = resolve_embed_model(embed_model)
    found = llm.model_copy(update={"embedder": Embedder.of(embed_model)})
    found._embedding = None
    return found


def _restored(
    llm: MPlusLLM, struct: MPlusStruct, storage_context: StorageContext, persist_dir: str | Path | None
) -> Latents:
    """The latents of a persisted index; written again from its text if they are missing or of another model."""
    model = llm.loaded
    folder = saved_folder(storage_context, struct.index_id, persist_dir)
    if folder is not None:
        try:
            memory = Memory.load(folder, model)
            if _holds(memory, struct, storage_context):
                return Latents(memory=_as_embedded(memory, model))
        except (MemoryNotFoundError, MemoryMismatchError):  # moved, or now read by another model
            pass
    memory = model.new_memory()
    write_nodes(model, memory, storage_context.docstore.get_nodes(list(struct.nodes)), time_key=struct.time_key)
    return Latents(memory=memory)


def _holds(memory: Memory, struct: MPlusStruct, storage_context: StorageContext) -> bool:
    """Whether a memory has the nodes of an index with their present text."""
    texts = {name: told.texts for name, told in memory.told().items() if NODE in told.metadata}
    nodes = {node.node_id: node for node in storage_context.docstore.get_nodes(list(struct.nodes), raise_error=False)}
    return texts.keys() == struct.nodes.keys() and all(texts[n] == (written_text(node),) for n, node in nodes.items())


def _as_embedded(memory: Memory, model: MPlus) -> Memory:
    """A memory with vectors for all chunks, if the model has an embedder that the memory was written without."""
    recall = model.memory_config.recall
    if recall == f"embedding+{memory.config.recall}":
        return model.with_recall(memory, recall)
    return memory
