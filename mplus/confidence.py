"""The probability that an answer is right, computed by a fitted curve from evidence of recall and of the read.

Recall gives the relevance of the best source and its margin over the next; the read gives the probabilities of
the answer's tokens. A ``Calibration`` weighs these so that, of answers with confidence 0.7, about 70% are right.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mplus.config import FiniteNumber, Recall


class Evidence(NamedTuple):
    """The numbers from which the confidence in one answer is computed.

    Attributes:
        relevance: Relevance of the best recalled source; 0 if none was recalled.
        margin: ``relevance`` minus that of the next source, or minus 0 (an average chunk's) if there is none.
        mean_log_probability: Mean log probability of the answer's tokens, before sampling settings are applied.
        min_log_probability: Log probability of the answer's least likely token.
        first_entropy: Entropy of the first token's distribution, in nats.
        recalled: Whether any long-term token was read; short-term memory is read whole and not scored.
    """

    relevance: float
    margin: float
    mean_log_probability: float
    min_log_probability: float
    first_entropy: float
    recalled: bool


class TokenTrace:
    """Log probabilities that a model gave the tokens of one answer."""

    def __init__(self) -> None:
        self.log_probabilities: list[float] = []
        self.end_log_probability = 0.0
        self.first_entropy: float | None = None

    def note(self, log_probability: float, entropy: float, *, ends: bool) -> None:
        """Record one step: what the model gave the token, before sampling settings or a constraint.

        The token that ends an answer is not counted, unless the answer is empty.

        Args:
            log_probability: Of the chosen token.
            entropy: Of the distribution it is from; only that of the first step is kept.
            ends: Whether the token ends the answer.
        """
        if self.first_entropy is None:
            self.first_entropy = entropy
        if ends:
            self.end_log_probability = log_probability
        else:
            self.log_probabilities.append(log_probability)

    def evidence(self, relevances: Sequence[float]) -> Evidence | None:
        """The evidence so far, given the relevance of each recalled source; None before the first token."""
        if self.first_entropy is None:
            return None
        tokens = self.log_probabilities or [self.end_log_probability]
        best, second, *_ = [*sorted(relevances, reverse=True), 0.0, 0.0]
        return Evidence(
            best, best - second, sum(tokens) / len(tokens), min(tokens), self.first_entropy, bool(relevances)
        )


class Calibration(BaseModel):
    """A logistic curve from evidence to the share of answers that are right.

    Fitted with ``fit_calibration`` on answers that are known to be right or wrong, and kept in a model's
    ``mplus.json``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recall: Recall
    """The scorer it was fitted with; another scorer's relevance is on another scale."""
    read: Literal["latent", "text"] = "latent"
    """How memory was read in the answers that it was fitted on."""
    num_answers: int = Field(ge=2)
    """Number of answers it was fitted on."""
    intercept: FiniteNumber
    relevance: FiniteNumber
    margin: FiniteNumber
    mean_log_probability: FiniteNumber
    min_log_probability: FiniteNumber
    first_entropy: FiniteNumber
    recalled: FiniteNumber

    def confidence(self, evidence: Evidence) -> float:
        """The probability that an answer with this evidence is right."""
        score = self.intercept + sum(getattr(self, name) * value for name, value in evidence._asdict().items())
        return 1 / (1 + math.exp(-max(min(score, 700.0), -700.0)))


def uncalibrated_confidence(evidence: Evidence) -> float:
    """The geometric mean of the token probabilities: in [0, 1] and higher for surer answers, but not
    the share of right answers.
    """
    return math.exp(min(evidence.mean_log_probability, 0.0))


def fit_calibration(
    evidence: Sequence[Evidence],
    is_right: Sequence[bool],
    *,
    recall: Recall = "late",
    read: Literal["latent", "text"] = "latent",
    shrinkage: float = 1.0,
) -> Calibration:
    """The curve that fits answers known to be right or wrong: logistic regression by Newton's method.

    Args:
        evidence: Evidence of each answer.
        is_right: Whether each answer is right.
        recall: The scorer that was used.
        read: How memory was read (``MPlus.reads``).
        shrinkage: Weight of the squared standardised coefficients against one answer's loss; keeps the
            curve finite if the evidence separates right and wrong answers perfectly.

    Raises:
        ValueError: The numbers of both differ, evidence is not finite, or answers are only right or only wrong.
    """
    if len(evidence) != len(is_right):
        raise ValueError(f"{len(evidence)} rows of evidence for {len(is_right)} answers: expected one per answer.")
    if len(set(is_right)) < 2:
        raise ValueError(
            f"{len(is_right)} answers, {sum(is_right)} of them right: expected some right and some wrong ones to fit."
        )
    rows = torch.tensor([[float(value) for value in row] for row in evidence], dtype=torch.float64)
    if not bool(rows.isfinite().all()):
        place = int((~rows.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"Row {place} of evidence is not finite: {evidence[place]}.")
    mean, deviation = rows.mean(dim=0), rows.std(dim=0, correction=0)
    # Evidence that never varies carries no information; its coefficient stays 0.
    deviation = deviation.where(deviation > 1e-9, 1.0)
    inputs = torch.cat([(rows - mean) / deviation, rows.new_ones(len(rows), 1)], dim=1)
    coefficients = _logistic_regression(inputs, torch.tensor(is_right, dtype=torch.float64), shrinkage)
    slopes = coefficients[:-1] / deviation
    return Calibration(
        recall=recall,
        read=read,
        num_answers=len(is_right),
        intercept=float(coefficients[-1] - slopes @ mean),
        **dict(zip(Evidence._fields, slopes.tolist(), strict=True)),
    )


def _logistic_regression(
    inputs: Float[Tensor, "n f"], is_right: Float[Tensor, " n"], shrinkage: float
) -> Float[Tensor, " f"]:
    """Coefficients that minimise the loss. The last one, the intercept, is not shrunk."""
    penalty = torch.full((inputs.shape[1],), shrinkage, dtype=torch.float64)
    penalty[-1] = 1e-6
    coefficients = torch.zeros(inputs.shape[1], dtype=torch.float64)

    def loss(at: Tensor) -> float:
        scores = inputs @ at
        losses = torch.nn.functional.binary_cross_entropy_with_logits(scores, is_right, reduction="sum")
        return float(losses + (penalty * at.square()).sum() / 2)

    for _ in range(100):
        likely = (inputs @ coefficients).sigmoid()
        gradient = inputs.T @ (likely - is_right) + penalty * coefficients
        curvature = (inputs * (likely * (1 - likely))[:, None]).T @ inputs + penalty.diag()
        step = torch.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(coefficients - size * step) > loss(coefficients) and size > 1e-6:
            size /= 2
        coefficients = coefficients - size * step
        if float(gradient.abs().max()) < 1e-9:
            break
    return coefficients
