"""Recall of text: which pieces of what was written answer a question, whole sentences and messages rather than chunks.

every chunk of every pool ──scores──▶ most relevant ──widened by the chunks beside it──▶ pieces, best first
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.layouts.by_config import layout_of
from mplus.memory.state import MemoryState, Track
from mplus.memory.tokens import Provenance
from mplus.memory.written import WordsOf, WrittenChunk, texts_by_source, written_chunks
from mplus.recall.choose import Recalled
from mplus.recall.scorer import Question, Scorer
from mplus.recall.units import Candidates

PIECE_TOKENS = 256
"""A recalled chunk is widened by the chunks beside it, up to this many tokens: about a paragraph, or a whole message."""
AHEAD = 16
"""Relevant chunks that are looked at for each piece that is wanted; many lie within pieces that were taken before."""


@dataclass(frozen=True)
class Piece:
    """A piece of what was written under one name, without gaps."""

    input_ids: tuple[tuple[int, ...], ...]
    """Token ids of its texts; a text that goes on in the next piece is cut where a chunk ends."""
    provenance: Provenance
    """Of its memory tokens."""
    relevance: float
    """Relevance of the chunk that it was recalled for."""

    def __len__(self) -> int:
        return len(self.provenance)

    @property
    def written(self) -> int:
        """Number of its first chunk: pieces that were written later have higher numbers."""
        return int(self.provenance.chunks[0])


def recall_pieces(
    scorer: Scorer,
    state: MemoryState,
    config: MemoryConfig,
    question: Question,
    words_of: WordsOf,
    *,
    sources: Int[Tensor, " n"] | None = None,
    most_tokens: int,
    most_pieces: int,
) -> list[Piece]:
    """The pieces that answer a question best, most relevant first, from any pool.

    Args:
        scorer: Scores the chunks.
        state: The memory's state, in the chunk layout and with a ledger.
        config: The memory's layout.
        question: The question, with states of the recall layer.
        words_of: Numbers the words of token ids.
        sources: Rows of the table of sources that may be recalled; None for all.
        most_tokens: Most tokens of all pieces together. A piece that does not fit ends the choice; the first is cut.
        most_pieces: Most pieces.
    """
    (track,) = state.tracks
    found: list[Piece] = []
    taken: set[int] = set()
    texts = _Texts(state, track, config, words_of)
    for relevant in _most_relevant(scorer, track, config, question, sources, AHEAD * most_pieces):
        room = most_tokens - sum(map(len, found))
        if len(found) == most_pieces or room <= 0:
            break
        if relevant.chunk in taken or (held := texts.of(relevant.source)).text_of(relevant.chunk) is None:
            continue
        chunks = held.around(relevant.chunk, PIECE_TOKENS if found else min(PIECE_TOKENS, room), taken)
        piece = held.piece(chunks, relevant.relevance)
        if found and len(piece) > room:
            break
        found.append(piece)
        taken.update(held.numbers[place] for place in chunks)
    return found


def as_recalled(pieces: Sequence[Piece]) -> Recalled:
    """Pieces as what a read recalled, for its sources and for recall frequencies."""
    provenance = Provenance.cat([Provenance.none(), *(piece.provenance for piece in pieces)])
    relevance = torch.cat([torch.empty(0), *(torch.full((len(piece),), piece.relevance) for piece in pieces)])
    return Recalled(torch.arange(len(provenance)), provenance, relevance)


class _Relevant(NamedTuple):
    chunk: int
    source: int
    relevance: float


def _pools(track: Track) -> tuple:
    return track.long_term, track.pending, track.short_term
