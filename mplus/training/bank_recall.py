"""Recall over a bank of encoded texts, scored as a read will score it."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.recall import LAST_UNITS
from mplus.retriever import KeyBlock, Scorer
from mplus.text import encode_inert
from mplus.training.data import ChunkBank, Question
from mplus.training.projection import gold_chunks


class BankRecall:
    """One scorer's keys of every chunk of a bank.

    Args:
        bank: Encoded texts.
        scorer: Whose keys; they are computed once, now.
        layer: Whose states are scored.
    """

    @torch.no_grad()
    def __init__(self, bank: ChunkBank, scorer: Scorer, layer: int) -> None:
        self._bank, self._scorer, self._layer = bank, scorer, layer
        self.keys = torch.cat([scorer.keys(layer, bank.normed(c, layer)).cpu() for c in range(len(bank.input_ids))])
        self.sizes = torch.tensor([len(ids) for ids in bank.input_ids])
        self._goes_on = torch.tensor([a == b for a, b in pairwise([-1, *bank.owner])])

    @torch.no_grad()
    def relevance(self, text: str) -> Float[Tensor, " U"]:
        """Relevance of every chunk to a question read alone."""
        return self._scored(self.queries(text), self.sizes, self._goes_on)

    @torch.no_grad()
    def token_relevance(self, text: str) -> Float[Tensor, " U"]:
        """Relevance of every single token, in the bank's order."""
        return self._scored(self.queries(text), torch.ones(len(self.keys), dtype=torch.int64), None)

    @torch.no_grad()
    def queries(self, text: str) -> Tensor:
        """Retrieval queries of a question."""
        bank = self._bank
        ids = torch.tensor(encode_inert(bank.tokenizer, text))
        rows = bank.weights.backbone.plain_states(ids, self._layer)[-1]
        return self._scorer.queries(self._layer, bank.weights.norm(self._layer, rows, reading=False).float()).cpu()

    def best(self, text: str, budget: int, allowed: Tensor | None = None) -> list[int]:
        """The most relevant chunks that fit into a budget of tokens, at least one; best first."""
        relevance = self.relevance(text)
        if allowed is not None:
            relevance = relevance.masked_fill(~allowed, float("-inf"))
        chosen: list[int] = []
        size = 0
        for chunk in relevance.argsort(descending=True)[:40].tolist():
            size += int(self.sizes[chunk])
            if chosen and (size > budget or relevance[chunk] == float("-inf")):
                break
            chosen.append(chunk)
        return chosen

    def _scored(self, queries: Tensor, sizes: Tensor, goes_on: Tensor | None) -> Tensor:
        return self._scorer.relevance(queries, [KeyBlock(self.keys, sizes, 0)], len(sizes), goes_on=goes_on)


def laid_out(recalled: Sequence[int], rank: dict[int, float]) -> list[int]:
    """Recalled chunks, given best first, as a read lays them out: in the order of ``rank``, but the two best last."""
    last = set(recalled[:LAST_UNITS])
    return sorted(set(recalled), key=lambda c: (c in last, rank[c], c))


def recall_figures(bank: ChunkBank, questions: Sequence[Question], layer: int, scorer: Scorer) -> dict[str, float]:
    """How often a chunk with the answer is the most relevant of all, or among three."""
    asked = [(q.text, gold) for q in questions if (gold := gold_chunks(bank, q))]
    if not asked:
        return {}
    recall = BankRecall(bank, scorer, layer)
    top1 = top3 = 0
    for text, gold in asked:
        relevance = recall.relevance(text)
        best = relevance.topk(min(3, len(relevance))).indices.tolist()
        top1 += best[0] in gold
        top3 += any(c in gold for c in best)
    return {"chunk_top1": top1 / len(asked), "chunk_top3": top3 / len(asked)}
