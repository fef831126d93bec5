"""``MPlusVectorStore``: replaces a vector store; an embedding model is not needed, but can be used.

Documents are written into latent memory, and their text is kept too. The model's own scorer finds them, and the chat's
embedder if it has one. With
``recall="latent"`` their text is not put into the prompt, because the model reads them as memory.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStoreRetriever

from mplus import Memory, UnknownNameError
from mplus_integrations.arguments import checked_once, checked_several, checked_switch, checked_text
from mplus_integrations.langchain.chat_model import MPlusChat
from mplus_integrations.langchain.documents import (
    DEFAULT_K,
    Filter,
    by_words_too,
    checked_k,
    checked_metadatas,
    diverse,
    document_filter,
    document_of,
    documents_of,
    has_text,
)
from mplus_integrations.langchain.no_vectors import WithoutVectors
from mplus_integrations.latents import Latents, Where, all_or_nothing, checked_key, forget_all
from mplus_integrations.settings import instead_where
from mplus_integrations.sources import (
    DOCUMENT,
    checked_name,
    headings_of,
    named,
    refuse_others,
    without_blanks,
)
from mplus_integrations.worker import in_thread

RecallMode = Literal["latent", "hybrid", "text"]
MAKING = frozenset({"chat", "memory_key", "recall", "time_key"})
TIMES = frozenset({"since", "until", "as_of"})
INSTEAD_OF_STORES = {
    **instead_where(MAKING),
    "persist_directory": "chat=MPlusChat(store=mplus.MemoryStore(folder)) with memory_key=",
    "persist_path": "chat=MPlusChat(store=mplus.MemoryStore(folder)) with memory_key=",
    "collection_name": "memory_key",
    "index_name": "memory_key",
    "table_name": "memory_key",
    "embedding_function": "chat=MPlusChat(embedder=…)",
    "embedding": "chat=MPlusChat(embedder=…)",
    "where": "filter",
    "where_document": "filter with a test of the document",
    "namespace": "memory_key when the store is made",
    "fetch_k": "max_marginal_relevance_search",
}
"""Ours for arguments of other vector stores."""
INDEXING = frozenset({"batch_size"})
"""Arguments that LangChain's ``index`` passes to stores; ignored, since all documents are written at once."""


