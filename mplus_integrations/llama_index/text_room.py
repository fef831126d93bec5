"""How much text of nodes stands in a prompt beside what is read as latents."""

import re
from collections.abc import Sequence
from typing import Any, Self

from mplus import Memory, MPlus

SENTENCE_ENDS = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)|\n|$")
WORD_ENDS = re.compile(r"(?<=\S)(?=\s|$)")
SEPARATOR_TOKENS = 2


class TextRoom:
    """Room for texts of one prompt: as many tokens as a read recalls, and at most half of the room of the prompt.

    Args:
        tokenizer: Counts tokens.
        most: Most tokens of all texts.
    """

    def __init__(self, tokenizer: Any, most: int) -> None:
        self._tokenizer, self._most = tokenizer, most
        self._left = most

    @classmethod
    def of(cls, model: MPlus, memory: Memory, *others: Memory) -> Self:
        """The room beside a memory, and others that are read with it."""
        config = memory.config
        recalled = config.recalled_tokens or config.short_term_tokens
        return cls(model.tokenizer, max(min(recalled, model.prompt_room([memory, *others]) // 2), 1))

    def take(self, text: str) -> str:
        """As much of a text as there is still room for, to a sentence's end; of the first one at least some words."""
        if self._fits(text):
            kept = text
        else:
            kept = self._cut(text, [end.end() for end in SENTENCE_ENDS.finditer(text)])
            if not kept.strip() and self._left == self._most:
                kept = self._cut(text, [end.end() for end in WORD_ENDS.finditer(text)])
        if not kept.strip():
            self._left = 0  # what comes later is less relevant, and is not read in place of this one
            return ""
        self._left -= self._tokens(kept)
        return kept

    def _cut(self, text: str, ends: Sequence[int]) -> str:
        """The longest beginning that fits; bisection works because lengths rise with the ends."""
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high + 1) // 2
            if self._fits(text[: ends[middle - 1]]):
                low = middle
            else:
                high = middle - 1
        return text[: ends[low - 1]].rstrip() if low else ""

    def _fits(self, text: str) -> bool:
        return self._tokens(text) <= self._left

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + SEPARATOR_TOKENS
