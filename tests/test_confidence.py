import math
import random
from pathlib import Path

import pytest
import torch

import mplus
from mplus.confidence import Calibration, Evidence, TokenTrace, fit_calibration, uncalibrated_confidence
from mplus.errors import CheckpointError
from mplus.model import MPlus
from mplus.testing import tiny_model
from tests.conftest import TINY

QUESTION = "Which box is blue?"


def drawn(rng: random.Random) -> Evidence:
    mean = -rng.expovariate(1)
    margin = rng.uniform(0, 0.2)
    return Evidence(
        margin + rng.uniform(0, 0.3), margin, mean, mean - rng.expovariate(1), rng.uniform(0, 3), rng.random() < 0.9
    )


def truth(evidence: Evidence) -> float:
    return 1 / (
        1 + math.exp(-(1 + 8 * evidence.margin + 2 * evidence.mean_log_probability - 0.5 * evidence.first_entropy))
    )


def test_a_fitted_curve_is_the_share_of_right_answers() -> None:
    rng = random.Random(0)
    evidence = [drawn(rng) for _ in range(4000)]
    right = [rng.random() < truth(e) for e in evidence]
    calibration = fit_calibration(evidence[:3000], right[:3000])
    held_out = [(calibration.confidence(e), r, truth(e)) for e, r in zip(evidence[3000:], right[3000:], strict=True)]
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = [(c, r) for c, r, _ in held_out if low <= c < low + 0.25]
        assert abs(sum(c for c, _ in inside) - sum(r for _, r in inside)) / len(inside) < 0.1
    assert sum(abs(c - t) for c, _, t in held_out) / len(held_out) < 0.04
    assert calibration.num_answers == 3000


def test_fitting_is_at_the_minimum_of_its_loss() -> None:
    rng = random.Random(1)
    evidence = [drawn(rng) for _ in range(60)]
    right = torch.tensor([rng.random() < truth(e) for e in evidence], dtype=torch.float64)
    fitted = fit_calibration(evidence, right.bool().tolist(), shrinkage=2.0)
    rows = torch.tensor([[float(v) for v in e] for e in evidence], dtype=torch.float64)
    slopes = torch.tensor([getattr(fitted, name) for name in Evidence._fields], dtype=torch.float64, requires_grad=True)
    intercept = torch.tensor(fitted.intercept, dtype=torch.float64, requires_grad=True)
    scores = rows @ slopes + intercept
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, right, reduction="sum")
    (loss + (slopes * rows.std(0, correction=0)).square().sum()).backward()
    assert slopes.grad is not None and intercept.grad is not None
    assert float(slopes.grad.abs().max()) < 1e-4
    assert abs(float(intercept.grad)) < 1e-3
    assert [fitted.confidence(e) for e in evidence] == pytest.approx(scores.sigmoid().tolist())


def test_perfectly_separable_answers_give_a_finite_curve() -> None:
    sure, unsure = Evidence(0.3, 0.2, -0.1, -0.2, 0.1, True), Evidence(0.1, 0.0, -3.0, -6.0, 4.0, True)
    calibration = fit_calibration([sure] * 5 + [unsure] * 5, [True] * 5 + [False] * 5)
    assert 0.7 < calibration.confidence(sure) < 1
    assert 0 < calibration.confidence(unsure) < 0.3
    extreme = Evidence(1e9, 1e9, 0.0, 0.0, 0.0, True)
    assert 0 <= calibration.confidence(extreme) <= 1
    assert 0 <= calibration.confidence(Evidence(-1e9, -1e9, -1e9, -1e9, 1e9, True)) <= 1


