"""The words of a text, token by token: what recall compares beside states of the model."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int32
from torch import Tensor

from mplus.sentences import SentenceEnds, pieces

NO_WORD = 0
SENTENCE_END, LINE_END = -1, -2
"""At a token in which no word begins and a sentence ends, or a line."""


class Words:
    """Numbers the words of texts by their tokens, and marks where sentences end.

    A word is a run of letters and digits, whatever its case. Its number is a checksum, never ``NO_WORD``, and
    stands at the token in which it begins; tokens that only go on with a word, or have none, have
    ``LINE_END`` or ``SENTENCE_END`` where a line or a sentence ends with them, else ``NO_WORD``. Two words share a
    number once in two billion pairs.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._piece = pieces(tokenizer)
        self._ends = SentenceEnds(tokenizer)

    def __call__(self, input_ids: Sequence[int]) -> Int32[Tensor, " S"]:
        """The word that begins in each token, or what stands instead of one."""
        found = [NO_WORD] * len(input_ids)
        word, begin = "", 0
        for place, token in enumerate(input_ids):
            piece = self._piece(token)
            if piece.isalnum():  # most of what goes on with a word
                begin = begin if word else place
                word += piece
                continue
            for character in piece:
                if character.isalnum():
                    begin = begin if word else place
                    word += character
                elif word:
                    found[begin], word = numbered(word), ""
        if word:
            found[begin] = numbered(word)
        ends = [place for place, word in enumerate(found) if word == NO_WORD and self._ends.at(input_ids, place)]
        for place in ends:
            found[place] = LINE_END if self._piece(input_ids[place]).endswith("\n") else SENTENCE_END
        return torch.tensor(found, dtype=torch.int32)


def numbered(word: str) -> int:
    """The number of a word; positive, so that it is no mark."""
    return zlib.crc32(word.casefold().encode()) % (2**31 - 1) + 1


def no_words(count: int) -> Int32[Tensor, " count"]:
    """Of tokens that stand for no word of their own, or whose words are not known."""
    return torch.zeros(count, dtype=torch.int32)
