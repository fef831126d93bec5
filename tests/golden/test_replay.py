from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.replay import Report, replay

HERE = Path(__file__).parent
TRACES = sorted((HERE / "traces").glob("*.json"))


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_published_runs_are_reproduced(trace: Path) -> None:
    report = replay(HERE / "tiny_mplus", trace)
    assert report.failures == []
    assert report.differences


def test_there_are_traces() -> None:
    assert len(TRACES) == 6


@pytest.mark.parametrize("name", ["inject0/delta_memory", "inject0/after/memory_ages", "inject0/drop_dropped"])
def test_replay_notices_an_altered_recording(tmp_path: Path, name: str) -> None:
    trace = TRACES[0]
    tensors = load_file(trace.with_suffix(".safetensors"))
    tensors[name] = tensors[name] + torch.ones_like(tensors[name]) * (1 if tensors[name].dtype == torch.int64 else 1e-3)
    save_file(tensors, str(tmp_path / f"{trace.stem}.safetensors"))
    (tmp_path / trace.name).write_text(trace.read_text())
    report = replay(HERE / "tiny_mplus", tmp_path / trace.name)
    assert any(name.rsplit("/", 1)[1] in failure for failure in report.failures)


def test_report_counts_a_nan_as_a_difference() -> None:
    report = Report(1e-4)
    report.close("x", torch.tensor([float("nan")]), torch.tensor([0.0]))
    assert report.failures
