"""Numbers the words of a text, token by token; recall compares them in addition to states of the model."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from mplus.sentences import SentenceEnds, pieces
from mplus.word_forms import forms_of

NO_WORD = 0
SENTENCE_END, LINE_END = -1, -2


def same_words(first: Tensor, second: Tensor) -> bool:
    """Whether tokens have the same words; where sentences end depends on what stands before, and on the version."""
    return torch.equal(first.clamp(min=NO_WORD), second.clamp(min=NO_WORD))


"""Marks of a token in which no word begins and a sentence (or a line) ends."""


class WordForms(NamedTuple):
    """The words of a question, each in all the forms in which a text may say it.

    Attributes:
        numbers: Number of every form, ascending.
        word: Which word each is a form of, from 0 on; a word that is a form of an earlier one counts as that.
        num_words: Number of different words [W].
    """

    numbers: Int32[Tensor, " F"]
    word: Int64[Tensor, " F"]
    num_words: int


class Words:
    """Numbers the words of texts by their tokens, and marks where sentences end.

    A word is a run of letters and digits; case is ignored. Its number is a checksum, never ``NO_WORD``, and is at the
    token in which the word begins. Tokens that only continue a word, or have none, have ``LINE_END`` or
    ``SENTENCE_END`` if a line or a sentence ends with them, else ``NO_WORD``. None ends with a Markdown heading, which
    would be taken for the sentence that answers what it only announces. One in two billion pairs of
    words shares a number.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._piece = pieces(tokenizer)
        self._ends = SentenceEnds(tokenizer)

    def __call__(self, input_ids: Sequence[int]) -> Int32[Tensor, " S"]:
        """The number of the word that begins in each token, or a mark."""
        found = [NO_WORD] * len(input_ids)
        for begin, word in self._spoken(input_ids):
            found[begin] = numbered(word)
        ends = [place for place, word in enumerate(found) if word == NO_WORD and self._ends.at(input_ids, place)]
        headings = self._headings(input_ids)
        for place in (place for place in ends if not headings[place]):
            found[place] = LINE_END if self._piece(input_ids[place]).endswith("\n") else SENTENCE_END
        return torch.tensor(found, dtype=torch.int32)

    def asked(self, input_ids: Sequence[int]) -> WordForms:
        """The different words of a question, in all their forms."""
        places: dict[int, int] = {}
        count = 0
        for _, word in self._spoken(input_ids):
            if numbered(word) in places:
                continue
            for form in sorted(forms_of(word.casefold())):
                places.setdefault(numbered(form), count)
            count += 1
        numbers = sorted(places)
        return WordForms(
            torch.tensor(numbers, dtype=torch.int32),
            torch.tensor([places[n] for n in numbers], dtype=torch.int64),
            count,
        )

    def _spoken(self, input_ids: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Each word, with the place of the token in which it begins."""
        word, begin = "", 0
        for place, token in enumerate(input_ids):
            piece = self._piece(token)
            if piece.isalnum():  # most tokens that continue a word
                begin = begin if word else place
                word += piece
                continue
            for character in piece:
                if character.isalnum():
                    begin = begin if word else place
                    word += character
                elif word:
                    yield begin, word
                    word = ""
        if word:
            yield begin, word

    def _headings(self, input_ids: Sequence[int]) -> list[bool]:
        """Whether each token is of a Markdown heading or of blank lines after it.

        A heading is part of the sentence that it stands above.
        """
        found: list[bool] = []
        line, is_heading = "", False
        for token in input_ids:
            begun, newline, rest = self._piece(token).rpartition("\n")
            line += begun if newline else rest
            if line.strip():
                is_heading = line.lstrip().startswith("#")
            found.append(is_heading and not (newline and rest.strip()))
            line = rest if newline else line.lstrip()[:1]
        return found


def numbered(word: str) -> int:
    """The number of a word; positive, because marks are not."""
    return zlib.crc32(word.casefold().encode()) % (2**31 - 1) + 1


def no_words(count: int) -> Int32[Tensor, " count"]:
    """Numbers of ``count`` tokens without words, or whose words are unknown: all ``NO_WORD``."""
    return torch.zeros(count, dtype=torch.int32)
