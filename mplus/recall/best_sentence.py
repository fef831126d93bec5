"""Finds the sentence of a text that answers a question, and reorders the text so that it ends with that sentence.

A small model that reads a paragraph often answers from the wrong sentence, although late interaction ranks the right
one first. So the text next to the prompt is reordered to end with that sentence. This is done for prose only: lines of
a conversation or a list depend on one another, and keep their order.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.recall.scorer import Question, Scorer
from mplus.recall.units import Candidates
from mplus.words import LINE_END, NO_WORD


def is_turned(config: MemoryConfig, last: Sequence[int], goes_on: Bool[Tensor, " U"] | None) -> bool:
    """Whether the chunks next to the prompt are one text. They are not if the last is a later change of the one before.

    Args:
        config: Whether texts are reordered at all.
        last: Chunks next to the prompt, in reading order.
        goes_on: Whether each chunk continues the one before it; None if units are not texts.
    """
    return goes_on is not None and config.best_sentence_times > 0 and len(last) > 0 and bool(goes_on[last[1:]].all())


def towards_best_sentence(
    scorer: Scorer, question: Question, text: Candidates, config: MemoryConfig
) -> Int[Tensor, " T"]:
    """The order in which the tokens of a text are read so that the sentence that answers best comes last.

    Args:
        scorer: Compares sentences as it does chunks.
        question: The question.
        text: Chunks, each of which continues the one before it.
        config: How often the sentence is read (``best_sentence_times``; a sentence longer than a chunk, once), the
            shortest sentence (``minimum_chunk_tokens``) and the shortest paragraph (``chunk_tokens``) to reorder.
    """
    words = text.provenance.words
    sizes = sentence_sizes(words < NO_WORD, config.minimum_chunk_tokens)
    as_written = torch.arange(len(words))
    if len(sizes) == 1:
        return as_written
    keys = torch.cat([block.keys for block in text.blocks(question.normed.device)])
    best = scorer.best_sentence(question, keys, sizes)
    if best is None or paragraph_size(words == LINE_END, int(sizes[: best + 1].sum()) - 1) < config.chunk_tokens:
        return as_written
    return turned(sizes, best, config.best_sentence_times - 1 if sizes[best] <= config.chunk_tokens else 0)


def sentence_sizes(ends: Bool[Tensor, " T"], shortest: int) -> Int[Tensor, " sentences"]:
    """Number of tokens of each sentence of a text that is not empty.

    Args:
        ends: Whether a sentence ends with each token.
        shortest: A sentence of fewer tokens is joined with the next one: it is an abbreviation, a short line, or one of
            several steps of a story, of which the last may be the relevant one.
    """
    cuts = [0]
    for cut in (ends[:-1].nonzero().flatten() + 1).tolist():
        if cut - cuts[-1] >= shortest:
            cuts.append(cut)
    return torch.tensor([*cuts, len(ends)]).diff()


def paragraph_size(line_ends: Bool[Tensor, " T"], place: int) -> int:
    """Number of tokens of the paragraph with the token at ``place``: from one end of a line to the next."""
    before, after = line_ends[:place].nonzero().flatten(), line_ends[place:].nonzero().flatten()
    start = int(before[-1]) + 1 if len(before) else 0
    return (place + int(after[0]) + 1 if len(after) else len(line_ends)) - start


def turned(sizes: Int[Tensor, " sentences"], best: int, again: int) -> Int[Tensor, " T"]:
    """The order in which one sentence is read last: the text after it, the text before it, then the sentence.

    Args:
        sizes: Number of tokens of each sentence.
        best: Number of the sentence to read last.
        again: How many more times it is read.
    """
    places = torch.arange(int(sizes.sum()))
    end = int(sizes[: best + 1].sum())
    return torch.cat([places[end:], places[:end], places[end - int(sizes[best]) : end].repeat(again)])
