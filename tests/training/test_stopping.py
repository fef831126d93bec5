"""A run that a signal asks to stop."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mplus.training.stopping import StoppedError, stop_signals
from tests.training.test_loop import STEPS, assert_same_leaves, one_thread, run, task, whole

__all__ = ["one_thread", "whole"]  # fixtures


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """As for a command in a terminal: tests that run in the background are told to ignore Ctrl+C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_behind_a_checkpoint(
    whole, number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, _ = task()
    loss = stopped.loss

    def signalled(step: int, sample: int):
        if (step, sample) == (1, 0):
            os.kill(os.getpid(), number)
        return loss(step, sample)

    stopped.loss = signalled
    before = signal.getsignal(number)
    with pytest.raises(StoppedError) as stop:
        run(stopped, tmp_path)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"], "between two of its own"
    assert f"Stopped behind step 2 of {STEPS}; --resume goes on." in capsys.readouterr().err
    again, found = task()
    run(again, tmp_path)
    assert_same_leaves(found, whole[1])


def test_a_second_signal_stops_it_at_once(tmp_path: Path) -> None:
    stopped, _ = task()
    loss = stopped.loss

    def signalled(step: int, sample: int):
        if (step, sample) == (1, 0):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return loss(step, sample)

    stopped.loss = signalled
    with pytest.raises(KeyboardInterrupt):
        run(stopped, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_what_was_left_out_by_whoever_started_the_run_stays_so() -> None:
    """A shell has what it runs in the background ignore Ctrl+C, which is meant for what runs before it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as stopping:
            os.kill(os.getpid(), signal.SIGINT)
            assert stopping() == 0 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_that_is_asked_to_stop_saves_before_long(tmp_path: Path) -> None:
    """Whoever sends SIGTERM may end it within half a minute; figures of held-out texts may take longer."""
    stopped, _ = task()
    loss, measured = stopped.loss, list[int]()

    def signalled(step: int, sample: int):
        if (step, sample) == (1, 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(step, sample)

    stopped.loss, stopped.measure = signalled, lambda: measured.append(1) or {}
    with pytest.raises(StoppedError):
        run(stopped, tmp_path)
    assert not measured
