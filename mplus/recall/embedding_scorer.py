"""Recall by the vectors of an embedder that a user brings: one vector for each chunk of text."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mplus.config import MemoryConfig
from mplus.recall.lexical import REACH
from mplus.recall.scorer import (
    SHORTLIST,
    GoesOn,
    Normed,
    Question,
    Relevance,
    RetrievalRows,
    Scorer,
    Scores,
    Shortlist,
    sampled,
)
from mplus.recall.units import Candidates, KeyBlock


class EmbeddingScorer(Scorer):
    """Relevance of a chunk: the cosine of its vector with the question's, minus the mean over all chunks.

    Memory tokens have the retrieval keys of another scorer, which tells the sentences of a chunk apart: sentences
    have no vectors.

    Args:
        tokens: The scorer of memory tokens.
    """

    def __init__(self, tokens: Scorer) -> None:
        super().__init__()
        self.tokens = tokens

    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Retrieval keys of the scorer of tokens."""
        return self.tokens.keys(layer, normed)

    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Retrieval queries of the scorer of tokens."""
        return self.tokens.queries(layer, normed)

    def relevance(
        self, queries: RetrievalRows, blocks: Iterable[KeyBlock], num_units: int, goes_on: GoesOn | None = None
    ) -> Relevance:
        """Relevance by retrieval keys, for texts without vectors."""
        return self.tokens.relevance(queries, blocks, num_units, goes_on)

    def shortlist(self, question: Question, candidates: Candidates, config: MemoryConfig) -> Shortlist:
        """All chunks; beyond ``exact_recall_tokens`` the nearest ones and the passages around them."""
        if int(candidates.sizes.sum()) <= config.exact_recall_tokens:
            return Shortlist(candidates)
        near = _cosines(question, candidates).topk(min(SHORTLIST, len(candidates))).indices
        around = (near[:, None] + torch.arange(-REACH, REACH + 1)).flatten().clamp(0, len(candidates) - 1).unique()
        return Shortlist(candidates.take(around), candidates.take(sampled(len(candidates))))

    @torch.no_grad()
    def scores(self, question: Question, shortlist: Shortlist, config: MemoryConfig) -> Scores:
        """Cosine of every chunk minus that of a usual one."""
        candidates, sample = shortlist
        found = _cosines(question, candidates)
        usual = found if sample is None else _cosines(question, sample)
        level = float(usual.mean())
        return Scores(found - level, usual - level, level)


def _cosines(question: Question, candidates: Candidates) -> Relevance:
    assert question.vector is not None, "the question was not embedded"
    assert candidates.chunks is not None, "only texts have vectors"
    return candidates.vectors.cosines(question.vector, candidates.chunks)
