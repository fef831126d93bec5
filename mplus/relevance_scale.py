"""Relevance as a score from 0 to 1, which hardly depends on what else a memory holds.

Relevance is counted above that of a usual chunk of the same memory, so that a single text has none. Scores are made of
the match itself, on a scale that facts of our own give: how well questions match what does not answer them.
"""

import math
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import torch

from mplus.config import EMBEDDING, MemoryConfig
from mplus.forks import ProcessLock
from mplus.memory.memory import Memory
from mplus.recall.choose import rank_sources
from mplus.self_check import FACTS
from mplus.weights import Weights
from mplus.write.writer import Writer

LEAST_WIDTH = 0.01


@dataclass(frozen=True)
class RelevanceScale:
    """A logistic scale of matches.

    Attributes:
        middle: The match whose score is 0.5.
        width: How much more gives 0.73.
    """

    middle: float
    width: float

    @classmethod
    def above(cls, wrong: list[float]) -> "RelevanceScale":
        """The scale on which most of what does not answer is below 0.5.

        Args:
            wrong: For several questions, the best match with a text that does not answer it.
        """
        spread = pstdev(wrong)
        return cls(fmean(wrong) + spread, max(0.75 * spread, LEAST_WIDTH))

    def score(self, match: float) -> float:
        """The score of a match, from 0 to 1."""
        return 1 / (1 + math.exp(min(max((self.middle - match) / self.width, -60.0), 60.0)))


class RelevanceScales:
    """The scale of one model; made when a score is first asked for, which writes and asks a dozen short sentences."""

    def __init__(self, weights: Weights, tokenizer: Any) -> None:
        self._weights, self._tokenizer = weights, tokenizer
        self._late: RelevanceScale | None = None
        self._lock = ProcessLock()

    def score(self, config: MemoryConfig, match: float) -> float:
        """The score of a match in a memory of some layout.

        With an embedder alone it is the cosine, as embedders' own stores count; with the published scorers the match
        itself, between 0 and 1.
        """
        if config.recall == EMBEDDING or config.token_recall != "late" or self._tokenizer is None:
            return min(max(match, 0.0), 1.0)
        with self._lock:
            if self._late is None:
                self._late = self._measured()
        return self._late.score(match)

    @torch.inference_mode()
    def _measured(self) -> RelevanceScale:
        weights, config = self._weights, MemoryConfig.for_window(self._weights.backbone.window)
        memory = Memory(config, weights.empty_state(config), model_fingerprint=weights.fingerprints[config.recall])
        texts, names = [text for text, _, _ in FACTS], [str(n) for n in range(len(FACTS))]
        writer = Writer(weights, self._tokenizer)
        writer.write([memory], [texts], sources=[names], metadata=[None], keep_text=False, progress=None)
        track, _ = memory.state.track_of(weights.recall_layer)
        wrong: list[float] = []
        for number, (_, question, _) in enumerate(FACTS):
            ids = self._tokenizer(question, add_special_tokens=False)["input_ids"]
            asked = weights.question(ids, track.recall_layer, None)
            ranked = rank_sources(weights.scorers[config.recall], memory.state, config, asked, None)
            wrong.append(max((r.match for r in ranked if r.number != number), default=0.0))
        return RelevanceScale.above(wrong)