@pytest.mark.parametrize(
    ("evidence", "right", "message"),
    [
        (2, [True], "2 rows.*1 answers"),
        (2, [True, True], "some right and some wrong"),
        (0, [], "some right and some wrong"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(evidence: int, right: list[bool], message: str) -> None:
    rows = [Evidence(0.1, 0.0, -1.0, -1.0, 1.0, True)] * evidence
    with pytest.raises(ValueError, match=message):
        fit_calibration(rows, right)
    with pytest.raises(ValueError, match="Row 1 of evidence is not finite"):
        fit_calibration(
            [rows[0], rows[0]._replace(margin=math.inf)]
            if rows
            else [Evidence(*[0.0] * 5, True), Evidence(math.nan, *[0.0] * 4, True)],
            [True, False],
        )


def test_a_trace_has_the_log_probabilities_of_the_answer() -> None:
    trace = TokenTrace()
    assert trace.evidence([0.3]) is None
    for log_probability, entropy in ((-1.0, 2.5), (-3.0, 9.0), (-9.0, 9.0)):
        trace.note(log_probability, entropy, ends=log_probability == -9.0)
    found = trace.evidence([0.1, 0.4, 0.25])
    assert found is not None
    assert (found.mean_log_probability, found.min_log_probability, found.first_entropy) == (-2.0, -3.0, 2.5)
    assert (found.relevance, found.margin, found.recalled) == (0.4, pytest.approx(0.15), True)
    assert trace.evidence([])[:2] == (0.0, 0.0)  # type: ignore[index]
    empty = TokenTrace()
    empty.note(-0.25, 1.0, ends=True)
    assert empty.evidence([]).mean_log_probability == -0.25  # type: ignore[union-attr]


def test_every_answer_has_a_confidence(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    answer = model.generate(memory, QUESTION, max_new_tokens=6)
    assert answer.evidence is not None and answer.evidence.recalled
    assert answer.confidence == uncalibrated_confidence(answer.evidence)
    assert not answer.is_calibrated and not answer.abstained
    best = max(r.relevance for r in answer.recalled)  # short-term memory, which is read in any case, may have more
    assert 0 < answer.evidence.relevance <= best
    batched = model.generate_batch([memory, model.new_memory()], [QUESTION, QUESTION], max_new_tokens=6)
    assert batched[0].confidence == pytest.approx(answer.confidence, abs=1e-4)
    assert batched[1].evidence is not None and not batched[1].evidence.recalled


def test_a_constraint_does_not_change_the_traced_probabilities(model: MPlus, text: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")

    def only_z(_: list[int], scores: torch.Tensor) -> torch.Tensor:
        masked = torch.full_like(scores, float("-inf"))
        masked[57] = 0.0
        return masked

    forced = model.generate(memory, QUESTION, max_new_tokens=3, processors=[only_z])
    assert forced.confidence < 0.9


CALIBRATION = Calibration(
    recall="late",
    num_answers=10,
    intercept=0.5,
    relevance=1.0,
    margin=2.0,
    mean_log_probability=0.3,
    min_log_probability=0.0,
    first_entropy=-0.1,
    recalled=0.2,
)


def test_a_calibration_is_used_saved_and_loaded(tmp_path: Path, text: str) -> None:
    model = tiny_model(memory=TINY)
    memory = model.new_memory()
    model.write(memory, text, source="a")
    calibrated = model.with_calibration(CALIBRATION)
    answer = calibrated.generate(memory, QUESTION, max_new_tokens=4)
    assert answer.evidence is not None and answer.is_calibrated
    assert answer.confidence == CALIBRATION.confidence(answer.evidence)
    assert not model.generate(memory, QUESTION, max_new_tokens=4).is_calibrated
    calibrated.save_pretrained(tmp_path)
    loaded = MPlus.from_pretrained(tmp_path)
    again = loaded.generate(memory, QUESTION, max_new_tokens=4)
    assert again.confidence == pytest.approx(answer.confidence, abs=1e-5) and again.is_calibrated
    parts = tmp_path / "mplus.json"
    parts.write_text(parts.read_text().replace('"num_answers": 10', '"num_answers": "many"'))
    with pytest.raises(CheckpointError, match="calibration.*num_answers"):
        MPlus.from_pretrained(tmp_path)


def test_a_calibration_counts_only_for_what_it_was_fitted_on(text: str) -> None:
    model = tiny_model(memory=TINY).with_calibration(CALIBRATION)
    other = model.new_memory(config=mplus.MemoryConfig(**(TINY.model_dump() | {"recall": "attention"})))
    model.write(other, text, source="a")
    assert not model.generate(other, QUESTION, max_new_tokens=2).is_calibrated
    assert not model.generate(model.new_memory(), QUESTION, max_new_tokens=2).is_calibrated
