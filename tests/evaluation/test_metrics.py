"""Scores against slow, obvious versions of themselves."""

import random
import re
import string

import pytest

from mplus.evaluation.metrics import (
    abstention,
    contains_answer,
    estimate,
    exact_match,
    is_declined,
    normalised,
    token_f1,
)

WORDS = ["the", "cat", "sat", "a", "mat", "in", "1999", "N.F.L.", "an", "York's", "day"]


def obvious_normalised(text: str) -> str:
    """SQuAD's own four steps, one after the other."""
    text = text.lower()
    text = "".join(c for c in text if c not in string.punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


def obvious_f1(answer: str, accepted: str) -> float:
    given, wanted = obvious_normalised(answer).split(), obvious_normalised(accepted).split()
    left = list(wanted)
    shared = 0
    for word in given:
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_scores_agree_with_obvious_ones_on_random_texts() -> None:
    rng = random.Random(0)
    for _ in range(300):
        answer = " ".join(rng.choices(WORDS, k=rng.randint(1, 7))) + rng.choice(["", ".", "!"])
        accepted = " ".join(rng.choices(WORDS[1:3] + WORDS[4:8], k=rng.randint(1, 3)))
        assert normalised(accepted) == obvious_normalised(accepted)
        assert exact_match(answer, [accepted]) == (normalised(answer) == obvious_normalised(accepted))
        if obvious_normalised(answer):
            assert token_f1(answer, [accepted]) == pytest.approx(obvious_f1(answer, accepted))
        given, wanted = obvious_normalised(answer).split(), obvious_normalised(accepted).split()
        runs = [given[i : i + len(wanted)] for i in range(len(given))]
        assert contains_answer(answer, [accepted]) == (wanted in runs)


def test_contains_counts_whole_words_of_any_accepted_answer() -> None:
    assert contains_answer("It was built in 1912.", ["1911", "1912"])
    assert not contains_answer("It was built in 1912.", ["191", "12"])
    assert contains_answer("At 3:15, I think", ["3:15"])
    assert not contains_answer("anything", [])


def test_an_answer_of_articles_only_is_not_empty() -> None:
    assert normalised("The A") == "the a"
    assert contains_answer("Vitamin A", ["a"]) is False
    assert exact_match("A", ["a"])


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know.",
        "Sorry, I don’t know that.",
        "",
        "I'm not sure.",
        "That is not mentioned in the text.",
        "I do not have that information.",
    ],
)
def test_declines(answer: str) -> None:
    assert is_declined(answer)


@pytest.mark.parametrize("answer", ["Biscuit", "The unknown soldier", "You know it is Graz.", "The answer is no."])
def test_answers_are_not_declines(answer: str) -> None:
    assert not is_declined(answer)


def test_abstention_counts() -> None:
    declined = [True, True, False, False, True]
    answerable = [False, True, True, False, False]
    found = abstention(declined, answerable)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.wrongly_declined == pytest.approx(1 / 2)
    assert abstention([False], [True]) == (None, None, 0.0)


def test_a_bootstrap_interval_agrees_with_a_loop() -> None:
    values = [1.0] * 30 + [0.0] * 20
    rng = random.Random(1)
    means = sorted(sum(rng.choices(values, k=50)) / 50 for _ in range(4000))
    found = estimate(values)
    assert found.mean == pytest.approx(0.6)
    assert found.low == pytest.approx(means[100], abs=0.03)
    assert found.high == pytest.approx(means[3899], abs=0.03)
    assert found == estimate(values)


def test_clusters_that_agree_within_make_an_interval_wider() -> None:
    values = [float(n // 10 % 2) for n in range(100)]
    apart, together = estimate(values), estimate(values, [n // 10 for n in range(100)])
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_no_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate([])
