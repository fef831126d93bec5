"""Paired tests and means over data sets, on hand-made answers."""

from itertools import product
from typing import Any

import pytest

from mplus.evaluation.comparison import as_json, judged, markdown, mcnemar, means, paired


def answers(mode: str, right: str, *, level: int = 0, accepted: str = "Graz", group: str = "") -> list[dict[str, Any]]:
    return [
        {
            "mode": mode,
            "level": level,
            "id": f"q{number}",
            "kind": "told",
            "group": group,
            "cluster": f"c{number}",
            "accepted": [accepted],
            "gold": ["x"],
            "found": [{"name": "x", "relevance": 1.0}],
            "rank": 1,
            "answerable": True,
            "contains": one == "1",
            "exact": False,
            "f1": 0.5,
            "declined": False,
            "seconds": 0.1,
        }
        for number, one in enumerate(right)
    ]


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (5, 1), (4, 4), (9, 2)])
def test_the_exact_test_counts_every_split_as_uneven(one: int, other: int) -> None:
    total = one + other
    counts = [sum(toss) for toss in product((0, 1), repeat=total)]
    as_uneven = sum(abs(2 * count - total) >= abs(one - other) for count in counts)
    assert mcnemar(one, other) == pytest.approx(as_uneven / 2**total)


def test_pairs_are_the_same_questions() -> None:
    rows = [*answers("mplus", "1110"), *answers("rag", "0011"), *answers("rag", "11", level=9)]
    one = paired(rows, "rag", 0)
    assert one is not None and (one.questions, one.only_ours, one.only_other) == (4, 2, 1)
    assert paired(rows, "rag", 9) is None and paired(rows, "mplus", 0) is None
    assert str(one) == "+2 −1, p = 1"


def test_each_set_counts_once_and_pairs_add_up() -> None:
    sets = {
        "small": [*answers("mplus", "11"), *answers("rag", "00")],
        "large": [
            *answers("mplus", "1100"), *answers("mplus", "1000", level=9), *answers("rag", "1000"), *answers("rag", "0000", level=9),
        ],
        "other": answers("mplus", "00"),
    }  # fmt: skip
    found = {mean.mode: mean for mean in means(sets)}
    assert found["mplus"].sets == 3 and found["mplus"].contains == pytest.approx(0.5)
    assert found["rag"].contains == pytest.approx(0.125) and found["rag"].contains_far == 0
    against = found["rag"].against
    assert against is not None and (against.questions, against.only_ours) == (6, 3)
    text = markdown(sets)
    assert "| rag | 2 of 3 |" in text and "| large | 9 | mplus | 4 |" in text
    figures = as_json(sets)
    assert figures["sets"]["small"][1]["against"]["p"] == 0.5 and len(figures["means"]) == 2


def test_long_answers_and_common_questions_are_not_judged_by_words() -> None:
    assert judged(answers("mplus", "1", accepted="word " * 13)) == []
    assert judged(answers("mplus", "1", group="common")) == []
