"""Which sentence of a text answers, and how the text is read so that a small reader finds it.

A small model that reads a paragraph often answers from the wrong sentence of it, though late interaction tells which is
the right one. So the text that stands next to the prompt ends with that sentence. That goes for prose: lines of a
conversation or a list lean on one another, and are read as they stand.
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
    """Whether what stands next to the prompt is one text: behind a chunk that was changed stands its change.

    Args:
        config: Whether texts are turned at all.
        last: Chunks that stand last, in order.
        goes_on: Which chunks go on where the one before them ends; None where units are no texts.
    """
    return goes_on is not None and config.best_sentence_times > 0 and len(last) > 0 and bool(goes_on[last[1:]].all())


def towards_best_sentence(
    scorer: Scorer, question: Question, text: Candidates, config: MemoryConfig
) -> Int[Tensor, " T"]:
    """In which order the tokens of a text are read, turned towards the sentence that says most of what is asked.

    Args:
        scorer: Compares sentences as it does chunks.
        question: What is asked.
        text: Chunks that go on one from the other.
        config: How often the sentence stands there (``best_sentence_times``; one longer than a chunk, once), how short
            it may be (``minimum_chunk_tokens``), and its paragraph (``chunk_tokens``): else nothing is turned.
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
    """Tokens of each sentence of a text that has some.

    Args:
        ends: With which tokens a sentence ends.
        shortest: One of fewer tokens goes on with the next: it is an abbreviation, a short line, or one of several
            steps of a story, of which the last may be the one that counts.
    """
    cuts = [0]
    for cut in (ends[:-1].nonzero().flatten() + 1).tolist():
        if cut - cuts[-1] >= shortest:
            cuts.append(cut)
    return torch.tensor([*cuts, len(ends)]).diff()


def paragraph_size(line_ends: Bool[Tensor, " T"], place: int) -> int:
    """Tokens of the paragraph that the token at ``place`` is in: from one end of a line to the next."""
    before, after = line_ends[:place].nonzero().flatten(), line_ends[place:].nonzero().flatten()
    start = int(before[-1]) + 1 if len(before) else 0
    return (place + int(after[0]) + 1 if len(after) else len(line_ends)) - start


def turned(sizes: Int[Tensor, " sentences"], best: int, again: int) -> Int[Tensor, " T"]:
    """In which order tokens are read so that one sentence is last: what follows it, what comes before it, then it.

    Args:
        sizes: Tokens of each sentence.
        best: Number of the sentence.
        again: How often it is said again.
    """
    places = torch.arange(int(sizes.sum()))
    end = int(sizes[: best + 1].sum())
    return torch.cat([places[end:], places[:end], places[end - int(sizes[best]) : end].repeat(again)])
