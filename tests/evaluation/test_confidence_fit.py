"""A calibration fitted on one run's raw answers and checked on another's."""

import json
from pathlib import Path

import pytest

from mplus.confidence import Calibration
from mplus.evaluation.confidence_fit import checked, fitted, given_answers, keep, recall_of
from tests.evaluation.run_folders import run_folder


def test_fitted_on_one_run_it_holds_on_another(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "train", 0)
    answers = given_answers(folder, "mplus")
    assert len(answers) == 600
    calibration = fitted(answers, recall=recall_of(folder))
    assert calibration.recall == "late" and calibration.num_answers == 600 - 20
    found = checked(given_answers(run_folder(tmp_path / "dev", 1), "mplus"), calibration)
    assert found.error < 0.08
    assert found.recommended.abstention.recall is not None and found.recommended.abstention.recall > 0.6
    assert (found.recommended.abstention.wrongly_declined or 0) <= 0.1
    recalls = [t.abstention.recall or 0 for t in found.thresholds]
    rights = [t.right or 0 for t in found.thresholds]
    assert recalls == sorted(recalls) and rights == sorted(rights, reverse=True)
    # Without a threshold only what declined by itself has been declined.
    assert found.thresholds[0].abstention.recall == pytest.approx(20 / 200)


def test_a_threshold_counts_as_a_loop_does(tmp_path: Path) -> None:
    answers = given_answers(run_folder(tmp_path / "run", 2), "mplus")
    calibration = fitted(answers, recall="late")
    at = next(t for t in checked(answers, calibration).thresholds if t.below == 0.4)
    declined = total = 0
    for one in answers:
        if not one.is_answerable:
            total += 1
            declined += one.is_declined or calibration.confidence(one.evidence) < 0.4
    assert at.abstention.recall == pytest.approx(declined / total)


def test_it_is_kept_beside_the_weights(tmp_path: Path) -> None:
    calibration = fitted(given_answers(run_folder(tmp_path / "run", 3), "mplus"), recall="late")
    with pytest.raises(ValueError, match=r"holds no mplus.json"):
        keep(calibration, tmp_path)
    (tmp_path / "mplus.json").write_text('{"format": 1, "recall_layer": 4}', encoding="utf-8")
    keep(calibration, tmp_path)
    saved = json.loads((tmp_path / "mplus.json").read_text(encoding="utf-8"))
    assert saved["recall_layer"] == 4 and Calibration.model_validate(saved["calibration"]) == calibration
    assert not (tmp_path / "mplus.new").exists()


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        given_answers(tmp_path, "mplus")
    with pytest.raises(ValueError, match="mode 'rag'"):
        given_answers(run_folder(tmp_path / "run", 4, answers=3), "rag")
