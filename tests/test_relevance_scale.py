"""Scores from 0 to 1: in the order of relevance, and the same whatever else a memory holds."""

import pytest

from mplus.relevance_scale import RelevanceScale
from mplus.testing import tiny_model
from tests.conftest import TINY

TEXTS = ["The spare key is in the blue teapot.", "The library opens at nine.", "The boiler is behind the green door."]


def test_most_of_what_does_not_answer_is_below_a_half() -> None:
    wrong = [0.30, 0.31, 0.33, 0.34, 0.36, 0.41]
    scale = RelevanceScale.above(wrong)
    assert sum(scale.score(match) < 0.5 for match in wrong) >= 5
    assert scale.score(0.52) > 0.9 and scale.score(0.25) < 0.05 and scale.score(scale.middle) == pytest.approx(0.5)
    assert 0 <= scale.score(-1e9) <= scale.score(1e9) <= 1
    assert RelevanceScale.above([0.3]).score(0.3) == pytest.approx(0.5)


def test_search_gives_scores_that_fall_with_relevance_and_need_no_other_texts() -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    model.write(memory, TEXTS, source=["key", "library", "boiler"])
    found = model.search(memory, TEXTS[0])
    assert found[0].source == "key" and [one.score for one in found] == sorted((o.score for o in found), reverse=True)
    assert all(0 <= one.score <= 1 for one in found)
    alone = model.new_memory()
    model.write(alone, TEXTS[0], source="key")
    (only,) = model.search(alone, TEXTS[0])
    (other,) = model.search(alone, "Zxqv zxqv?")
    assert other.score < 0.5 < only.score
