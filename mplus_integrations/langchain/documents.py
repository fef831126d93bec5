"""Sources of a memory as LangChain's documents, and how documents are chosen."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from mplus import FoundSource, Memory, metadata_filter
from mplus.filters import checked_test
from mplus_integrations.arguments import checked_count, checked_several
from mplus_integrations.sources import DOCUMENT, refuse_marks, without_marks

Filter = Mapping[str, Any] | Callable[[Document], bool]
Found = tuple[Document, float]
"""A document with its score."""
DEFAULT_K = 4
"""Most documents of a search, as for LangChain's own stores."""
WORD = re.compile(r"\w+")


def document_filter(wanted: Filter | None) -> Callable[[Document], bool]:
    """A filter of documents as a test.

    Raises:
        ValueError: It is neither a mapping nor a test, or an operator of it is unknown. A test is asynchronous, or,
            when it is asked, returns neither True nor False.
    """
    if wanted is None:
        return lambda _: True
    if isinstance(wanted, Mapping):
        fits = metadata_filter(wanted)
        return lambda document: fits(document.metadata)
    if not callable(wanted):
        raise ValueError(f"filter={wanted!r:.60}: expected a mapping of metadata, or a test of a document.")
    return checked_test(wanted, "filter", "document")


def checked_k(k: int | None, name: str = "k") -> int:
    """The most documents of a search; None: the default.

    Raises:
        ValueError: Below 1, or no whole number.
    """
    return DEFAULT_K if k is None else checked_count(k, name)


def checked_metadatas(metadatas: Any) -> list[dict[str, Any]]:
    """Metadata of several documents; None stands for none.

    Raises:
        ValueError: It is that of one alone, one of them is no mapping, or says what a source is.
    """
    given = [about or {} for about in checked_several(metadatas, "metadatas")]
    abouts = [dict(about) for about in checked_several(given, "metadatas", Mapping)]
    for place, about in enumerate(abouts):
        refuse_marks(about, f"number {place}")
    return abouts


def has_text(told: Any, text: str, about: Mapping[str, Any]) -> bool:
    """Whether what was told under an id is this text with this metadata."""
    return told is not None and told.texts == (text,) and told.metadata == {**about, DOCUMENT: True}


def documents_of(memory: Memory) -> list[Document]:
    """The documents of a memory."""
    return [document_of(name, told) for name, told in memory.told().items() if told.metadata.get(DOCUMENT)]


def document_of(name: str, source: Any) -> Document:
    """A source, or what a search found, as a document with the metadata that its user gave."""
    found: FoundSource = source
    return Document("\n".join(found.texts), id=name, metadata=without_marks(found.metadata))


def by_words_too(query: str, found: Sequence[Found]) -> list[Found]:
    """What was found, in an order in which words of the query count too."""
    words = _words(query)
    return sorted(found, key=lambda f: -f[1] - 0.2 * len(words & _words(f[0].page_content)) / max(len(words), 1))


def diverse(found: Sequence[Found], k: int, lambda_mult: float) -> list[Document]:
    """The most relevant of what was found that differ from each other; similarity is the share of common words."""
    left, chosen = list(found), list[Document]()
    words = {document.id: _words(document.page_content) for document, _ in left}

    def worth(one: Found) -> float:
        document, relevance = one
        same = max((_overlap(words[document.id], words[c.id]) for c in chosen), default=0.0)
        return lambda_mult * relevance - (1 - lambda_mult) * same

    while left and len(chosen) < k:
        best = max(left, key=worth)
        left.remove(best)
        chosen.append(best[0])
    return chosen


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def _overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(len(a | b), 1)
