"""``Scorer``: one way to score how well memory tokens answer a question.

To add one: subclass ``Scorer`` in a file of this folder, write ``keys``, ``queries`` and ``relevance``, and override
other methods where the scorer has a better way; name it in ``mplus.config.Recall`` and add it to ``Weights.scorers`` in
``mplus.checkpoint.loading``. No other code depends on which scorer is used. A scorer that needs more than states gets
it as a field of ``Question``; keys of memory tokens are made in ``Weights.content``, vectors of whole chunks in
``mplus.write.vectors``. Two scorers are used together with ``FusedScorer``.

A scorer turns the normed input of a layer into *retrieval keys* when a memory token is written, and into
*retrieval queries* when a question is read; ``relevance`` compares them. Relevance is per **unit**: a
whole chunk where chunks are kept whole, else a single token. Keys come in blocks, and no [tokens x
queries] matrix is ever held for more than one of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor, nn

from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.recall.units import Candidates, KeyBlock
from mplus.words import WordForms

SHORTLIST = 512
"""Most chunks that a fast search finds, and that are then scored exactly."""
RUN = 8
"""Consecutive units of a sample."""

Normed = Float[Tensor, "S D"]
RetrievalRows = Float[Tensor, "S ..."]
Relevance = Float[Tensor, " U"]
GoesOn = Bool[Tensor, " U"]


@dataclass(frozen=True)
class Question:
    """A question, in the form that scorers take."""

    layer: int
    """The layer whose states are compared."""
    normed: Normed
    """The question's rows at the input of that layer, normed."""
    words: Int32[Tensor, " S"] | None = None
    """Word numbers of the question's tokens; None: only states are compared."""
    vector: Float[Tensor, " E"] | None = None
    """Its vector by the user's embedder, of unit length; None unless the memory's chunks have vectors."""
    forms: WordForms | None = None
    """Its different words in all their forms; None: only states are compared."""
    queries: "dict[Scorer, RetrievalRows]" = field(default_factory=lambda: dict["Scorer", Tensor](), compare=False)
    """Its retrieval queries by each scorer that was asked for them: the gate asks before the read does."""


class Shortlist(NamedTuple):
    """Candidates that are worth scoring."""

    candidates: Candidates
    sample: Candidates | None = None
    """Units from which the mean relevance is estimated; None: ``candidates`` are all units."""


class Scores(NamedTuple):
    """Relevance of every candidate."""

    relevance: Relevance
    usual: Float[Tensor, " V"]
    """Relevance of all units, or of the sample of them."""
    level: float = 0.0
    """What was taken off so that a usual unit has relevance zero."""

    @property
    def average(self) -> float:
        """Mean relevance over all units."""
        return float(self.usual.mean())

    @property
    def spread(self) -> float:
        """Standard deviation of relevance over all units."""
        return float(self.usual.std(correction=0))


class Scorer(nn.Module, ABC):
    """One way of scoring. Methods with a body are defaults that a scorer may override."""

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
            queries: Retrieval queries of the question's rows.
            blocks: All keys; a scorer may iterate over them more than once.
            num_units: Number of units [U].
            goes_on: Whether each unit continues the one before it; None: none does. For scorers that average a
                chunk with its neighbours.
        """

    def prepare(self, store: LongTermMemory, config: MemoryConfig) -> None:
        """Precompute what recall needs, after tokens were added to long-term memory."""
        return

    def shortlist(self, question: Question, candidates: Candidates, config: MemoryConfig) -> Shortlist:
        """The candidates that are scored: all of them, unless the scorer has a faster way to find the best."""
        return Shortlist(candidates)

    @torch.no_grad()
    def scores(self, question: Question, shortlist: Shortlist, config: MemoryConfig) -> Scores:
        """Scores of a shortlist: computed on the layer's device, returned on the CPU."""
        queries, candidates = self.asked(question), shortlist.candidates
        blocks = candidates.blocks(queries.device)
        relevance = self.relevance(queries, blocks, len(candidates), candidates.goes_on).cpu()
        return Scores(relevance, relevance)

    def best_sentence(
        self, question: Question, keys: Float[Tensor, "T R"], sizes: Int[Tensor, " sentences"]
    ) -> int | None:
        """Number of the sentence that answers best, scored as chunks are; None if the scorer cannot compare sentences.

        Args:
            question: The question.
            keys: Retrieval keys of a text's tokens.
            sizes: Number of tokens of each of its sentences.
        """
        blocks = [KeyBlock(keys, sizes.to(keys.device), 0)]
        return int(self.relevance(self.asked(question), blocks, len(sizes)).argmax())

    def asked(self, question: Question) -> RetrievalRows:
        """Retrieval queries of a question, on the device of its rows."""
        found = question.queries.get(self)
        if found is None:
            found = self.queries(question.layer, question.normed).to(question.normed.device).float()
            question.queries[self] = found
        return found


def sampled(count: int) -> Int[Tensor, " s"]:
    """Places of a sample of units: runs, evenly spaced, so that units keep their neighbours."""
    runs = torch.arange(0, count, max(RUN * count // SHORTLIST, RUN))[:, None] + torch.arange(RUN)
    return runs.flatten().clamp(max=count - 1).unique()


def equal_weights(queries: RetrievalRows) -> Float[Tensor, " S"]:
    """Weights of a question's rows in a mean over them, all equal."""
    return queries.new_full((len(queries),), 1 / len(queries))


def best_of_runs(scores: Float[Tensor, "T S"], sizes: Int[Tensor, " u"]) -> Float[Tensor, "u S"]:
    """The highest score of each run of rows, column by column."""
    if len(sizes) == len(scores):
        return scores
    run = torch.arange(len(sizes), device=scores.device).repeat_interleave(sizes, output_size=len(scores))
    best = scores.new_full((len(sizes), scores.shape[1]), float("-inf"))
    return best.scatter_reduce_(0, run[:, None].expand_as(scores), scores, reduce="amax")


def with_neighbours(best: Float[Tensor, "U S"], goes_on: GoesOn | None) -> Float[Tensor, "U S"]:
    """The mean of each unit's best score and the best score of the unit with its neighbours in the same text.

    A sentence that answers often does not name its subject, which the sentence before it does.

    Args:
        best: Best score of every unit and query row.
        goes_on: Whether each unit continues the one before it; None: none does.
    """
    if goes_on is None:
        return best
    goes_on = goes_on.to(best.device)[:, None]
    before = torch.where(goes_on, best.roll(1, 0), best)
    after = torch.where(goes_on.roll(-1, 0), best.roll(-1, 0), best)  # the first unit goes on from none
    return (best + torch.maximum(best, torch.maximum(before, after))) / 2


def sum_of_runs(scores: Float[Tensor, " T"], sizes: Int[Tensor, " u"]) -> Float[Tensor, " u"]:
    """The sum of each run of scores."""
    if len(sizes) == len(scores):
        return scores
    run = torch.arange(len(sizes), device=scores.device).repeat_interleave(sizes, output_size=len(scores))
    return scores.new_zeros(len(sizes)).index_add_(0, run, scores)
