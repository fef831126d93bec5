"""``Embedder``: an embedder that a user brings, such as the one of the RAG pipeline that M+ replaces.

The frameworks' classes are known by their methods alone; neither is imported.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mplus.errors import EmbedderError
from mplus.traces import LatestTraces

TEXTS_AT_ONCE = 1024
"""Most texts in one call of an embedder; services limit how many they take."""
QUESTIONS_KEPT = 64
"""How many questions' vectors are kept."""
DOCUMENTS = ("embed_documents", "get_text_embedding_batch", "encode_document", "encode")
"""Methods that embed a list of texts: of LangChain, LlamaIndex and sentence-transformers."""
QUERY = ("embed_query", "get_query_embedding", "encode_query")
"""Methods that embed one question."""
NAMES = ("model_name", "model", "model_id", "repo_id", "deployment")
"""Attributes that name the model behind an embedder."""


class Embedder:
    """Turns texts and questions into vectors with the embedder that you have.

    Args:
        source: LangChain ``Embeddings``, a LlamaIndex ``BaseEmbedding``, a sentence-transformers model, or a function
            from a list of texts to as many vectors.
        name: Identifies the embedder: a memory is read with the embedder of this name only. None takes the name of its
            model, or that of the function or class.
        query_prefix: Stands before each question, such as "query: " for E5. Leave it out if ``source`` does that.
        passage_prefix: Stands before each text, such as "passage: ".

    Raises:
        ValueError: ``source`` is none of these.
    """

    def __init__(
        self, source: Any, *, name: str | None = None, query_prefix: str = "", passage_prefix: str = ""
    ) -> None:
        self._documents = _documents_of(source)
        self._query = _method(source, QUERY)
        self._query_prefix, self._passage_prefix = query_prefix, passage_prefix
        self._asked = LatestTraces[str, Tensor](QUESTIONS_KEPT)
        self.source = source
        self.name = (name or _name_of(source)) + (f" after {passage_prefix!r}" if passage_prefix else "")

    @staticmethod
    def of(given: Any) -> "Embedder":
        """The embedder itself, or one around anything that ``Embedder`` takes."""
        return given if isinstance(given, Embedder) else Embedder(given)

    def passages(self, texts: Sequence[str]) -> Float[Tensor, "n E"]:
        """Unit-length vectors of texts.

        Raises:
            EmbedderError: The embedder failed, or returned something else than one finite vector for each text.
        """
        given = [self._passage_prefix + text for text in texts]
        parts = [given[start : start + TEXTS_AT_ONCE] for start in range(0, len(given), TEXTS_AT_ONCE)]
        return torch.cat([self._vectors(self._documents, part) for part in parts])

    def question(self, text: str) -> Float[Tensor, " E"]:
        """The unit-length vector of a question. Those of the last few are kept: a search and an answer share one.

        Raises:
            EmbedderError: The embedder failed, or returned something else than one finite vector.
        """
        known = self._asked.get(text)
        if known is not None:
            return known
        query, asked = self._query, self._query_prefix + text
        embed = self._documents if query is None else lambda texts: [query(texts[0])]
        vector = self._vectors(embed, [asked])[0]
        self._asked.put(text, vector)
        return vector

    def _vectors(self, embed: Callable[[list[str]], Any], texts: list[str]) -> Float[Tensor, "n E"]:
        try:
            found = embed(texts)
        except Exception as error:
            raise EmbedderError(
                f"The embedder {self.name!r} failed on {len(texts)} texts ({type(error).__name__}: {error!s:.200}). "
                "Nothing was changed; call again once it works."
            ) from error
        return functional.normalize(_checked(found, len(texts), self.name), dim=-1)

    def __repr__(self) -> str:
        return f"Embedder({self.name!r})"


def _checked(found: Any, count: int, name: str) -> Float[Tensor, "n E"]:
    """What an embedder returned, as one finite vector for each text."""
    expected = f"The embedder {name!r} was given {count} texts: expected as many vectors of finite numbers"
    try:
        plain = found.detach().cpu().float().numpy() if isinstance(found, Tensor) else found
        rows = torch.from_numpy(np.array(plain, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise EmbedderError(f"{expected}, all of one size; it returned {found!r:.80} ({error}).") from error
    if rows.dim() != 2 or len(rows) != count or not rows.shape[1]:
        raise EmbedderError(f"{expected}; it returned an array of shape {tuple(rows.shape)}.")
    if not bool(rows.isfinite().all()):
        place = int((~rows.isfinite()).any(dim=1).nonzero()[0])
        raise EmbedderError(f"{expected}; vector {place} has numbers that are not.")
    return rows


def _documents_of(source: Any) -> Callable[[list[str]], Any]:
    """What embeds a list of texts."""
    found = _method(source, DOCUMENTS)
    if found is not None:
        return found
    if callable(source) and not isinstance(source, type):
        return source
    raise ValueError(
        f"embedder={source!r:.80}: expected LangChain Embeddings, a LlamaIndex BaseEmbedding, a sentence-transformers "
        "model, or a function from a list of texts to a list of vectors."
    )


def _method(source: Any, names: Sequence[str]) -> Callable[..., Any] | None:
    if isinstance(source, (type, str, bytes)):
        return None
    return next((found for name in names if callable(found := getattr(source, name, None))), None)


def _name_of(source: Any) -> str:
    for name in NAMES:
        if isinstance(found := getattr(source, name, None), str) and found not in ("", "unknown"):
            return found
    named = source if hasattr(source, "__qualname__") else type(source)
    return f"{named.__module__}.{named.__qualname__}"
