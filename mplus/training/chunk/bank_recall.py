"""Recall over a bank of encoded texts, scored as a read will score it."""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.inert import encode_inert
from mplus.layouts.whole_chunks import WholeChunks, first_fitting, neighbours, standing_last
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.recall.best_sentence import is_turned, towards_best_sentence
from mplus.recall.scorer import Question as Asked
from mplus.recall.scorer import Scorer, Scores, Shortlist
from mplus.recall.units import Candidates, KeyBlock
from mplus.training.chunk.chunk_bank import ChunkBank
from mplus.training.chunk.questions import Question
from mplus.training.chunk.sample import AsRead


class BankRecall:
    """One scorer's keys of every chunk of a bank.

    Args:
        bank: Encoded texts.
        scorer: Whose keys; they are computed once, now.
        layer: Whose states are scored.
    """

    @torch.no_grad()
    def __init__(self, bank: ChunkBank, scorer: Scorer, layer: int) -> None:
        self._bank, self.scorer, self._layer = bank, scorer, layer
        self.keys = torch.cat([scorer.keys(layer, bank.normed(c, layer)).cpu() for c in range(len(bank.input_ids))])
        self.sizes = torch.tensor([len(ids) for ids in bank.input_ids])
        chunks = torch.arange(len(self.sizes)).repeat_interleave(self.sizes)
        owner = torch.tensor(bank.owner)
        self.goes_on = bank.goes_on
        known = Provenance(
            torch.zeros_like(chunks),
            torch.zeros(len(chunks), dtype=torch.float64),
            owner[chunks],
            chunks,
            torch.cat([bank.weights.words_of(ids) for ids in bank.input_ids]),
        )
        pool = Tokens(Content((), (), self.keys), known)
        self.candidates = Candidates.of((pool,), WholeChunks())

    @torch.no_grad()
    def scores(self, text: str) -> Scores:
        """Relevance of every chunk to a question read alone."""
        return self.scorer.scores(self.question(text), Shortlist(self.candidates), self._bank.config)

    def relevance(self, text: str) -> Float[Tensor, " U"]:
        """Relevance of every chunk to a question read alone."""
        return self.scores(text).relevance

    @torch.no_grad()
    def token_relevance(self, text: str) -> Float[Tensor, " U"]:
        """Relevance of every single token, in the bank's order."""
        blocks = [KeyBlock(self.keys, torch.ones(len(self.keys), dtype=torch.int64), 0)]
        return self.scorer.relevance(self.queries(text), blocks, len(self.keys))

    @torch.no_grad()
    def queries(self, text: str) -> Tensor:
        """Retrieval queries of a question."""
        return self.scorer.queries(self._layer, self._bank.asked(text, self._layer)).cpu()

    def question(self, text: str) -> Asked:
        """A question read alone, as the scorer takes it."""
        weights, ids = self._bank.weights, encode_inert(self._bank.tokenizer, text)
        forms = None if weights.words is None else weights.words.asked(ids)
        return Asked(self._layer, self._bank.asked(text, self._layer), weights.words_of(ids), forms=forms)

    def widened(self, chosen: Sequence[int], reach: int, budget: int) -> list[int]:
        """Chunks, best first, with the best one's neighbours before the others; as many as fit into the budget."""
        near = neighbours(chosen[0], self.goes_on, reach)
        return first_fitting([*near, *chosen], self.sizes, budget).tolist()

    def laid_out(
        self, read: Collection[int], written: Mapping[int, float], relevance: Float[Tensor, " U"]
    ) -> list[int]:
        """Chunks as a read lays them out, recalled and recent ones alike.

        Args:
            read: The chunks.
            written: When each was written; chunks of one text at one time.
            relevance: Of every chunk of the bank.
        """
        return self._laid_out(read, written, relevance)[0]

    def as_read(
        self, text: str, read: Collection[int], written: Mapping[int, float], relevance: Float[Tensor, " U"]
    ) -> AsRead:
        """Chunks as they are laid out for a question, what stands last turned towards the sentence that answers."""
        chunks, last = self._laid_out(read, written, relevance)
        if not is_turned(self._bank.config, last, self.goes_on):
            return AsRead(chunks)
        run = self.candidates.take(torch.tensor(last))
        turned = towards_best_sentence(self.scorer, self.question(text), run, self._bank.config)
        before = int(self.sizes[chunks].sum() - run.sizes.sum())
        return AsRead(chunks, [*range(before), *(turned + before).tolist()])

    def _laid_out(
        self, read: Collection[int], written: Mapping[int, float], relevance: Float[Tensor, " U"]
    ) -> tuple[list[int], list[int]]:
        """All chunks in order, and those of them that stand last."""
        best_first = sorted(read, key=lambda c: -float(relevance[c]))
        last = standing_last(best_first, written, relevance - relevance.mean(), self.goes_on)
        return [*sorted(set(read) - set(last), key=lambda c: (written[c], c)), *last], last

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

    def figures(self, questions: Sequence[Question]) -> dict[str, float]:
        """How often a chunk with the answer is the most relevant of all, or among three."""
        asked = [(q.text, gold) for q in questions if (gold := self._bank.gold_chunks(q))]
        top1 = top3 = 0
        for text, gold in asked:
            relevance = self.relevance(text)
            best = relevance.topk(min(3, len(relevance))).indices.tolist()
            top1 += best[0] in gold
            top3 += any(c in gold for c in best)
        return {"chunk_top1": top1 / len(asked), "chunk_top3": top3 / len(asked)} if asked else {}
