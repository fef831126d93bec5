"""A retriever for the nodes of an index, which uses the model's own scorer."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.vector_stores import MetadataFilters

from mplus import FoundSource, UnknownNameError, metadata_filter
from mplus_integrations.arguments import checked_count, checked_several
from mplus_integrations.filters import of_metadata_filters
from mplus_integrations.latents import Latents, Where
from mplus_integrations.llama_index.index_storage import MPlusStruct
from mplus_integrations.llama_index.llm import MPlusLLM
from mplus_integrations.sources import headings_of
from mplus_integrations.worker import in_thread

DEFAULT_TOP_K = 2
"""The default of a ``VectorStoreIndex``."""


class Searched(Protocol):
    """The part of an ``MPlusIndex`` that a retriever needs."""

    llm: MPlusLLM
    latents: Latents
    is_shared: bool
    """Whether the memory may hold other sources than the index's nodes."""

    @property
    def index_struct(self) -> MPlusStruct:
        """The nodes of the index."""
        ...

    @property
    def ref_doc_info(self) -> Mapping[str, RefDocInfo]:
        """The documents of the index."""
        ...

    def node(self, found: FoundSource) -> BaseNode:
        """The node of a source."""
        ...


class MPlusIndexRetriever(BaseRetriever):
    """Finds nodes by late interaction with the latents, without an embedding model.

    Scores are from 0 to 1 (``mplus.FoundSource.score``): above 0.5 a node is more likely about the question than not.

    Args:
        index: The ``MPlusIndex`` to search.
        similarity_top_k: Most nodes.
        filters: Metadata that nodes must have, with every operator and nested filters.
        node_ids: Only these nodes.
        doc_ids: Only nodes of these documents.
        since: Only nodes that were said from then on, as ``MPlus.search`` takes it.
        until: Only nodes that were said up to then.
        as_of: The same as ``until``.
        callback_manager: Notified of every retrieval.
        verbose: LlamaIndex's setting.

    Raises:
        ValueError: A number below 1, an unknown operator, or an argument of another type.
    """

    def __init__(
        self,
        index: Searched,
        *,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        node_ids: Collection[str] | None = None,
        doc_ids: Collection[str] | None = None,
        since: Any = None,
        until: Any = None,
        as_of: Any = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        similarity_top_k = checked_count(similarity_top_k, "similarity_top_k")
        super().__init__(callback_manager=callback_manager, verbose=verbose)
        self.index, self.similarity_top_k = index, similarity_top_k
        self._fits = None if filters is None else metadata_filter(of_metadata_filters(filters))
        self._node_ids = None if node_ids is None else frozenset(checked_several(node_ids, "node_ids", str))
        self._doc_ids = None if doc_ids is None else frozenset(checked_several(doc_ids, "doc_ids", str))
        self._times = {"since": since, "until": until, "as_of": as_of}

    def update_prompts(self, prompts_dict: PromptDictType) -> None:
        """Refused: a retriever has no prompts.

        Raises:
            ValueError: There is one.
        """
        UnknownNameError.check(prompts_dict, (), of="update_prompts of a retriever, which has no prompt,")

    @property
    def is_limited(self) -> bool:
        """Whether filters or ids restrict the sources."""
        limits = (self._fits, self._node_ids, self._doc_ids, *self._times.values())
        return any(limit is not None for limit in limits)

    def where(self) -> Where:
        """A test of the sources that may be found."""
        nodes = self.index.index_struct.nodes
        if self._doc_ids is not None:
            infos = self.index.ref_doc_info
            nodes = {n for doc in self._doc_ids if doc in infos for n in infos[doc].node_ids if n in nodes}
        if any(time is not None for time in self._times.values()):
            memory = self.index.latents.read(self.index.llm.loaded)
            nodes = {source.name for source in memory.sources(**self._times) if source.name in nodes}

        def matches(name: str, metadata: Any) -> bool:
            if name not in nodes or (self._node_ids is not None and name not in self._node_ids):
                return False
            return self._fits is None or self._fits(metadata)

        return matches

    def retrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """The nodes that are found for a query.

        Raises:
            ValueError: It is neither text nor a ``QueryBundle``.
        """
        return super().retrieve(checked_query(str_or_query_bundle))

    async def aretrieve(self, str_or_query_bundle: QueryType) -> list[NodeWithScore]:
        """``retrieve`` without blocking the event loop."""
        return await super().aretrieve(checked_query(str_or_query_bundle))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        model = self.index.llm.loaded
        memory, fits = self.index.latents.read(model), self.where()
        headings = headings_of(memory)
        where: Where = lambda name, metadata: name not in headings and fits(name, metadata)
        found = model.search(memory, query_bundle.query_str, limit=self.similarity_top_k, where=where)
        return [NodeWithScore(node=self.index.node(source), score=source.score) for source in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await in_thread(self._retrieve, query_bundle)


def checked_query(given: QueryType) -> QueryType:
    """What is asked or searched for.

    Raises:
        ValueError: It is neither text nor a ``QueryBundle`` of text.
    """
    found: Any = given
    if not isinstance(found, str) and not (isinstance(found, QueryBundle) and isinstance(found.query_str, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"query={given!r:.40} is {type(given).__name__}: expected text, or a QueryBundle of text.")
    return given


class Findable:
    """A test of the sources that a retriever may find. What is found of a period is worked out for each answer.

    Args:
        retriever: Says what may be found.
    """

    def __init__(self, retriever: MPlusIndexRetriever) -> None:
        self._retriever = retriever

    def now(self) -> Where:
        """The test for one answer."""
        return self._retriever.where()

    def __call__(self, name: str, metadata: Any) -> bool:
        """Whether a source may be found now."""
        return self.now()(name, metadata)
