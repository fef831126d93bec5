"""``MPlusIndex``: replaces a ``VectorStoreIndex``; an embedding model is not needed, but can be used."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.embeddings.utils import resolve_embed_model
from llama_index.core.indices.loading import load_index_from_storage
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode
from llama_index.core.settings import Settings
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
from mplus_integrations.llama_index.chat_engine import MPlusChatEngine, MPlusQuestionChatEngine, latents_of, rephrasing
from mplus_integrations.llama_index.chat_memory import MPlusMemory
from mplus_integrations.llama_index.documents import KnownDocumentArguments
from mplus_integrations.llama_index.index_storage import (
    STRUCT_TYPE,
    LatentsBesideIndex,
    MPlusStruct,
    StorePlace,
    namespace,
    saved_folder,
)
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.llama_index.nodes import NODE, as_node, write_nodes
from mplus_integrations.llama_index.retriever import MPlusIndexRetriever
from mplus_integrations.llama_index.synthesizer import MPlusSynthesizer
from mplus_integrations.settings import INSTEAD
from mplus_integrations.whose_memory import Latents, checked_key, forget_all
from mplus_integrations.worker import in_thread

RecallMode = Literal["latent", "hybrid", "text"]

MAKING = frozenset({"nodes", "llm", "memory", "store", "memory_key", "embed_model", "storage_context", "show_progress"})
PASSED_ON = frozenset({"objects", "callback_manager", "transformations"})
RETRIEVER = frozenset({"similarity_top_k", "filters", "node_ids", "doc_ids"})
LATENT_ENGINE = frozenset({"node_postprocessors", "callback_manager", "streaming", "output_cls"})
TEXT_ENGINE = frozenset(inspect.signature(RetrieverQueryEngine.from_args).parameters) - {"retriever", "llm", "kwargs"}
CHAT = frozenset({"memory", "chat_history", "system_prompt", "verbose", "node_postprocessors"})
CONDENSE = frozenset({"condense_prompt", "condense_question_prompt"})


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
        **kwargs: Any,
    ) -> None:
        UnknownNameError.check(kwargs, PASSED_ON | MAKING, of="MPlusIndex", instead=INSTEAD)
        self.llm = _embedding_with(_mplus(llm), embed_model)
        storage_context = storage_context or StorageContext.from_defaults()
        struct = index_struct or MPlusStruct()
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
        if store is not None:
            struct.store, struct.memory_key = StorePlace.of(store).model_dump(), memory_key
        elif index_struct is not None and memory is None:
            self.latents = _restored(self.llm, index_struct, storage_context, persist_dir)
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
        """An index that was persisted, with its latents."""
        context = StorageContext.from_defaults(persist_dir=str(persist_dir))
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
        self.storage_context.persist(persist_dir=str(persist_dir))

    def set_index_id(self, index_id: str) -> None:
        """Give the index another id."""
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
        struct: MPlusStruct = build_kwargs["struct"]
        self._write(struct, nodes)
        if nodes and not struct.nodes:
            raise ValueError(f"{len(nodes)} nodes, none of them with text: expected some. Check how they were read.")
        return struct

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> MPlusStruct:
        """Write nodes; their text is added to the document store, as in every index."""
        struct = self._build_index_from_nodes(nodes, **build_kwargs)
        self._docstore.add_documents(nodes, allow_update=True)
        return struct

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._write(self._index_struct, nodes)

    def _write(self, struct: MPlusStruct, nodes: Sequence[BaseNode]) -> None:
        model = self.llm.loaded
        with self.latents.opened(model) as memory:
            ids = write_nodes(model, memory, nodes, show_progress=self._show_progress)
            struct.fingerprint = memory.fingerprint
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
            ValueError: An argument does not exist; nothing is forgotten.
        """
        UnknownNameError.check(delete_kwargs, {"node_ids", "delete_from_docstore"}, of="delete_nodes")
        mine = [name for name in node_ids if name in self._index_struct.nodes]
        with self.latents.opened(self.llm.loaded) as memory:
            forget_all(memory, mine)
            self._index_struct.fingerprint = memory.fingerprint
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
        """The node of a source, from the document store or else from the memory."""
        return self.docstore.get_node(found.source, raise_error=False) or as_node(found.source, found)

    # --- reading ----------------------------------------------------------------------------------

    def as_retriever(self, **kwargs: Any) -> MPlusIndexRetriever:
        """A retriever that returns nodes with scores.

        Args:
            kwargs: similarity_top_k, filters, node_ids, doc_ids, callback_manager, verbose.

        Raises:
            ValueError: There is another argument.
        """
        UnknownNameError.check(kwargs, RETRIEVER | {"callback_manager", "verbose"}, of="as_retriever")
        return MPlusIndexRetriever(self, **{name: value for name, value in kwargs.items() if value is not None})

    def as_query_engine(
        self, llm: LLMType | None = None, recall: RecallMode | None = None, **kwargs: Any
    ) -> BaseQueryEngine:
        """A query engine that answers questions and cites nodes.

        Args:
            llm: Another LLM to answer with. If it is not an ``MPlusLLM``, it gets text.
            recall: "latent": the question is asked alone and the documents are read as memory; "text": the text
                of the retrieved nodes is put into the prompt, as in RAG; "hybrid": both.
            kwargs: For the retriever (similarity_top_k, filters, node_ids, doc_ids) and for the engine.

        Raises:
            ValueError: An argument is unknown, or is for text in the prompt and ``recall`` is "latent".
        """
        reader = self.llm if llm is None else self._as_embedding(resolve_llm(llm, self._callback_manager))
        recall = recall or ("latent" if isinstance(reader, MPlusLLM) else "text")
        if recall not in ("latent", "hybrid", "text"):
            raise ValueError(f"recall={recall!r}: expected 'latent', 'hybrid' or 'text'.")
        if recall != "text" and not isinstance(reader, MPlusLLM):
            raise ValueError(f"recall={recall!r} with {type(reader).__name__}: only an MPlusLLM reads latents.")
        if recall == "latent" and (about_text := sorted(kwargs.keys() & (TEXT_ENGINE - LATENT_ENGINE))):
            raise ValueError(
                f"{about_text[0]}= says how text is put into prompts, and answers from latents have none in them. "
                "Leave it out, or use recall='hybrid'."
            )
        UnknownNameError.check(
            kwargs, RETRIEVER | (LATENT_ENGINE if recall == "latent" else TEXT_ENGINE), of="as_query_engine"
        )
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
            )
        elif recall == "hybrid":
            reader = cast("MPlusLLM", reader).reading(self.latents, where)
        return RetrieverQueryEngine.from_args(retriever, llm=reader, **engine)

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
        UnknownNameError.check(kwargs, RETRIEVER | CHAT | CONDENSE, of="as_chat_engine")
        chat_mode = ChatMode.BEST if chat_mode is None else chat_mode
        reader = self.llm if llm is None else _mplus(self._as_embedding(resolve_llm(llm, self._callback_manager)))
        retriever_kwargs = {k: v for k, v in kwargs.items() if k in RETRIEVER}
        chat = {k: v for k, v in kwargs.items() if k not in RETRIEVER}
        history = chat.pop("chat_history", None)
        documents_too = chat_mode in (ChatMode.BEST, ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT)
        memory = chat.pop("memory", None)
        if memory is None:
            memory = MPlusMemory.from_defaults(chat_history=history, llm=reader, memory=Latents())
        elif history is not None:
            memory.set(history)
        if chat_mode == ChatMode.SIMPLE:
            return SimpleChatEngine.from_defaults(llm=reader, memory=memory, **chat)
        if chat_mode == ChatMode.CONDENSE_QUESTION:
            retriever = self.as_retriever(**retriever_kwargs)
            synthesizer = MPlusSynthesizer(
                reader,
                self.latents,
                where=self.where(retriever),
                own=latents_of(memory),
                callback_manager=self._callback_manager,
            )
            engine = RetrieverQueryEngine.from_args(retriever, llm=reader, response_synthesizer=synthesizer)
            return MPlusQuestionChatEngine.from_defaults(
                query_engine=engine, llm=rephrasing(reader), memory=memory, **chat
            )
        if documents_too:
            return MPlusChatEngine(
                self.as_retriever(**retriever_kwargs),
                reader,
                memory,
                skip_condense=chat_mode != ChatMode.CONDENSE_PLUS_CONTEXT,
                callback_manager=self._callback_manager,
                **chat,
            )
        raise ValueError(
            f"chat_mode={chat_mode!r}: expected BEST, CONTEXT, CONDENSE_PLUS_CONTEXT, CONDENSE_QUESTION or SIMPLE. For "
            "an agent, give a FunctionAgent or ReActAgent this index's query engine as a tool."
        )

    def _as_embedding(self, llm: LLM) -> LLM:
        """Another LLM, with the embedder of the index unless it has one of its own."""
        if isinstance(llm, MPlusLLM) and llm.embedder is None:
            return _embedding_with(llm, self.llm.embedder)
        return llm

    def where(self, retriever: MPlusIndexRetriever) -> Any:
        """A test of the sources to read for answers about what a retriever may find; None: all sources."""
        return retriever.where() if retriever.is_limited or self.is_shared else None


INDEX_STRUCT_TYPE_TO_INDEX_CLASS[STRUCT_TYPE] = MPlusIndex


def _mplus(llm: LLM | None) -> MPlusLLM:
    if llm is None:
        default = Settings._llm  # ``Settings.llm`` would try to make a hosted LLM
        return default if isinstance(default, MPlusLLM) else MPlusLLM()
    if not isinstance(llm, MPlusLLM):
        raise ValueError(f"llm={type(llm).__name__}: expected an MPlusLLM, the only one that can read latents.")
    return llm


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
            if memory.fingerprint == struct.fingerprint:
                return Latents(memory=_as_embedded(memory, model))
        except (MemoryNotFoundError, MemoryMismatchError):  # moved, or now read by another model
            pass
    memory = model.new_memory()
    write_nodes(model, memory, storage_context.docstore.get_nodes(list(struct.nodes)))
    struct.fingerprint = memory.fingerprint
    return Latents(memory=memory)


def _as_embedded(memory: Memory, model: MPlus) -> Memory:
    """A memory with vectors for all chunks, if the model has an embedder that the memory was written without."""
    recall = model.memory_config.recall
    if recall == f"embedding+{memory.config.recall}":
        return model.with_recall(memory, recall)
    return memory
