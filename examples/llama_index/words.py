"""An embedding for a machine without a network: a count of words, hashed. It is all that RAG has here."""

import re
import zlib

from llama_index.core.embeddings import BaseEmbedding

SIZE = 1024


class WordCounts(BaseEmbedding):
    """Embeds a text as how often its words occur."""

    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [0.0] * SIZE
        for word in re.findall(r"\w+", text.lower()):
            counts[zlib.crc32(word.encode()) % SIZE] += 1
        return counts

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
