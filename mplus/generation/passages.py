"""Which sentences an answer reads: the text of the chunks that recall chose and of short-term memory.

A read needs no text, so it is found in the ledger when it is asked for.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch

from mplus.generation.sources_read import memory_of
from mplus.memory.together import Together
from mplus.memory.written import WordsOf
from mplus.read.prefill import ReadRequest
from mplus.recall.choose import Recalled
from mplus.recall.texts import HeldChunks
from mplus.words import NO_WORD


class ReadPassage(NamedTuple):
    """A part of a source that an answer reads, without gaps.

    Attributes:
        source: Name of the source.
        sentences: What it says, sentence by sentence. Where only a part of a sentence is read, "…" stands for the rest.
        relevance: Relevance of its best chunk, as the scorer counts; 0 if it was not scored.
        memory: Which of the memories that are read together it is from.
        pool: Where it is read from. Short-term memory, the latest texts, is always read whole.
    """

    source: str
    sentences: tuple[str, ...]
    relevance: float
    memory: int = 0
    pool: Literal["short_term", "long_term"] = "long_term"


class _ReadChunk(NamedTuple):
    """A chunk that is read: its source, its serial number, where it is read from, and its relevance."""

    source: int
    number: int
    is_recent: bool
    relevance: float

    def goes_on(self, before: "_ReadChunk") -> bool:
        """Whether it follows another one in the same pool."""
        return self[:3] == (before.source, before.number + 1, before.is_recent)


class PassageReader:
    """Finds the text of what was read.

    Args:
        tokenizer: Decodes it.
        words_of: Numbers the words of token ids, and marks where sentences end.
    """

    def __init__(self, tokenizer: Any, words_of: WordsOf) -> None:
        self._tokenizer, self._words_of = tokenizer, words_of

    def __call__(self, request: ReadRequest, recalled: Sequence[Recalled]) -> tuple[ReadPassage, ...]:
        """The passages of a read, the most relevant first.

        Args:
            request: The read.
            recalled: What each track recalled.

        Returns:
            Nothing where single tokens are kept, which are no texts; chunks without a ledger are left out.
        """
        if request.told is not None:
            found = self._told(request, request.told)
        elif request.config.has_texts and recalled:
            found = self._latent(request, sorted(_chunks_of(request, recalled[0])))
        else:
            return ()
        return tuple(sorted(found, key=lambda one: -one.relevance))

    def _told(self, request: ReadRequest, told: Recalled) -> Iterator[ReadPassage]:
        """What stands in the prompt as text."""
        begin = 0
        for piece in request.pieces:
            is_recent = told.is_recent is not None and bool(told.is_recent[begin])
            source = int(piece.provenance.sources[0])
            yield self._passage(request, source, piece.texts, piece.relevance, is_recent=is_recent)
            begin += len(piece)

    def _latent(self, request: ReadRequest, chunks: Sequence[_ReadChunk]) -> Iterator[ReadPassage]:
        """What stands before the prompt as memory tokens; chunks that follow each other are one passage."""
        read, track = Together(request.state, request.members), request.state.tracks[0]
        held: dict[int, HeldChunks] = {}
        runs: list[list[_ReadChunk]] = []
        for chunk in chunks:
            if chunk.source not in held:
                held[chunk.source] = HeldChunks(read, track, request.config, chunk.source, self._words_of)
            if held[chunk.source].text_of(chunk.number) is None:
                continue
            if runs and chunk.goes_on(runs[-1][-1]):
                runs[-1].append(chunk)
            else:
                runs.append([chunk])
        for run in runs:
            yield self._of_run(request, run, held[run[0].source])

    def _of_run(self, request: ReadRequest, run: Sequence[_ReadChunk], held: HeldChunks) -> ReadPassage:
        written = [chunk for one in run if (chunk := held.text_of(one.number)) is not None]
        ids = [token for chunk in written for token in chunk.input_ids]
        relevance = max(chunk.relevance for chunk in run)
        found = self._passage(request, run[0].source, [ids], relevance, is_recent=run[0].is_recent)
        sentences = list(found.sentences)
        if sentences and not held.begins_sentence(run[0].number):
            sentences[0] = f"… {sentences[0]}"
        if sentences and not written[-1].ends and not self._ends(ids):
            sentences[-1] = f"{sentences[-1]} …"
        return found._replace(sentences=tuple(sentences))

    def _passage(
        self,
        request: ReadRequest,
        source: int,
        texts: Sequence[Sequence[int]],
        relevance: float,
        *,
        is_recent: bool,
    ) -> ReadPassage:
        sentences = tuple(sentence for ids in texts for sentence in self._sentences(ids))
        name, memory = request.state.sources[source].name, memory_of(request.members, source)
        return ReadPassage(name, sentences, relevance, memory, "short_term" if is_recent else "long_term")

    def _ends(self, ids: Sequence[int]) -> bool:
        """Whether a sentence ends with these tokens."""
        return bool(self._words_of(ids)[-1] < NO_WORD)

    def _sentences(self, ids: Sequence[int]) -> Iterator[str]:
        ends = (self._words_of(ids) < NO_WORD).nonzero().flatten().tolist()
        for begin, end in pairwise([0, *(place + 1 for place in ends), len(ids)]):
            if sentence := self._tokenizer.decode(list(ids[begin:end])).strip():
                yield sentence


def _chunks_of(request: ReadRequest, taken: Recalled) -> set[_ReadChunk]:
    """The chunks that recall chose, and those of short-term memory that the read may see."""
    known = taken.provenance
    found = _numbered(known.sources, known.chunks, taken.relevance, is_recent=False)
    pool, relevance = request.state.tracks[0].short_term.provenance, taken.recent_relevance
    if relevance is None or len(relevance) != len(pool.sources):
        relevance = torch.zeros(len(pool.sources))
    may_see = torch.ones(len(pool.sources), dtype=torch.bool)
    if request.sources is not None:
        may_see = torch.isin(pool.sources, request.sources)
    recent = (pool.sources[may_see], pool.chunks[may_see], relevance[may_see])
    return found | _numbered(*recent, is_recent=True)


def _numbered(
    sources: torch.Tensor, chunks: torch.Tensor, relevance: torch.Tensor, *, is_recent: bool
) -> set[_ReadChunk]:
    best: dict[tuple[int, int], float] = {}
    for source, chunk, value in zip(sources.tolist(), chunks.tolist(), relevance.tolist(), strict=True):
        known = best.setdefault((source, chunk), value)
        best[source, chunk] = max(known, value)
    return {_ReadChunk(source, chunk, is_recent, value) for (source, chunk), value in best.items() if source >= 0}
