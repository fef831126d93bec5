"""What a vector store without vectors says to those who search by one."""

from typing import Any

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

WITHOUT = (
    "A store of latents is searched by text: write similarity_search(query), or max_marginal_relevance_search(query). "
    "With MPlusChat(embedder=…) the query is embedded by your own model."
)


class WithoutVectors(VectorStore):
    """A vector store that is searched by text alone."""

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """There are no vectors to compare with.

        Raises:
            NotImplementedError: Always; it says what to write.
        """
        raise NotImplementedError(WITHOUT)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """There are no vectors to compare with.

        Raises:
            NotImplementedError: Always; it says what to write.
        """
        raise NotImplementedError(WITHOUT)

    async def asimilarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """``similarity_search_by_vector`` without blocking the event loop."""
        return self.similarity_search_by_vector(embedding, k, **kwargs)

    async def amax_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """``max_marginal_relevance_search_by_vector`` without blocking the event loop."""
        return self.max_marginal_relevance_search_by_vector(embedding, k, fetch_k, lambda_mult, **kwargs)