class MPlusVectorStore(WithoutVectors):
    """Documents in the latent memory of an ``MPlusChat``.

        chat = MPlusChat()
        store = MPlusVectorStore.from_documents(documents, chat=chat)
        chat.invoke("What do the documents say about …?")   # reads them as memory

    Args:
        chat: Whose memory takes the documents; None: a new ``MPlusChat()``.
        memory_key: Which memory of the chat's store.
        recall: What a search returns for a prompt: "hybrid" (the default) and "text" documents with their text;
            "latent" documents whose text is a reference, for a model that reads the same memory.
        time_key: Key of the metadata that says when a document was said, such as "date"; those without it count from
            when they are written. Searches and answers choose by it: ``since``, ``until``, ``as_of``.

    Raises:
        ValueError: Another argument; for those of other vector stores the message says what to write instead.
    """

    def __init__(
        self,
        chat: MPlusChat | None = None,
        *,
        memory_key: str | None = None,
        recall: RecallMode | None = None,
        time_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        UnknownNameError.check(kwargs, MAKING, of="MPlusVectorStore", instead=INSTEAD_OF_STORES)
        recall = "hybrid" if recall is None else recall
        if recall not in ("latent", "hybrid", "text"):
            raise ValueError(f"recall={recall!r}: expected 'latent', 'hybrid' or 'text'.")
        self.chat = chat or MPlusChat()
        self.memory_key = checked_key(memory_key)
        self.recall: RecallMode = recall
        self.time_key = time_key

    @property
    def latents(self) -> Latents:
        """The memory that holds the documents; other chats read it as ``MPlusChat(shared=store.latents)``."""
        return self.chat.latents(self.memory_key)

    @property
    def embeddings(self) -> Embeddings | None:
        """The chat's embedder if that is LangChain's; None: the model finds documents by itself."""
        source = None if self.chat.embedder is None else self.chat.embedder.source
        return source if isinstance(source, Embeddings) else None

    # --- writing ----------------------------------------------------------------------------------

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts into memory, all in one go; a text whose id is there already replaces it, if it is another one.

        A text without a visible character, such as a blank page, is left out, and the log names it.

        Args:
            texts: Texts to write.
            metadatas: Metadata of each text.
            ids: Names of the texts; missing names are generated, and numbers count as their digits.
            show_progress: Show a bar, in a terminal or a notebook.
            kwargs: ``batch_size``, which is ignored: all texts are written at once.

        Returns:
            The ids of the texts that were written.

        Raises:
            ValueError: All texts are blank, lists have different lengths, an id names two of the texts or something
                else in this memory, metadata cannot be kept, or an argument does not exist or is of another type;
                nothing is written.
        """
        UnknownNameError.check(
            kwargs, {*INDEXING, "metadatas", "ids", "show_progress"}, of="add_texts", instead=INSTEAD_OF_STORES
        )
        texts = checked_several(texts, "texts", str)
        abouts = checked_metadatas(metadatas or [])
        given = checked_several(ids or [], "ids")
        if len(abouts) not in (0, len(texts)) or (ids is not None and len(given) != len(texts)):
            raise ValueError(
                f"{len(texts)} texts, {len(abouts)} metadatas, {len(given)} ids: expected one of each per text."
            )
        names = [named(name) or str(uuid.uuid4()) for name in given or [None] * len(texts)]
        pairs = zip(names, zip(texts, abouts or [{}] * len(texts), strict=True), strict=True)
        items = checked_once(pairs, "ids", lambda one, other: one == other)
        written = without_blanks(items, lambda item: item[0])
        if not written:
            return []
        with self.chat.opened(self.memory_key) as memory, memory.adding():
            refuse_others(memory, written, DOCUMENT)
            known = memory.told()
            fresh = {name: item for name, item in written.items() if not has_text(known.get(name), *item)}
            replaced = fresh.keys() & known.keys()
            if not replaced:
                self._write(memory, fresh, show_progress=show_progress)
                return list(written)
            with all_or_nothing(memory) as fork:
                for name in sorted(replaced):
                    fork.forget(name)
                self._write(fork, fresh, show_progress=show_progress)
        return list(written)

    def _write(
        self, memory: Memory, written: Mapping[str, tuple[str, Mapping[str, Any]]], *, show_progress: bool
    ) -> None:
        """Write texts; several calls in a row go through the model together."""
        if not written:
            return
        key = self.time_key
        at = None if key is None else [(about or {}).get(key) for _, about in written.values()]
        self.chat.loaded.write(
            memory,
            [text for text, _ in written.values()],
            source=list(written),
            metadata=[{**about, DOCUMENT: True} for _, about in written.values()],
            keep_text=True,
            progress=show_progress,
            later=True,
            at=at,
        )

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Write documents into memory under their ids; otherwise as ``add_texts``.

        Raises:
            ValueError: As for ``add_texts``.
        """
        documents, ids = checked_several(documents, "documents", Document), kwargs.pop("ids", None)
        ids = [document.id for document in documents] if ids is None else ids
        return self.add_texts([d.page_content for d in documents], [d.metadata for d in documents], ids=ids, **kwargs)

    def delete(
        self,
        ids: Sequence[str] | None = None,
        *,
        filter: Filter | None = None,
        delete_all: bool = False,
        **kwargs: Any,
    ) -> bool | None:
        """Forget documents. Reads then equal those of a memory that never had them.

        Args:
            ids: Their ids; ids that are not of documents here are skipped.
            filter: A filter of metadata, or a test of the document; beside ``ids`` both must hold.
            delete_all: Forget every document.
            kwargs: No others are accepted.

        Raises:
            ValueError: Nothing says which documents, an argument is of another type, or there is another one; nothing
                is forgotten.
        """
        UnknownNameError.check(kwargs, {"ids", "filter", "delete_all"}, of="delete", instead=INSTEAD_OF_STORES)
        checked_switch(delete_all, "delete_all")
        if ids is not None and delete_all:
            raise ValueError(f"ids={ids!r:.60}, delete_all={delete_all}: expected a list of ids, or delete_all=True.")
        if ids is None and not filter and not delete_all:
            raise ValueError(
                f"delete(ids=None, filter={filter!r}): expected ids, or a filter. To forget every document, say "
                "delete_all=True."
            )
        fits = document_filter(filter)
        wanted = None if ids is None else {checked_name(name, "ids") for name in checked_several(ids, "ids")}
        with self.chat.opened(self.memory_key) as memory:
            doomed = [str(d.id) for d in documents_of(memory) if (wanted is None or d.id in wanted) and fits(d)]
            if doomed:
                forget_all(memory, doomed)
        return True

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> "MPlusVectorStore":
        """A store of texts.

        Args:
            texts: Texts to write.
            embedding: Finds documents beside the model's own scorer. Ignored if a ``chat`` is given, which has its own.
            metadatas: Metadata of each text.
            ids: Names of the texts.
            show_progress: Show a bar.
            kwargs: Arguments of the constructor.
        """
        store = cls(**_chat_with(embedding, kwargs))
        store.add_texts(texts, metadatas, ids=ids, show_progress=show_progress)
        return store

    @classmethod
    def from_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> "MPlusVectorStore":
        """A store of documents; ``embedding`` as in ``from_texts``."""
        writing = {name: kwargs.pop(name) for name in ("ids", "show_progress") if name in kwargs}
        store = cls(**_chat_with(embedding, kwargs))
        store.add_documents(documents, **writing)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> "MPlusVectorStore":
        """``from_texts`` without blocking the event loop."""
        return await in_thread(cls.from_texts, texts, embedding, metadatas, **kwargs)

    @classmethod
    async def afrom_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> "MPlusVectorStore":
        """``from_documents`` without blocking the event loop."""
        return await in_thread(cls.from_documents, documents, embedding, **kwargs)

    # --- reading ----------------------------------------------------------------------------------

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """A retriever of these documents.

        Args:
            kwargs: search_type, search_kwargs, and what every retriever of LangChain takes, such as tags.

        Raises:
            ValueError: Another argument.
        """
        known = VectorStoreRetriever.model_fields.keys() - {"vectorstore"}
        UnknownNameError.check(kwargs, known, of="as_retriever", instead={"k": "search_kwargs={'k': …}"})
        return super().as_retriever(**kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids; unknown ids are skipped.

        Raises:
            ValueError: It is a single id, not several, or one of them is none.
        """
        wanted = [checked_name(name, "ids") for name in checked_several(ids, "ids")]
        with self.chat.opened(self.memory_key) as memory:
            known = {document.id: document for document in documents_of(memory)}
        return [known[name] for name in wanted if name in known]

    def similarity_search(self, query: str, k: int | None = DEFAULT_K, **kwargs: Any) -> list[Document]:
        """The documents that the model's retriever finds for a query, most relevant first.

        A document that is nothing but a heading is never found: it announces an answer and is none.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int | None = DEFAULT_K, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Documents with a score from 0 to 1 (``mplus.FoundSource.score``); higher is better.

        Above 0.5 a document is more likely about the query than not, so a ``score_threshold`` of 0.5 to 0.8 makes
        sense.

        Args:
            query: What is searched for.
            k: Most documents, at least 1; None: 4.
            filter: A filter of metadata (``mplus.metadata_filter``), or a test of the document.
            kwargs: since, until, as_of: when the documents were said, as ``MPlus.search`` takes it.

        Raises:
            ValueError: An argument that does not exist, k below 1, or something that is no time.
        """
        UnknownNameError.check(kwargs, {"k", "filter", *TIMES}, of="A search", instead=INSTEAD_OF_STORES)
        k = checked_k(k)
        found = self._found(query, filter, kwargs)
        if self.recall == "text":
            found = by_words_too(query, found)
        return [(self._shown(document), score) for document, score in found[:k]]

    def _shown(self, document: Document) -> Document:
        """A found document as it is returned."""
        if self.recall != "latent":
            return document
        # Text of its own, because retrievers such as EnsembleRetriever take documents of the same text for one.
        name = hashlib.sha256(str(document.id).encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return document.model_copy(update={"page_content": f"(document {name}, read from memory)"})

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: score  # it is from 0 to 1 already

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int | None = DEFAULT_K, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return self.similarity_search_with_score(query, k, **kwargs)

    def max_marginal_relevance_search(
        self, query: str, k: int | None = DEFAULT_K, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Relevant documents that differ from each other; similarity is the share of common words.

        Raises:
            ValueError: An argument that does not exist, is of another type or out of range.
        """
        UnknownNameError.check(kwargs, {"k", "fetch_k", "lambda_mult", "filter", *TIMES}, of="A search")
        k, fetch_k = checked_k(k), checked_k(fetch_k, "fetch_k")
        given: Any = lambda_mult
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given <= 1:
            raise ValueError(f"lambda_mult={lambda_mult!r:.40}: expected 0 (only diversity) to 1 (only relevance).")
        left = self._found(query, kwargs.pop("filter", None), kwargs)[:fetch_k]
        return [self._shown(document) for document in diverse(left, k, lambda_mult)]

    def _found(self, query: str, wanted: Filter | None, times: Mapping[str, Any]) -> list[tuple[Document, float]]:
        query = checked_text(query, "query")
        fits = document_filter(wanted)
        with self.chat.opened(self.memory_key) as memory:
            headings = headings_of(memory)
            where: Where = lambda name, metadata: DOCUMENT in metadata and name not in headings
            found = self.chat.loaded.search(memory, query, limit=None, where=where, **times)
        documents = [(document_of(source.source, source), source.score) for source in found]
        return [(document, score) for document, score in documents if fits(document)]


def _chat_with(embedding: Embeddings | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a store, with a new chat that has the embedder unless a chat is given."""
    if embedding is None or kwargs.get("chat") is not None:
        return dict(kwargs)
    return {**kwargs, "chat": MPlusChat(embedder=embedding)}
