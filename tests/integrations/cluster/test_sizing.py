"""What many users need: replicas that keep the wait, bytes that add up, and mistakes that are told."""

import math
import os
import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mplus_integrations.cluster.sizing import Demand, Measured, most_used, needed

ROOT = Path(__file__).parents[3]


def test_replicas_are_as_few_as_keep_the_wait_and_one_more() -> None:
    demand, measured = Demand(users=10_000), Measured()
    found = needed(demand, measured)
    patience = demand.wait_seconds / found.busy_seconds

    def late(replicas: int) -> float:
        used = found.answers_per_second * found.busy_seconds / replicas
        return used * math.exp(-(1 - used) * patience) if used < 1 else 1.0

    assert late(found.replicas - 1) <= 0.01
    assert late(found.replicas - 3) > 0.01, "two fewer would not do"


def test_a_thousand_times_the_users_need_about_a_thousand_times_as_much() -> None:
    few, many = needed(Demand(users=10_000)), needed(Demand(users=10_000_000))
    assert many.stored_bytes == pytest.approx(1000 * few.stored_bytes)
    assert many.answers_per_second == pytest.approx(1000 * few.answers_per_second)
    assert 800 < (many.replicas - 1) / (few.replicas - 1) < 1200


def test_bytes_and_requests_are_those_of_the_figures() -> None:
    measured = Measured(bytes_per_token=10, bytes_per_save=1000, requests_per_read=1, requests_per_save=5)
    demand = Demand(users=100, active=0.5, answers=2, written_tokens=30, saves=3, kept_tokens=7, busiest=2)
    found = needed(demand, measured)
    assert found.stored_bytes == 100 * 7 * 10
    assert found.sent_bytes_per_day == 50 * 30 * 10 + 50 * 3 * 1000
    assert found.answers_per_second == pytest.approx(50 * 2 * 2 / 86_400)
    assert found.storage_requests_per_second == pytest.approx((50 * 2 + 50 * 3 * 5) * 2 / 86_400)


def test_the_page_has_what_is_computed_and_the_simulation_keeps_the_wait() -> None:
    script = [sys.executable, "benchmarks/cluster_sizing.py", "--runs", "3", "--minutes", "30"]
    done = subprocess.run(script, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "how-to" / "size-a-cluster.md").read_text(encoding="utf-8")
    for row in done.stdout.splitlines()[2:]:
        users, replicas, answers, _, _, _, requests, _, late, begun_late, longer = (
            cell.strip() for cell in row.strip("| ").split("|")
        )
        (told,) = (line for line in page.splitlines() if line.startswith(f"| {users} |"))
        assert [replicas, requests] == [told.split(" | ")[n] for n in (1, 5)], (row, told)
        assert float(answers) == pytest.approx(float(told.split(" | ")[2]), rel=0.01)
        assert float(late) <= 0.015, "at most 1% is asked for; these are three half hours"
        assert float(begun_late) == 0, "the page says so"
        median, slowest = map(float, longer.split(", "))
        assert 2 < median < 5 and 20 < slowest < 45, "the page has 3 to 4, and 28 to 31"


def test_the_simulation_of_answers_beside_each_other_is_exact_where_it_can_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "cluster_sizing.py"))
    speed, together = script["speed"], script["together"]
    assert [round(speed(users)) for users in (1, 4, 16, 99)] == [21, 35, 69, 69]
    assert speed(1) < speed(2) < speed(3) < speed(4) < speed(10) < speed(16)
    demand = Demand(users=1, answers=1000)
    few = together(1, demand, Measured(), 10_000.0, random.Random(0))
    assert len(few.until_begun) == len(few.longer) > 100 and max(few.until_begun) == 0
    assert min(few.longer) > -1e-6 and sorted(few.longer)[len(few.longer) // 2] < 0.5, "mostly alone"
    # Shared alike at a speed that does not grow, the mean time of a queue is work / (1 - used), as of one by one.
    monkeypatch.setitem(together.__globals__, "SPEEDS", {1: 50.0, 10**6: 50.0})
    demand = Demand(users=1, answers=18_000, busiest=1, answer_tokens=100, written_tokens=0)
    even = together(1, demand, Measured(first_token_seconds=1e-9), 300_000.0, random.Random(1))
    used = 18_000 / 86_400 * 2
    assert sum(even.longer) / len(even.longer) == pytest.approx(2 / (1 - used) - 2, rel=0.15)


@given(st.integers(1, 10**8), st.floats(0.01, 1), st.floats(0.1, 100), st.floats(0.1, 60))
def test_more_users_never_need_less_and_no_replica_is_overloaded(
    users: int, active: float, answers: float, wait: float
) -> None:
    found = needed(Demand(users=users, active=active, answers=answers, wait_seconds=wait))
    more = needed(Demand(users=2 * users, active=active, answers=answers, wait_seconds=wait))
    assert found.used < 1 and found.replicas >= 2 and more.replicas >= found.replicas


@pytest.mark.parametrize("patience", [0.5, 3.0, 20.0])
def test_the_formula_of_waiting_is_that_of_a_simulated_queue(patience: float) -> None:
    used, draw = most_used(patience, late=0.1), random.Random(0)
    wait, late, requests = 0.0, 0, 100_000
    for _ in range(requests):  # Lindley's recursion, one second of work for a request
        wait = max(wait + draw.expovariate(1.0) - draw.expovariate(used), 0.0)
        late += wait > patience
    assert late / requests == pytest.approx(0.1, rel=0.25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"users": 0}, "users=0"),
        ({"users": 10, "active": 1.5}, "active=1.5"),
        ({"users": 10, "answers": -1}, "answers"),
        ({"users": 10**6, "answers": 0, "written_tokens": 10**6}, "answers=0"),
    ],
)
def test_demands_that_cannot_be_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demand(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"answer_tokens": 1_000_000},
        {"answers": 0.001, "written_tokens": 10**8},
        {"answers": 5_000.0, "wait_seconds": 0.01},
    ],
)
def test_a_wait_that_no_number_of_replicas_keeps_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"wait_seconds=.*no number of replicas"):
        needed(Demand(users=1000, **given))  # type: ignore[arg-type]
    assert needed(Demand(users=1000)).replicas > 1


def test_figures_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="tokens_per_second=0"):
        Measured(tokens_per_second=0)
