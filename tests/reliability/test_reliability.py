"""Each of these runs as a process of its own, without the type checks of the other tests, so that much can happen.

MPLUS_RELIABILITY=full runs them at full length; docs/concepts/guarantees.md says what that gave.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FULL = os.environ.get("MPLUS_RELIABILITY") == "full"
KILLS = 200 if FULL else 60
MUTATIONS = 500
STRESS_SECONDS = float(os.environ.get("MPLUS_STRESS_SECONDS", "120" if FULL else "4"))

SOAK_SECONDS = float(os.environ.get("MPLUS_SOAK_SECONDS", "1200" if FULL else "6"))


def run(script: str, *arguments: object, prefix: tuple[str, ...] = ()) -> Any:
    command = [*prefix, sys.executable, "-m", f"tests.reliability.{script}", *map(str, arguments)]
    root = Path(__file__).parent.parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="victims are forks, which this system does not have")
def test_a_kill_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    found = run("kills", tmp_path, "--kills", KILLS)
    assert sum(sum(outcomes.values()) for outcomes in found["outcomes"].values()) == KILLS
    assert found["leftovers"] == []
    # The moments are random, and not all of them are before or after everything.
    assert any("old, killed" in outcomes for outcomes in found["outcomes"].values())


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_altered_memories_are_refused_or_open_as_they_were(tmp_path: Path) -> None:
    found = run("mutations", tmp_path, "--count", MUTATIONS)
    assert found["wrong"] == []
    assert sum(found["outcomes"].values()) == MUTATIONS
    assert found["outcomes"]["refused"] >= 0.9 * MUTATIONS


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_or_read_only_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("no file system can be mounted here: needs unshare and user namespaces")
    found = run("disks", tmp_path, prefix=("unshare", "-Urm"))
    full = [result for name, result in found.items() if name.startswith("full")]
    assert len(full) == 5
    for result in full:
        assert result["intact"]
        assert result["garbage"] == []
        assert result["errno"] == "ENOSPC"
        assert "No space left" in result["message"]
    assert found["room again"] == ["a", "c"]
    for name in ("save", "open", "export"):
        result = found[f"read-only, {name}"]
        assert result["intact"]
        assert result["errno"] == "EROFS"
        assert "Read-only" in result["message"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forks, which this system does not have")
@pytest.mark.timeout(STRESS_SECONDS + 600)
def test_many_threads_and_processes_lose_and_cross_nothing(tmp_path: Path) -> None:
    found = run("stress", tmp_path, "--seconds", STRESS_SECONDS, *(() if FULL else ("--processes", 2, "--threads", 8)))
    assert found["lost"] == []
    assert found["crossed"] == []
    assert found["never begun"] == []
    assert found["failed"] == []
    assert set(found["exit_codes"]) == {0}
    assert found["kills"] >= 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_works_or_gets_a_clear_error(tmp_path: Path) -> None:
    found = run("forks", tmp_path)
    assert found["locks"] == ["a", "child"]  # no lock that a thread of the parent held is waited for
    opened = found["open"]
    for name in ("opened in the child", "still held", "carol still held"):
        assert opened[name].startswith("MemoryLockedError"), name
    assert opened["saved"] == ["parent"]
    assert opened["saved by the child"].startswith("refused: Memory 'carol' was opened by process")
    assert found["scheduler"]["asked"] == 2
    assert found["scheduler"]["read on"].startswith("refused: This was asked in process")


def test_whatever_is_given_works_or_is_refused_by_name(tmp_path: Path) -> None:
    assert run("given", tmp_path) == {"raw": [], "taken": []}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="victims are forks, which this system does not have")
def test_an_erasure_that_is_killed_serves_nothing_erased_and_loses_nothing_new(tmp_path: Path) -> None:
    """On one machine and behind a url, where another one may make the memory anew before the first comes back."""
    found = run("erasures", tmp_path, "--every", 1 if FULL else 7)
    assert found["wrong"] == []
    assert all(sum(outcomes.values()) > 1 for outcomes in found["outcomes"].values())


def test_every_call_to_the_file_system_may_fail(tmp_path: Path) -> None:
    found = run("faults", tmp_path, "--every", 1 if FULL else 5)
    assert found["wrong"] == []
    assert all(sum(outcomes.values()) > 3 for outcomes in found["outcomes"].values())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which file is meant")
def test_a_power_cut_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    """Whatever was not forced to disk is lost, in part, or there in another order."""
    found = run("power", tmp_path, "--cuts", 700 if FULL else 140)
    assert found["wrong"] == []
    assert all(outcomes["new"] >= 1 for outcomes in found["outcomes"].values())


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for memory, threads and files")
@pytest.mark.timeout(SOAK_SECONDS + 600)
def test_eight_users_for_a_long_time_cross_nothing_and_take_no_more_and_more(tmp_path: Path) -> None:
    found = run("soak", tmp_path, "--seconds", SOAK_SECONDS)
    assert found["turns"] >= 8
    assert found["crossed"] == []
    assert found["failed"] == []
    assert found["threads"][0] == found["threads"][1]
    assert found["files"][0] == found["files"][1]
    second, last = (found[f"resident MB in the {quarter} quarter"] for quarter in ("second", "last"))
    assert last <= 1.05 * second + 16
