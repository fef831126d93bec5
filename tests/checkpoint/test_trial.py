"""What a trial keeps: what it measured, and nothing that says more about the machine than about the model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mplus.checkpoint import trial
from mplus.errors import UnsupportedModelError
from mplus.testing import tiny_model


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    found = tiny_model().weights.backbone.model  # which has its own trial
    monkeypatch.setattr(trial, "_TRIED", {})
    monkeypatch.setattr(trial, "KEPT_FROM", 0)
    monkeypatch.setattr(trial, "records", lambda: tmp_path)
    return found


def test_a_full_device_is_not_held_against_the_model(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*_: Any) -> float:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(trial, "_difference", full)
        with pytest.raises(torch.OutOfMemoryError):
            trial.tried(model, 0)
    assert list(tmp_path.iterdir()) == []
    assert trial.tried(model, 0)[1].way == "llama"


def test_an_error_of_the_moment_is_not_kept(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fails(*_: Any) -> float:
        raise RuntimeError("a library is missing")

    with monkeypatch.context() as patched:
        patched.setattr(trial, "_difference", fails)
        with pytest.raises(UnsupportedModelError, match="a library is missing"):
            trial.tried(model, 0)
    assert list(tmp_path.iterdir()) == []
    assert trial.tried(model, 0)[1].refused == ""


def test_a_measured_difference_is_kept(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with monkeypatch.context() as patched:
        patched.setattr(trial, "_difference", lambda *_: 0.5)
        with pytest.raises(UnsupportedModelError, match="differ from the plain model's by 0.5"):
            trial.tried(model, 0)
    assert len(list(tmp_path.glob("*.json"))) == 1
    with pytest.raises(UnsupportedModelError, match="differ"):
        trial.tried(model, 0)


def test_without_a_home_folder_models_load(model: Any, monkeypatch: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(trial, "records", homeless)
    assert trial.tried(model, 0)[1].refused == ""
