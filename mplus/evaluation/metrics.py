"""How answers are scored, and how sure a figure is.

Text is compared after SQuAD's normalisation: lower case, no punctuation, no articles, single spaces.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
"""Draws of a bootstrap interval."""
SHORT_WORDS = 12
"""Most words of an accepted answer that contains-answer is meant for."""
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”´`–—")
DECLINES = re.compile(
    r"\b(i|we) (really )?(do not|don't|cannot|can't|could not|couldn't) (know|say|tell|answer|find|remember|recall)\b"
    r"|\b(i am|i'm) not (sure|aware|certain)\b"
    r"|\bnot (mentioned|specified|stated|known|given|provided)\b"
    r"|\bno (information|mention|idea)\b"
    r"|\b(don't|do not) have (any |enough |that |this |the )*(information|memory|record)\b"
    r"|\bunanswerable\b|^unknown\b"
)


def normalised(text: str) -> str:
    """A text normalised as SQuAD does; only in lower case where nothing would be left."""
    words = ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()
    return " ".join(words) or " ".join(text.lower().split())


def contains_answer(answer: str, accepted: Sequence[str]) -> bool:
    """Whether any accepted answer stands in the answer, as whole words."""
    given = f" {normalised(answer)} "
    return any(f" {normalised(one)} " in given for one in accepted)


def contains_all(answer: str, accepted: Sequence[str]) -> bool:
    """Whether all accepted answers stand in the answer: the parts of a list, in any order."""
    return bool(accepted) and all(contains_answer(answer, [one]) for one in accepted)


def is_short(accepted: str) -> bool:
    """Whether an answer can be expected to hold an accepted one word for word."""
    return len(accepted.split()) <= SHORT_WORDS


def exact_match(answer: str, accepted: Sequence[str]) -> bool:
    """Whether the answer equals an accepted one."""
    return any(normalised(answer) == normalised(one) for one in accepted)


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, of the accepted answer that fits best."""
    given = normalised(answer).split()
    best = 0.0
    for one in accepted:
        wanted = normalised(one).split()
        shared = sum((Counter(given) & Counter(wanted)).values())
        if shared:
            precision, recall = shared / len(given), shared / len(wanted)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def is_declined(answer: str) -> bool:
    """Whether an answer says that it does not know, or says nothing."""
    text = answer.strip().lower().replace("’", "'")
    return not text or DECLINES.search(text) is not None


class Abstention(NamedTuple):
    """How well an answerer knows what it does not know; None where nothing was there to count."""

    precision: float | None
    """Of what was declined, the share that nothing answers."""
    recall: float | None
    """Of what nothing answers, the share that was declined."""
    wrongly_declined: float | None
    """Of what could be answered, the share that was declined."""


def abstention(declined: Sequence[bool], answerable: Sequence[bool]) -> Abstention:
    """Precision and recall of declining."""
    pairs = list(zip(declined, answerable, strict=True))

    def share(of: list[bool]) -> float | None:
        return sum(of) / len(of) if of else None

    return Abstention(
        share([not can for said_no, can in pairs if said_no]),
        share([said_no for said_no, can in pairs if not can]),
        share([said_no for said_no, can in pairs if can]),
    )


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    size: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of some values and its percentile bootstrap interval.

    Args:
        values: One per question.
        clusters: What each belongs to, such as a person or a document: questions about one thing are right or
            wrong together, so whole clusters are drawn. None: each value by itself.

    Raises:
        ValueError: No values.
    """
    if not values:
        raise ValueError("values=[]: expected at least one value to estimate a mean from.")
    names = list(range(len(values))) if clusters is None else list(clusters)
    row = {name: place for place, name in enumerate(dict.fromkeys(names))}
    totals, counts = np.zeros(len(row)), np.zeros(len(row))
    for name, value in zip(names, values, strict=True):
        totals[row[name]] += value
        counts[row[name]] += 1
    drawn = np.random.default_rng(0).integers(len(row), size=(RESAMPLES, len(row)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(totals.sum() / counts.sum()), float(low), float(high), len(values))
