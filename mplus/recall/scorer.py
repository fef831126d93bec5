"""``Scorer``: one way to tell which remembered tokens answer a question.

To add one: subclass ``Scorer`` in a file of this folder, write ``keys``, ``queries`` and ``relevance``, and override
what it can do better; name it in ``mplus.config.Recall`` and hand it to ``Weights.scorers`` where a model is put
together (``mplus.checkpoint.loading``). Nothing else asks which scorer it has. One that looks at more than states, such
as the text itself, gets it as a field of ``Question`` and in ``Weights.content``, where all keys are made.

A scorer turns the normed input of a layer into *retrieval keys* when a memory token is born, and into
*retrieval queries* when a question is read; ``relevance`` compares them. Relevance is per **unit**: a
whole chunk where chunks are kept whole, else a single token. Keys come in blocks, and no [tokens x
queries] matrix is ever held for more than one of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor, nn

from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.recall.units import Candidates, KeyBlock

Normed = Float[Tensor, "S D"]
RetrievalRows = Float[Tensor, "S ..."]
Relevance = Float[Tensor, " U"]
GoesOn = Bool[Tensor, " U"]


@dataclass(frozen=True)
class Question:
    """What is asked, as scorers see it."""

    layer: int
    """Whose states are compared."""
    normed: Normed
    """The question's rows at the input of that layer, normed."""
    words: Int32[Tensor, " S"] | None = None
    """Its words; None: it is compared by states alone."""


class Shortlist(NamedTuple):
    """Candidates that are worth scoring."""

    candidates: Candidates
    sample: Candidates | None = None
    """What tells how relevant a usual unit is; None: the candidates themselves, which are all there is."""


class Scores(NamedTuple):
    """How every candidate does."""

    relevance: Relevance
    average: float
    """What one of all there is has on average."""


class Scorer(nn.Module, ABC):
    """One way of scoring. Methods with a body do what holds for any scorer."""

    @abstractmethod
    def keys(self, layer: int, normed: Normed) -> Float[Tensor, "S R"]:
        """Retrieval keys of memory tokens, from their normed states at ``layer``."""

    @abstractmethod
    def queries(self, layer: int, normed: Normed) -> RetrievalRows:
        """Retrieval queries of a question's rows, from their normed states at ``layer``."""

    @abstractmethod
    def relevance(
        self, queries: RetrievalRows, blocks: Iterable[KeyBlock], num_units: int, goes_on: GoesOn | None = None
    ) -> Relevance:
        """Relevance of units 0 to ``num_units`` - 1, each of which has a key in some block.

        Args:
            queries: What is asked for, row by row.
            blocks: All keys; gone through more than once where a scorer has to.
            num_units: U.
            goes_on: Which units go on where the one before them ends; None: each stands alone. A scorer that counts a
                chunk with its neighbours looks at it.
        """

    def prepare(self, store: LongTermMemory, config: MemoryConfig) -> None:
        """Work out ahead what recall will want of a long-term memory that tokens have just come into."""
        return

    def shortlist(self, question: Question, candidates: Candidates, config: MemoryConfig) -> Shortlist:
        """The candidates that are scored: all of them, unless a scorer knows a quicker way to the best."""
        return Shortlist(candidates)

    @torch.no_grad()
    def scores(self, question: Question, shortlist: Shortlist, config: MemoryConfig) -> Scores:
        """Scores of a shortlist: worked out where the layer computes, given on the CPU."""
        queries, candidates = self.asked(question), shortlist.candidates
        blocks = candidates.blocks(queries.device)
        relevance = self.relevance(queries, blocks, len(candidates), candidates.goes_on).cpu()
        return Scores(relevance, float(relevance.mean()))

    def best_sentence(
        self, question: Question, keys: Float[Tensor, "T R"], sizes: Int[Tensor, " sentences"]
    ) -> int | None:
        """Number of the sentence that says most of what is asked, compared as chunks are; None if keys cannot tell.

        Args:
            question: What is asked.
            keys: Retrieval keys of a text's tokens.
            sizes: Tokens of each of its sentences.
        """
        blocks = [KeyBlock(keys, sizes.to(keys.device), 0)]
        return int(self.relevance(self.asked(question), blocks, len(sizes)).argmax())

    def asked(self, question: Question) -> RetrievalRows:
        """Retrieval queries of a question, where its rows are."""
        return self.queries(question.layer, question.normed).to(question.normed.device).float()


def equal_weights(queries: RetrievalRows) -> Float[Tensor, " S"]:
    """What each row of a question counts in a mean over its rows."""
    return queries.new_full((len(queries),), 1 / len(queries))


def best_of_runs(scores: Float[Tensor, "T S"], sizes: Int[Tensor, " u"]) -> Float[Tensor, "u S"]:
    """The highest score of each run of rows, column by column."""
    if len(sizes) == len(scores):
        return scores
    run = torch.arange(len(sizes), device=scores.device).repeat_interleave(sizes, output_size=len(scores))
    best = scores.new_full((len(sizes), scores.shape[1]), float("-inf"))
    return best.scatter_reduce_(0, run[:, None].expand_as(scores), scores, reduce="amax")


def with_neighbours(best: Float[Tensor, "U S"], goes_on: GoesOn | None) -> Float[Tensor, "U S"]:
    """Half of what each unit matches, half of what it does together with its neighbours in the same text.

    An answer's sentence often leaves to the one before what it is about.

    Args:
        best: Best score of every unit and query row.
        goes_on: Which units go on where the one before them ends; None: each stands alone.
    """
    if goes_on is None:
        return best
    goes_on = goes_on.to(best.device)
    start = goes_on.new_zeros(1)
    before = torch.where(goes_on[:, None], best.roll(1, 0), best)
    after = torch.where(torch.cat([goes_on[1:], start])[:, None], best.roll(-1, 0), best)
    return (best + torch.maximum(best, torch.maximum(before, after))) / 2


def sum_of_runs(scores: Float[Tensor, " T"], sizes: Int[Tensor, " u"]) -> Float[Tensor, " u"]:
    """The sum of each run of scores."""
    if len(sizes) == len(scores):
        return scores
    run = torch.arange(len(sizes), device=scores.device).repeat_interleave(sizes, output_size=len(scores))
    return scores.new_zeros(len(sizes)).index_add_(0, run, scores)
