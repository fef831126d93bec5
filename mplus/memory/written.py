"""The text of chunks, found again in the ledger.

A memory keeps no text beside its chunks: the ledger has the token ids of what was written under each name, in order,
and a memory token's provenance has its source, its chunk and its words. Chunks of a source follow each other in its
texts, so their sizes say where each stands. Where chunks between were dropped, the words of a chunk say it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Int32
from torch import Tensor

from mplus.memory.ledger import Ledger, WrittenText
from mplus.words import same_words

WordsOf = Callable[[Sequence[int]], Int32[Tensor, " S"]]
"""Numbers the words of token ids, as was done when they were written."""


class WrittenChunk(NamedTuple):
    """The text of a chunk."""

    input_ids: list[int]
    begins: bool
    """Whether one of the given texts begins with it."""
    ends: bool
    """Whether one of the given texts ends with it."""


def texts_of(ledger: Ledger, name: str) -> list[WrittenText]:
    """What was written under a name, in order."""
    return [text for entry in ledger for text in entry.texts if text.source == name]


class _Place(NamedTuple):
    """A place in the texts of a source."""

    text: int
    """Number of the text."""
    at: int
    """Position in what joins it to the text before, followed by the text itself."""


class SourceTexts:
    """The texts of one source, read chunk by chunk."""

    def __init__(
        self, texts: Sequence[WrittenText], words: Int32[Tensor, " T"], sizes: Sequence[int], words_of: WordsOf
    ) -> None:
        """Find where each chunk stands.

        Args:
            texts: All that was written under the name, in order.
            words: Words of the tokens that are held, in the order of writing.
            sizes: Number of tokens of each chunk that is held, in the same order.
            words_of: Numbers the words of token ids.
        """
        self._texts = [[*text.joined_by, *text.input_ids.tolist()] for text in texts]
        self._begins = [len(text.joined_by) for text in texts]
        self._words, self._words_of = words.split(list(sizes)), words_of
        place, self._places = self._fresh(0), list[_Place]()
        for size in sizes:
            self._places.append(place)
            place = self._after(place, size)

    def chunk(self, number: int) -> WrittenChunk | None:
        """The text of a chunk, given its number among those that are held; None if the texts do not have it."""
        words = self._words[number]
        for place in self._likely(self._places[number], words):
            chunk = self._read(place, len(words))
            # A memory that was saved by a version without words has none; then only sizes speak.
            if len(chunk.input_ids) == len(words) and (
                same_words(self._words_of(chunk.input_ids), words) or not bool(words.any())
            ):
                return chunk
        return None

    def _fresh(self, text: int) -> _Place:
        """Where a text begins that nothing is joined to."""
        return _Place(text, self._begins[text] if text < len(self._begins) else 0)

    def _after(self, start: _Place, size: int) -> _Place:
        """The place after a chunk. A text that ends within the chunk is joined to the next one."""
        text, at = start
        while text < len(self._texts) and size:
            step = min(size, len(self._texts[text]) - at)
            at, size = at + step, size - step
            if at == len(self._texts[text]):
                text, at = _Place(text + 1, 0) if size else self._fresh(text + 1)
        return _Place(text, at)

    def _read(self, start: _Place, size: int) -> WrittenChunk:
        after, ids, at = self._after(start, size), list[int](), start.at
        for text in range(start.text, min(after.text + 1, len(self._texts))):
            ids += self._texts[text][at : at + size - len(ids)]
            at = 0
        return WrittenChunk(ids, start == self._fresh(start.text), after == self._fresh(after.text))

    def _likely(self, here: _Place, words: Int32[Tensor, " T"]) -> Iterator[_Place]:
        """Where a chunk may begin: where the sizes say, else wherever one of its words stands further on."""
        yield here
        # The first token may continue a word of the chunk before, which the chunk by itself does not tell.
        anchors = [place for place in (*range(1, len(words)), 0) if words[place] > 0]
        for text in range(here.text, len(self._texts)) if anchors else ():
            begin = self._begins[text]
            stands = (self._words_of(self._texts[text][begin:]) == words[anchors[0]]).nonzero().flatten().tolist()
            for at in (begin + place - anchors[0] for place in stands):
                # A negative position is in the text before, to which this one is joined.
                place = _Place(text, at) if at >= 0 or not text else _Place(text - 1, len(self._texts[text - 1]) + at)
                if place.at >= self._begins[place.text] and place > here:
                    yield place
