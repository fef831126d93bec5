"""Recall of text: the pieces of what was written that answer a question, whole messages rather than chunks.

every chunk of every pool ──scores──▶ most relevant first ──widened by the chunks beside it──▶ pieces
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.by_config import layout_of
from mplus.memory.state import MemoryState, Track
from mplus.memory.together import Together
from mplus.memory.tokens import Provenance
from mplus.memory.written import SourceTexts, WordsOf, WrittenChunk
from mplus.recall.choose import Recalled
from mplus.recall.scorer import Question, Scorer
from mplus.recall.units import Candidates
from mplus.words import NO_WORD

FEW_PIECES, MANY_PIECES = 2, 32
"""Most pieces that one answer reads, by a small model and by a larger one. With a third piece a model of 0.1 billion
parameters answered fewer questions (docs/lab/recall.md); one of 0.4 billion is not distracted, and sees what stands
around a piece (docs/lab/training.md, "More of the same")."""
PIECE_TOKENS = 128
"""A recalled chunk is widened by the chunks beside it, up to this many tokens: a whole message, or some sentences. With
twice as many, a small model answered fewer questions about paragraphs."""
LATEST_SHARE = 4
"""Where a conversation goes on, a piece's tokens of what was said last are read whatever is asked, or this part of all
tokens where that is less: "make that shorter" has no word of what it is about."""
ROLE, SPEAKERS = "role", frozenset(("user", "assistant", "tool"))
"""Metadata of a text that is a turn of a conversation."""
LOOKED_AT = 16
"""Chunks that are looked at for each piece that is wanted; many of them lie within pieces that were taken before."""


@dataclass(frozen=True)
class Piece:
    """A piece of what was written under one name, without gaps."""

    texts: tuple[tuple[int, ...], ...]
    """Token ids of the texts that it has parts of."""
    provenance: Provenance
    """Provenance of its memory tokens."""
    relevance: float
    """Relevance of the chunk that it was recalled for; 0 if it was not scored."""
    is_latest: bool = False
    """Whether it was chosen because it was said last."""

    def __len__(self) -> int:
        return len(self.provenance)


class Wanted(NamedTuple):
    """How much text is recalled."""

    tokens: int
    """Most tokens of all pieces together."""
    pieces: int
    """Most pieces."""
    latest: int = 0
    """Most tokens of the turns of a conversation that were said last, which are among them in any case."""


def recall_pieces(
    scorer: Scorer,
    read: Together,
    config: MemoryConfig,
    question: Question,
    words_of: WordsOf,
    wanted: Wanted,
    sources: Int[Tensor, " n"] | None = None,
) -> list[Piece]:
    """The pieces that answer a question best, most relevant first, from any pool; then what was said last.

    A piece that does not fit ends the choice, because a smaller, less relevant one must not displace it.

    Args:
        scorer: Scores the chunks.
        read: What the read sees, in the chunk layout and with ledgers.
        config: The memory's layout.
        question: The question, with states of the recall layer.
        words_of: Numbers the words of token ids.
        wanted: How much to recall.
        sources: Rows of the table of sources that may be recalled; None for all.
    """
    (track,) = read.state.tracks
    ranked = _relevant(scorer, track, config, question, sources, wanted.pieces * LOOKED_AT)
    choice = Choice(read, track, config, words_of)
    choice.go_on(ranked, wanted)
    latest = _latest_turns(read.state, track, sources, wanted.latest)
    if all(number in choice.taken for turn in latest for number in turn.numbers):
        return choice.pieces
    # What was said last comes before all but the most relevant piece.
    choice = Choice(read, track, config, words_of)
    choice.go_on(ranked, wanted._replace(pieces=1))
    for turn in latest:
        choice.take_turn(turn, wanted.tokens - choice.size)
    choice.go_on(ranked, wanted)
    return [*choice.pieces, *choice.turns]


def drop_least(pieces: list[Piece]) -> None:
    """Leave out the least relevant piece; what was said last goes before the most relevant one only."""
    others = [place for place, piece in enumerate(pieces) if place and not piece.is_latest]
    del pieces[others[-1] if others else -1]


def as_recalled(pieces: Sequence[Piece], recent: Int[Tensor, " R"]) -> Recalled:
    """Pieces as what a read has recalled, for its sources and for recall frequencies.

    Args:
        pieces: The pieces.
        recent: Serial numbers of the chunks in short-term memory.
    """
    provenance = Provenance.cat([Provenance.none(), *(piece.provenance for piece in pieces)])
    relevance = torch.cat([torch.empty(0), *(torch.full((len(piece),), piece.relevance) for piece in pieces)])
    is_recent = torch.isin(provenance.chunks, recent)
    return Recalled(torch.arange(len(provenance)), provenance, relevance, is_recent=is_recent)


def _relevant(
    scorer: Scorer, track: Track, config: MemoryConfig, question: Question, sources: Int[Tensor, " n"] | None, most: int
) -> list[tuple[int, int, float]]:
    """Chunk, source and relevance of the most relevant chunks of all pools, best first."""
    candidates = _candidates(track, config, sources)
    if not len(candidates):
        return []
    shortlist = scorer.shortlist(question, candidates, config)
    scores = scorer.scores(question, shortlist, config)
    relevance, average = scores.relevance, scores.average
    candidates = shortlist.candidates
    assert candidates.chunks is not None
    best = relevance.argsort(descending=True, stable=True)[:most]
    if config.relevance_cutoff and len(best) and relevance[best[0]] > average:
        above = relevance[best] - average
        best = best[above >= config.relevance_cutoff * above[0]]
    columns = (candidates.chunks[best], candidates.sources[best], relevance[best])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _candidates(track: Track, config: MemoryConfig, sources: Int[Tensor, " n"] | None) -> Candidates:
    return Candidates.of((track.long_term, track.pending, track.short_term), layout_of(config), sources, track.vectors)


class Latest(NamedTuple):
    """What was said last in a conversation: a turn, or the end of it."""

    source: int
    numbers: list[int]
    """Serial numbers of its chunks, the last first."""
    size: int


def _latest_turns(
    state: MemoryState, track: Track, allowed: Int[Tensor, " n"] | None, most_tokens: int
) -> list[Latest]:
    """Turns of a conversation in short-term memory that may be read, the last first, as many as fit."""
    provenance = track.short_term.provenance
    numbers, sizes = provenance.chunks.unique_consecutive(return_counts=True)
    owners = provenance.sources[sizes.cumsum(0) - 1]
    readable = None if allowed is None else set(allowed.tolist())
    found: list[Latest] = []
    for number, size, source in zip(*(column.flip(0).tolist() for column in (numbers, sizes, owners)), strict=True):
        is_turn = 0 <= source < len(state.sources) and str(state.sources[source].metadata.get(ROLE)) in SPEAKERS
        if not is_turn or (readable is not None and source not in readable):
            continue
        if sum(turn.size for turn in found) + size > most_tokens:
            break
        if found and found[-1].source == source and found[-1].numbers[-1] == number + 1:
            begun = found.pop()
            found.append(Latest(source, [*begun.numbers, number], begun.size + size))
        else:
            found.append(Latest(source, [number], size))
    return found


class Choice:
    """Pieces that are chosen, one chunk after the other.

    Attributes:
        pieces: What was chosen for its relevance.
        turns: What was chosen because it was said last.
        taken: Serial numbers of the chunks in either.
    """

    def __init__(self, read: Together, track: Track, config: MemoryConfig, words_of: WordsOf) -> None:
        self.pieces: list[Piece] = []
        self.turns: list[Piece] = []
        self.taken: set[int] = set()
        self._read, self._track, self._config, self._words_of = read, track, config, words_of
        self._held: dict[int, HeldChunks] = {}

    @property
    def size(self) -> int:
        """Tokens of all pieces."""
        return sum(map(len, (*self.pieces, *self.turns)))

    def go_on(self, ranked: Sequence[tuple[int, int, float]], wanted: Wanted) -> None:
        """Take pieces around the most relevant chunks until there are enough, or one does not fit."""
        for number, source, relevance in ranked:
            room = wanted.tokens - self.size
            if len(self.pieces) >= wanted.pieces or room <= 0:
                return
            held = self._of(source)
            around = None if number in self.taken else held.around(number, self.taken, min(PIECE_TOKENS, room))
            if around is None:  # it is taken, or its text is not in the ledger
                continue
            if sum(held.sizes[place] for place in around) > room:
                return
            self.pieces.append(held.piece(around, number, relevance))
            self.taken.update(held.numbers[place] for place in around)

    def take_turn(self, turn: Latest, room: int) -> None:
        """Take what is left of a turn, if it fits and its text is in the ledger."""
        held = self._of(turn.source)
        places = [held.numbers.index(number) for number in takewhile(lambda n: n not in self.taken, turn.numbers)]
        if not places or sum(held.sizes[place] for place in places) > room:
            return
        if all(held.text_of(held.numbers[place]) is not None for place in places):
            self.turns.append(held.piece(places[::-1], turn.numbers[0], 0.0, is_latest=True))
            self.taken.update(held.numbers[place] for place in places)

    def _of(self, source: int) -> "HeldChunks":
        if source not in self._held:
            self._held[source] = HeldChunks(self._read, self._track, self._config, source, self._words_of)
        return self._held[source]


class HeldChunks:
    """The chunks of one source that a memory holds, in the order of writing.

    Args:
        read: What the read sees.
        track: Its track.
        config: The memory's layout.
        source: Row of the source in the table of sources.
        words_of: Numbers the words of token ids.
    """

    def __init__(self, read: Together, track: Track, config: MemoryConfig, source: int, words_of: WordsOf) -> None:
        mine = _candidates(track, config, torch.tensor([source]))
        assert mine.chunks is not None
        self.numbers: list[int] = mine.chunks.tolist()
        self.sizes: list[int] = mine.sizes.tolist()
        self._provenance = mine.provenance
        self._starts = [0, *mine.sizes.cumsum(0).tolist()]
        self._texts = SourceTexts(read.texts_of(source), self._provenance.words, self.sizes, words_of)

    def text_of(self, number: int) -> WrittenChunk | None:
        """The text of a chunk by its serial number; None if it is not in the ledger."""
        return self._texts.chunk(self.numbers.index(number))

    def begins_sentence(self, number: int) -> bool:
        """Whether a chunk, by its serial number, begins where a sentence does."""
        place = self.numbers.index(number)
        chunk = self._texts.chunk(place)
        return chunk is not None and (chunk.begins or self._ends_sentence(place - 1))

    def around(self, number: int, taken: set[int], most_tokens: int) -> range | None:
        """Places of a chunk and of chunks beside it, as far as they go on and fit; None if its text is unknown."""
        first = last = self.numbers.index(number)
        if self._texts.chunk(first) is None:
            return None
        size, open_ends = self.sizes[first], [1, -1]
        while open_ends:
            for step in list(open_ends):
                edge = last if step > 0 else first
                if self._goes_on(edge, step, taken) and size + self.sizes[edge + step] <= most_tokens:
                    size += self.sizes[edge + step]
                    first, last = min(first, edge + step), max(last, edge + step)
                else:
                    open_ends.remove(step)
        return range(first, last + 1)

    def _goes_on(self, place: int, step: int, taken: set[int]) -> bool:
        """Whether the chunk beside one was written next to it, has not been taken, and has a known text."""
        beside = place + step
        if not 0 <= beside < len(self.numbers) or self.numbers[beside] != self.numbers[place] + step:
            return False
        return self.numbers[beside] not in taken and self._texts.chunk(beside) is not None

    def piece(self, places: Sequence[int], number: int, relevance: float, *, is_latest: bool = False) -> Piece:
        """Consecutive chunks around one as a piece, without the sentences that the outer ones have only parts of.

        Args:
            places: Places of the chunks.
            number: The chunk that is relevant, which stays whole.
            relevance: Its relevance.
            is_latest: Whether it was chosen because it was said last.
        """
        texts, rows = list[list[int]](), list[int]()
        for place in places:
            chunk = self._texts.chunk(place)
            assert chunk is not None
            begin, end = 0, self.sizes[place]
            if self.numbers[place] != number:
                ends = [row + 1 for row in (self._words(place) < NO_WORD).nonzero().flatten().tolist()]
                if place == places[0] and not chunk.begins and not self._ends_sentence(place - 1):
                    begin = min(ends, default=end)
                if place == places[-1] and not chunk.ends:
                    end = max(ends, default=begin)
            if chunk.begins or not texts:
                texts.append([])
            texts[-1] += chunk.input_ids[begin:end]
            rows += range(self._starts[place] + begin, self._starts[place] + end)
        return Piece(tuple(map(tuple, texts)), self._provenance.take(torch.tensor(rows)), relevance, is_latest)

    def _words(self, place: int) -> Int32[Tensor, " T"]:
        return self._provenance.words[self._starts[place] : self._starts[place + 1]]

    def _ends_sentence(self, place: int) -> bool:
        """Whether a chunk is held, and a sentence ends with it."""
        return place >= 0 and bool(self._words(place)[-1] < NO_WORD)
