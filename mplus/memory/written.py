"""The text of chunks, found again in the ledger.

A memory keeps no text beside its chunks: the ledger has the token ids of what was written under each name, in order, and
a memory token's provenance has its source, its chunk and its words. Chunks of a source follow each other in its texts,
so their sizes say where each stands. Where chunks between were dropped, the words of a chunk say it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int32
from torch import Tensor

from mplus.memory.ledger import Ledger, WrittenText

WordsOf = Callable[[Sequence[int]], Int32[Tensor, " S"]]
"""Numbers the words of token ids, as was done when they were written."""


class WrittenChunk(NamedTuple):
    """The text of a chunk."""

    input_ids: list[int]
    begins: bool
    """Whether one of the given texts begins with it."""
    ends: bool
    """Whether one of the given texts ends with it."""


def texts_by_source(ledger: Ledger, names: Collection[str]) -> dict[str, list[WrittenText]]:
    """What was written under some names, in order."""
    found: dict[str, list[WrittenText]] = {name: [] for name in names}
    for entry in ledger:
        for text in entry.texts:
            if text.source in found:
                found[text.source].append(text)
    return found


def written_chunks(
    texts: Sequence[WrittenText], words: Sequence[Int32[Tensor, " T"]], words_of: WordsOf
) -> list[WrittenChunk | None]:
    """The text of every chunk of one source; None where the texts do not say it.

    Args:
        texts: All that was written under its name, in order.
        words: Words of the tokens of each chunk that is held, in the order of writing.
        words_of: Numbers the words of token ids.
    """
    reader = _Reader(texts)
    return [reader.chunk(mine, words_of) for mine in words]


class _Place(NamedTuple):
    """A place in the texts of a source."""

    text: int
    """Number of the text."""
    at: int
    """Position in what joins it to the text before, followed by the text itself."""


class _Reader:
    """Reads the texts of a source chunk by chunk."""

    def __init__(self, texts: Sequence[WrittenText]) -> None:
        self._texts = [[*text.joined_by, *text.input_ids.tolist()] for text in texts]
        self._begins = [len(text.joined_by) for text in texts]
        self._place = self._fresh(0)

    def chunk(self, words: Int32[Tensor, " T"], words_of: WordsOf) -> WrittenChunk | None:
        """The text of the next chunk that is held: where these words stand, from the present place on."""
        for place in self._places(words, words_of):
            chunk, after = self._read(place, len(words))
            # A memory that was saved by a version without words has none; then only sizes speak.
            if len(chunk.input_ids) == len(words) and (
                torch.equal(words_of(chunk.input_ids), words) or not bool(words.any())
            ):
                self._place = after
                return chunk
        return None

    def _fresh(self, text: int) -> _Place:
        """Where a text begins that nothing is joined to."""
        return _Place(text, self._begins[text] if text < len(self._begins) else 0)

    def _read(self, start: _Place, size: int) -> tuple[WrittenChunk, _Place]:
        """A chunk of ``size`` tokens, and the place after it. A text is joined to one that ends within the chunk."""
        ids: list[int] = []
        text, at = start
        while text < len(self._texts) and len(ids) < size:
            more = self._texts[text][at : at + size - len(ids)]
            ids += more
            at += len(more)
            if at == len(self._texts[text]):
                text, at = self._fresh(text + 1) if len(ids) == size else _Place(text + 1, 0)
        after = _Place(text, at)
        return WrittenChunk(ids, start == self._fresh(start.text), after == self._fresh(text)), after

    def _places(self, words: Int32[Tensor, " T"], words_of: WordsOf) -> Iterator[_Place]:
        """Places where a chunk may begin: here, else wherever one of its words stands further on."""
        yield self._place
        # The first token may continue a word of the chunk before, which the chunk by itself does not tell.
        anchors = [place for place in (*range(1, len(words)), 0) if words[place] > 0]
        for text in range(self._place.text, len(self._texts)) if anchors else ():
            begin = self._begins[text]
            stands = (words_of(self._texts[text][begin:]) == words[anchors[0]]).nonzero().flatten().tolist()
            for at in (begin + place - anchors[0] for place in stands):
                # A negative position is in the text before, to which this one is joined.
                place = _Place(text, at) if at >= 0 or not text else _Place(text - 1, len(self._texts[text - 1]) + at)
                if place.at >= self._begins[place.text] and place > self._place:
                    yield place
