"""``MPlusVectorStore``: replaces a vector store; an embedding model is not needed, but can be used.

Documents are written into latent memory, and their text is kept too. The model's own scorer finds them, and the chat's
embedder if it has one. With
``recall="latent"`` their text is not put into the prompt, because the model reads them as memory.
"""

import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import AfterValidator, ConfigDict

from mplus import FoundSource, Memory, UnknownNameError, source_filter
from mplus_integrations.langchain.chat_model import MPlusChat
from mplus_integrations.settings import KnownNames
from mplus_integrations.whose_memory import Latents, MemoryKeyName, all_or_nothing, checked_key, counted, forget_all

Filter = Mapping[str, Any] | Callable[[Document], bool]
RecallMode = Literal["latent", "hybrid", "text"]
DEFAULT_K = 4
"""Most documents of a search, as for LangChain's own stores."""
DOCUMENT = "mplus_document"
"""Metadata key of sources that are documents of a store."""
INDEXING = frozenset({"batch_size"})
"""Arguments that LangChain's ``index`` passes to stores; ignored, since all documents are written at once."""
WORD = re.compile(r"\w+")


class MPlusVectorStore(VectorStore):
    """Documents in the latent memory of an ``MPlusChat``.

        chat = MPlusChat()
        store = MPlusVectorStore.from_documents(documents, chat=chat)
        chat.invoke("What do the documents say about …?")   # reads them as memory

    Args:
        chat: Whose memory takes the documents; None: a new ``MPlusChat()``.
        memory_key: Which memory of the chat's store.
        recall: What a search returns for a prompt: "hybrid" (the default) and "text" documents with their text;
            "latent" documents with empty text, for a model that reads the same memory.
    """

    def __init__(
        self, chat: MPlusChat | None = None, *, memory_key: str | None = None, recall: RecallMode | None = None
    ) -> None:
        recall = "hybrid" if recall is None else recall
        if recall not in ("latent", "hybrid", "text"):
            raise ValueError(f"recall={recall!r}: expected 'latent', 'hybrid' or 'text'.")
        self.chat = chat or MPlusChat()
        self.memory_key = checked_key(memory_key)
        self.recall: RecallMode = recall

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
        ids: list[str] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Write texts into memory; a text whose id is there already replaces it.

        Args:
            texts: Texts to write.
            metadatas: Metadata of each text.
            ids: Names of the texts; missing names are generated.
            show_progress: Show a bar, in a terminal or a notebook.
            kwargs: ``batch_size``, which is ignored: all texts are written at once.

        Raises:
            ValueError: A text is empty, lists have different lengths, or an argument does not exist; nothing is
                written.
        """
        UnknownNameError.check(kwargs, {*INDEXING, "metadatas", "ids", "show_progress"}, of="add_texts")
        texts = list(texts)
        metadatas = metadatas or [{} for _ in texts]
        if len(metadatas) != len(texts) or (ids is not None and len(ids) != len(texts)):
            raise ValueError(
                f"{len(texts)} texts, {len(metadatas)} metadatas, {len(ids or [])} ids: expected one of each per text."
            )
        names = [name or str(uuid.uuid4()) for name in (ids or [""] * len(texts))]
        model = self.chat.loaded
        with self.chat.opened(self.memory_key) as memory, all_or_nothing(memory) as fork:
            for name, text, metadata in counted(list(zip(names, texts, metadatas, strict=True)), show_progress):
                fork.forget(name)
                model.write(fork, text, source=name, metadata={DOCUMENT: True, **metadata}, keep_text=True)
        return names

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Write documents into memory under their ids.

        Raises:
            ValueError: A document is empty, the number of ids differs, or an argument does not exist; nothing is
                written.
        """
        ids = kwargs.pop("ids", None) or [document.id or "" for document in documents]
        return self.add_texts([d.page_content for d in documents], [d.metadata for d in documents], ids=ids, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Forget documents, or all without ``ids``. Reads then equal those of a memory that never had them.

        Raises:
            ValueError: There is another argument than ``ids``; nothing is forgotten.
        """
        UnknownNameError.check(kwargs, {"ids"}, of="delete")
        with self.chat.opened(self.memory_key) as memory:
            forget_all(memory, [str(d.id) for d in _documents(memory)] if ids is None else map(str, ids))
        return True

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
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

    # --- reading ----------------------------------------------------------------------------------

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """A retriever of these documents.

        Args:
            kwargs: search_type, search_kwargs, and what every retriever of LangChain takes, such as tags.

        Raises:
            ValueError: Another argument.
        """
        UnknownNameError.check(kwargs, VectorStoreRetriever.model_fields.keys() - {"vectorstore"}, of="as_retriever")
        return super().as_retriever(**kwargs)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids; unknown ids are skipped."""
        with self.chat.opened(self.memory_key) as memory:
            known = {document.id: document for document in _documents(memory)}
        return [known[name] for name in ids if name in known]

    def similarity_search(self, query: str, k: int | None = DEFAULT_K, **kwargs: Any) -> list[Document]:
        """The documents that the model's retriever finds for a query, most relevant first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(
        self, query: str, k: int | None = DEFAULT_K, *, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Documents with the relevance of their best chunk; higher is better.

        Args:
            query: What is searched for.
            k: Most documents, at least 1; None: 4.
            filter: Metadata that must be equal, or a test of the document.
            kwargs: No others are accepted.

        Raises:
            ValueError: An argument that does not exist, or k below 1.
        """
        UnknownNameError.check(kwargs, {"k", "filter"}, of="A search")
        k = checked_k(k)
        found = self._found(query, filter)
        if self.recall == "text":  # shared words raise the rank
            words = set(WORD.findall(query.lower()))
            found = sorted(found, key=lambda f: -f[1] - 0.2 * _shared(words, f[0].page_content))
        shown = found[:k]
        if self.recall == "latent":
            shown = [(document.model_copy(update={"page_content": ""}), score) for document, score in shown]
        return shown

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda relevance: min(max((relevance + 1) / 2, 0.0), 1.0)

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int | None = DEFAULT_K, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        scale = self._select_relevance_score_fn()
        return [(d, scale(s)) for d, s in self.similarity_search_with_score(query, k, **kwargs)]

    def max_marginal_relevance_search(
        self, query: str, k: int | None = DEFAULT_K, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Relevant documents that differ from each other; similarity is the share of common words."""
        UnknownNameError.check(kwargs, {"k", "fetch_k", "lambda_mult", "filter"}, of="A search")
        k, fetch_k = checked_k(k), checked_k(fetch_k, "fetch_k")
        left = self._found(query, kwargs.get("filter"))[:fetch_k]
        words = {document.id: set(WORD.findall(document.page_content.lower())) for document, _ in left}
        chosen: list[Document] = []
        while left and len(chosen) < k:

            def worth(found: tuple[Document, float]) -> float:
                document, relevance = found
                same = max((_overlap(words[document.id], words[c.id]) for c in chosen), default=0.0)
                return lambda_mult * relevance - (1 - lambda_mult) * same

            best = max(left, key=worth)
            left.remove(best)
            chosen.append(best[0])
        return chosen

    def _found(self, query: str, wanted: Filter | None) -> list[tuple[Document, float]]:
        fits = source_filter(wanted if isinstance(wanted, Mapping) else {})

        def where(name: str, metadata: Mapping[str, Any]) -> bool:
            return bool(metadata.get(DOCUMENT)) and fits(name, metadata)

        with self.chat.opened(self.memory_key) as memory:
            found = self.chat.loaded.search(memory, query, limit=None, where=where)
        documents = [(_document(source.source, source), source.relevance) for source in found]
        return [(d, s) for d, s in documents if wanted is None or isinstance(wanted, Mapping) or wanted(d)]


def _chat_with(embedding: Embeddings | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a store, with a new chat that has the embedder unless a chat is given."""
    if embedding is None or kwargs.get("chat") is not None:
        return dict(kwargs)
    return {**kwargs, "chat": MPlusChat(embedder=embedding)}


def checked_k(k: int | None, name: str = "k") -> int:
    """The most documents of a search; None: the default.

    Raises:
        ValueError: Below 1.
    """
    if k is None:
        return DEFAULT_K
    if k < 1:
        raise ValueError(f"{name}={k}: expected at least 1.")
    return k


def _documents(memory: Memory) -> list[Document]:
    return [_document(s.name, s) for s in memory.sources() if s.metadata.get(DOCUMENT)]


def _document(name: str, source: Any) -> Document:
    found: FoundSource = source
    metadata = {key: value for key, value in found.metadata.items() if key != DOCUMENT}
    return Document("\n".join(found.texts), id=name, metadata=metadata)


def _shared(words: set[str], text: str) -> float:
    return len(words & set(WORD.findall(text.lower()))) / max(len(words), 1)


def _overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(len(a | b), 1)


class MPlusRetriever(KnownNames, BaseRetriever):
    """Returns the sources that the model's own scorer finds for a query: documents, turns and notes."""

    model_config = ConfigDict(arbitrary_types_allowed=True, hide_input_in_errors=True)

    chat: MPlusChat
    """Whose memory is searched."""
    memory_key: MemoryKeyName = None
    """Which memory of the chat's store."""
    k: Annotated[int, AfterValidator(checked_k)] = DEFAULT_K
    """Most documents."""
    where: Mapping[str, Any] | Callable[[str, Mapping[str, Any]], Any] | None = None
    """Which sources: a filter of metadata, or a test of name and metadata."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        UnknownNameError.check(kwargs, {"k"}, of="MPlusRetriever.invoke")
        k = self.k if kwargs.get("k") is None else checked_k(kwargs["k"])
        with self.chat.opened(self.memory_key) as memory:
            found = self.chat.loaded.search(memory, query, limit=k, where=self.where)
        documents: list[Document] = []
        for source in found:
            document = _document(source.source, source)
            document.metadata |= {"source": source.source, "relevance": source.relevance}
            documents.append(document)
        return documents
