"""``MPlusIndex``: replaces a ``VectorStoreIndex``; an embedding model is not needed, but can be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_index.core.indices.loading import load_index_from_storage
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.llms.llm import LLM
from llama_index.core.schema import BaseNode
from llama_index.core.storage import StorageContext
from llama_index.core.storage.docstore.types import RefDocInfo

from mplus import (
    FoundSource,
    Memory,
    MemoryNotFoundError,
    MemoryStore,
    UnknownNameError,
)
from mplus_integrations.arguments import checked_folder, checked_id, checked_several, checked_switch
from mplus_integrations.latents import Latents, check_memory, checked_key, forget_all
from mplus_integrations.llama_index.engines import Engines, embedding_with
from mplus_integrations.llama_index.index_arguments import (
    INSTEAD_OF_INDEX,
    MAKING,
    PASSED_ON,
)
from mplus_integrations.llama_index.index_storage import (
    STRUCT_TYPES,
    LatentsBesideIndex,
    MPlusStruct,
    namespace,
    refuse_vectors,
)
from mplus_integrations.llama_index.llm import mplus_llm
from mplus_integrations.llama_index.nodes import NODE, as_node, check_metadata, described, write_nodes, written_text
from mplus_integrations.llama_index.restoring import restored
from mplus_integrations.store_place import StorePlace
from mplus_integrations.worker import in_thread

_COPIES = (
    "An MPlusIndex is neither copied nor pickled: two of them would write into one memory. Save it with "
    "persist(folder), and open it there with MPlusIndex.load(folder)."
)


class MPlusIndex(Engines):
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
        persist_dir = None if persist_dir is None else checked_folder(persist_dir, "persist_dir")
        self.llm = embedding_with(mplus_llm(llm), embed_model)
        storage_context = storage_context or StorageContext.from_defaults()
        refuse_vectors(storage_context)
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
            self.latents = restored(self.llm, index_struct, storage_context, persist_dir)
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
        index.insert_nodes([as_node(source.name, source.metadata, source.texts) for source in found])
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
        return node if node is not None and is_same else as_node(found.source, found.metadata, found.texts)


for _name in STRUCT_TYPES:
    INDEX_STRUCT_TYPE_TO_INDEX_CLASS[_name] = MPlusIndex
