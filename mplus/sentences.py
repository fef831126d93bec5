"""Detects sentence, line and paragraph ends in token ids."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

CLOSING_PUNCTUATION = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")


def pieces(tokenizer: Any) -> Callable[[int], str]:
    """The text of single tokens; each is decoded once."""
    return cache(lambda token: tokenizer.decode([token], skip_special_tokens=False))


class SentenceEnds:
    """Knows which tokens of a vocabulary end a sentence, a line or a paragraph."""

    PARAGRAPH, SENTENCE, NOTHING = 2, 1, 0

    def __init__(self, tokenizer: Any) -> None:
        self._piece = pieces(tokenizer)

    def strength(self, before: int, token: int, following: int) -> int:
        """How good a place it is to cut after ``token``, given its neighbours."""
        piece = self._piece(token)
        if piece.endswith("\n"):
            return self.PARAGRAPH if (self._piece(before) + piece).endswith("\n\n") else self.SENTENCE
        if CLOSING_PUNCTUATION.search(piece) is None:
            return self.NOTHING
        # "3.5" and "e.g.x" continue without a space, so no sentence ends here.
        return self.SENTENCE if self._piece(following)[:1].isspace() else self.NOTHING

    def at(self, ids: Sequence[int], place: int) -> bool:
        """Whether a sentence ends with the token at ``place``; the token after the last one is taken as unknown."""
        if place == len(ids) - 1:
            piece = self._piece(ids[place])
            return piece.endswith("\n") or CLOSING_PUNCTUATION.search(piece) is not None
        return self.strength(ids[max(place - 1, 0)], ids[place], ids[place + 1]) != self.NOTHING
