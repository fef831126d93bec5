"""``MPlusWriter``: the step of an ``IngestionPipeline`` that writes nodes into latent memory."""

from collections.abc import Sequence
from typing import Any, Self
from uuid import uuid4

from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQuery, VectorStoreQueryResult
from pydantic import Field, PrivateAttr, model_validator

from mplus import Memory, UnknownNameError
from mplus_integrations.arguments import checked_id, checked_several
from mplus_integrations.copies import Referring
from mplus_integrations.latents import Latents, MemoryKeyName, all_or_nothing, forget_all
from mplus_integrations.llama_index.llm import MPlusLLM, mplus_llm
from mplus_integrations.llama_index.nodes import NODE, write_nodes
from mplus_integrations.settings import KnownNames
from mplus_integrations.worker import in_thread


class MPlusWriter(KnownNames, Referring, TransformComponent):
    """Writes nodes into memory and returns them unchanged.

        pipeline = IngestionPipeline(transformations=[SentenceSplitter(), MPlusWriter(llm=llm, memory_key="handbook")])
        pipeline.run(documents=documents)
        index = MPlusIndex.from_latents(llm=llm, memory=llm.latents("handbook"))

    If a changed document is ingested again, its new nodes replace the old ones. A pipeline tells only its vector store
    which documents are gone: with ``docstore_strategy="upserts_and_delete"``, give it the writer's.

        IngestionPipeline(transformations=[…, writer], vector_store=writer.vector_store, docstore=…)
    """

    llm: MPlusLLM = Field(default_factory=lambda: mplus_llm(None), exclude=True)
    """The model that writes."""
    memory: Memory | None = Field(default=None, exclude=True)
    """Takes the nodes; None: the LLM's memory of that name."""
    memory_key: MemoryKeyName = None
    """Which memory of the LLM."""
    time_key: str | None = None
    """Key of the metadata that says when a node was said; nodes without it count from when they are written."""

    @model_validator(mode="after")
    def _one_memory(self) -> Self:
        if self.memory is not None and self.memory_key is not None:
            raise ValueError(f"memory= and memory_key={self.memory_key!r:.60}: expected one of them, not both.")
        return self

    @classmethod
    def class_name(cls) -> str:
        """The name under which it is serialised."""
        return "MPlusWriter"

    @property
    def latents(self) -> Latents:
        """The memory that nodes are written into."""
        return self.llm.latents(self.memory_key) if self.memory is None else Latents(memory=self.memory)

    @property
    def vector_store(self) -> "WrittenNodes":
        """What a pipeline deletes documents from."""
        return WrittenNodes.of(self)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings, different at each call, so that a pipeline's cache does not skip the writes."""
        return {**super().to_dict(**kwargs), "model": self.llm.model_name, "run": uuid4().hex}

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Write nodes; nothing has changed after an error.

        Args:
            nodes: What to write.
            kwargs: ``show_progress``, as pipelines pass it on.

        Raises:
            ValueError: Another argument.
        """
        UnknownNameError.check(kwargs, {"show_progress"}, of="MPlusWriter")
        nodes, model = checked_several(nodes, "nodes", BaseNode), self.llm.loaded
        documents = {node.ref_doc_id for node in nodes} - {None, ""}
        with self.latents.opened(model) as memory, memory.adding():
            ids, shows = {node.node_id for node in nodes}, bool(kwargs.get("show_progress"))
            known = memory.told().items()
            old = [name for name, told in known if told.metadata.get(NODE) in documents and name not in ids]
            if not old:
                write_nodes(model, memory, nodes, show_progress=shows, time_key=self.time_key)
                return nodes
            with all_or_nothing(memory) as fork:
                forget_all(fork, old)
                write_nodes(model, fork, nodes, show_progress=shows, time_key=self.time_key)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """``__call__`` without blocking the event loop."""
        return await in_thread(self.__call__, nodes, **kwargs)

    def __getstate__(self) -> dict[Any, Any]:
        raise ValueError(
            "An MPlusWriter cannot go to another process: what was written there would be lost. Run the pipeline with "
            "num_workers=None."
        )


class WrittenNodes(BasePydanticVectorStore):
    """The nodes that an ``MPlusWriter`` has written, as what a pipeline deletes removed documents from."""

    stores_text: bool = True
    is_embedding_query: bool = False

    _writer: MPlusWriter = PrivateAttr()

    @classmethod
    def of(cls, writer: MPlusWriter) -> Self:
        """The nodes of a writer."""
        found = cls()
        found._writer = writer
        return found

    @property
    def client(self) -> Latents:
        """The memory."""
        return self._writer.latents

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Their ids; the writer writes them."""
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Forget the nodes of a document.

        Raises:
            ValueError: There is another argument, or the id is no text.
        """
        UnknownNameError.check(delete_kwargs, {"ref_doc_id"}, of="delete")
        checked_id(ref_doc_id, "ref_doc_id")
        with self.client.opened(self._writer.llm.loaded) as memory:
            about = {name: told.metadata[NODE] for name, told in memory.told().items() if NODE in told.metadata}
            # A document that no parser has cut is a node itself.
            names = [name for name, document in about.items() if ref_doc_id in (document, name)]
            if names:
                forget_all(memory, names)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Search what was written, as ``MPlusIndex.as_retriever`` does.

        Args:
            query: Its text, ``similarity_top_k``, ``filters``, ``node_ids`` and ``doc_ids`` count.
            kwargs: Nothing else is taken.

        Raises:
            ValueError: The query has no text, or there is another argument.
        """
        from mplus_integrations.llama_index.index import MPlusIndex  # which imports the nodes of this package

        UnknownNameError.check(kwargs, set(), of="query")
        if not (query.query_str or "").strip():
            raise ValueError(
                f"query_str={query.query_str!r}: expected text; memory is searched by words, not by vectors."
            )
        retriever = MPlusIndex.from_latents(self._writer.llm, memory=self.client).as_retriever(
            similarity_top_k=query.similarity_top_k,
            filters=query.filters,
            node_ids=query.node_ids,
            doc_ids=query.doc_ids,
        )
        found = retriever.retrieve(query.query_str or "")
        return VectorStoreQueryResult(
            nodes=[one.node for one in found],
            similarities=[one.get_score() for one in found],
            ids=[one.node.node_id for one in found],
        )
