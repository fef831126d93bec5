"""What a read of a memory of some chunks would bring: the choice and order of recall itself, over a bank."""

from collections.abc import Collection, Sequence

import torch

from mplus.config import MemoryConfig
from mplus.layouts.layout import Ranked
from mplus.layouts.whole_chunks import WholeChunks
from mplus.recall.best_sentence import is_turned, towards_best_sentence
from mplus.recall.scorer import Shortlist
from mplus.training.chunk.bank_recall import BankRecall
from mplus.training.chunk.sample import AsRead

LAYOUT = WholeChunks()


def as_remembered(
    recall: BankRecall, text: str, memory: Sequence[int], config: MemoryConfig, *, needed: Collection[int] = ()
) -> AsRead:
    """Chunks as a read of a question lays them out, had they been written in this order.

    Args:
        recall: Keys of the bank's chunks.
        text: The question.
        memory: Chunks, the oldest first; the newest of them are short-term memory.
        config: Of the memory.
        needed: Chunks that are read even where recall would miss them: the most relevant ones then.
    """
    if not memory:
        return AsRead(())
    chunks = torch.tensor(memory)
    sizes = recall.sizes[chunks]
    num_stored = len(memory) - _num_recent(sizes, config.short_term_tokens)
    question = recall.question(text)
    in_order, place = chunks.sort()
    candidates = recall.candidates.take(in_order)
    scores = recall.scorer.scores(question, Shortlist(candidates), config)
    relevance = torch.empty_like(scores.relevance)
    relevance[place] = scores.relevance
    follows = chunks[1:] == chunks[:-1] + 1
    goes_on = torch.cat([torch.tensor([False]), follows & recall.goes_on[chunks[1:]]])

    def laid_out() -> tuple[list[int], list[int]]:
        ranked = Ranked(relevance, scores.average, sizes, torch.arange(len(chunks)), goes_on, num_stored)
        chosen = LAYOUT.choose(ranked, config)
        return ranked.read(chosen).tolist(), LAYOUT.standing_last(ranked, chosen)

    read, last = laid_out()
    missing = [n for n, chunk in enumerate(memory) if chunk in needed and n not in read]
    if missing:
        relevance[missing] = relevance.max() + 0.01 * torch.arange(1, len(missing) + 1)
        read, last = laid_out()
    order = [*(n for n in read if n not in last), *last]
    laid = [memory[n] for n in order]
    if not is_turned(config, last, goes_on):
        return AsRead(laid)
    run = recall.candidates.take(chunks[last])
    turned = towards_best_sentence(recall.scorer, question, run, config)
    before = int(sizes[order].sum() - run.sizes.sum())
    return AsRead(laid, [*range(before), *(turned + before).tolist()])


def _num_recent(sizes: torch.Tensor, room: int) -> int:
    """How many of the newest chunks fit into short-term memory."""
    return int((sizes.flip(0).cumsum(0) <= room).sum())
