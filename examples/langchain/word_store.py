"""The store that the examples start from: LangChain's in-memory vector store over word counts.

It stands for whatever vector store an application has, and needs no embedding model to run offline.
"""

import math
import re
from collections import Counter
from typing import Any
from zlib import crc32

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

SIZE = 2048
WORD = re.compile(r"\w+")
COMMON = frozenset(
    WORD.findall(
        "a an and are at be by do does for from how in is it its of on or that the this to was what when where who"
    )
)


class WordEmbeddings(Embeddings):
    """Counts of words, common ones left out, in a vector."""

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * SIZE
        for word, count in Counter(WORD.findall(text.lower())).items():
            if word not in COMMON:
                vector[crc32(word.encode()) % SIZE] += 1 + math.log(count)
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class WordVectorStore(InMemoryVectorStore):
    """An in-memory vector store that embeds with ``WordEmbeddings``."""

    @classmethod
    def from_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> "WordVectorStore":
        store = cls(embedding or WordEmbeddings())
        store.add_documents(documents)
        return store
