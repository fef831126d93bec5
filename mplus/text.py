"""From text to chunks: token ids in which nothing is a control token, cut where sentences end."""

import copy
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")


def encode_inert(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text; special-token strings inside it are encoded as ordinary characters.

    Control tokens in what users write must never reach the model as control tokens.
    """
    backend = _INERT.get(tokenizer)
    if backend is None:
        if not tokenizer.is_fast:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        backend = _INERT[tokenizer] = _inert(tokenizer.backend_tokenizer)
    return backend.encode(text, add_special_tokens=False).ids


_INERT: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""By tokenizer, its backend with special tokens as ordinary characters."""


def _inert(backend: Any) -> Any:
    """A copy that never encodes a control token.

    transformers switches the one backend back and forth instead: of two threads, one would encode a user's control
    tokens as such and the other a template's as characters.
    """
    backend = copy.deepcopy(backend)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


class Pieces:
    """The text of single tokens, each decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """What a token stands for."""
        piece = self._known.get(token)
        if piece is None:
            piece = self._known[token] = self._tokenizer.decode([token], skip_special_tokens=False)
        return piece


class SentenceEnds:
    """Knows which tokens of a vocabulary end a sentence, a line or a paragraph."""

    PARAGRAPH, SENTENCE, NOTHING = 2, 1, 0

    def __init__(self, tokenizer: Any) -> None:
        self._piece = Pieces(tokenizer)

    def strength(self, before: int, token: int, following: int) -> int:
        """How good a place it is to cut behind ``token``, given its neighbours."""
        piece = self._piece(token)
        if piece.endswith("\n"):
            return self.PARAGRAPH if (self._piece(before) + piece).endswith("\n\n") else self.SENTENCE
        if SENTENCE_END.search(piece) is None:
            return self.NOTHING
        # "3.5" and "e.g.x" go on without a space: not the end of a sentence.
        return self.SENTENCE if self._piece(following)[:1].isspace() else self.NOTHING

    def at(self, ids: Sequence[int], place: int) -> bool:
        """Whether a sentence ends with the token at ``place``; nothing is known of what follows the last one."""
        if place == len(ids) - 1:
            piece = self._piece(ids[place])
            return piece.endswith("\n") or SENTENCE_END.search(piece) is not None
        return self.strength(ids[max(place - 1, 0)], ids[place], ids[place + 1]) != self.NOTHING


class Cuts(NamedTuple):
    """Where a text is cut, as (start, stop) pairs of token positions."""

    chunks: list[tuple[int, int]]
    tail: tuple[int, int]
    """What is left and too short for a chunk of its own; empty where start equals stop."""


def cut(ids: Sequence[int], ends: SentenceEnds, *, chunk_tokens: int, minimum_chunk_tokens: int) -> Cuts:
    """Cut a text into chunks of at most ``chunk_tokens`` tokens that end where sentences end.

    A chunk ends at the last paragraph end in its second half, else the last sentence end there, else
    where it is full. Where more text follows, no cut depends on it: a text written in pieces is cut as
    if written at once.
    """
    chunks: list[tuple[int, int]] = []
    start = 0
    while len(ids) - start > chunk_tokens:
        stop = _best_stop(ids, ends, start + max(chunk_tokens // 2, minimum_chunk_tokens), start + chunk_tokens)
        chunks.append((start, stop))
        start = stop
    if len(ids) - start >= minimum_chunk_tokens:
        chunks.append((start, len(ids)))
        start = len(ids)
    return Cuts(chunks, (start, len(ids)))


def _best_stop(ids: Sequence[int], ends: SentenceEnds, earliest: int, latest: int) -> int:
    best, strongest = latest, SentenceEnds.NOTHING
    for stop in range(latest, earliest - 1, -1):
        strength = ends.strength(ids[max(stop - 2, 0)], ids[stop - 1], ids[stop])
        if strength > strongest:
            best, strongest = stop, strength
            if strongest == SentenceEnds.PARAGRAPH:
                break
    return best
