"""Three replicas under Ray Serve, killed while they write; needs Ray, which the extra cluster installs."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for needed in ("ray", "fastapi", "uvicorn", "prometheus_client", "pydantic_settings", "python_multipart"):
    pytest.importorskip(needed, reason=f"needs the extra cluster: {needed} is not installed")

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(1500)
def test_killed_replicas_lose_and_cross_nothing_and_memories_stay_warm(tmp_path: Path) -> None:
    script = [sys.executable, "benchmarks/cluster.py", "--json", str(tmp_path / "found.json")]
    options = ["--seconds", "40", "--memories", "6", "--kill-every", "15", "--restart"]
    done = subprocess.run([*script, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1400)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert found["killed"] >= 1 and found["acknowledged_writes"] > found["memories"]
    assert found["lost_or_crossed"] == []
    assert found["memories_that_open"] == found["memories"] > 0
    assert found["locality"] >= 0.9
    assert found["given_up"] == [], "a client that asks again where it is told to gets every answer"
    assert found["recovered_before_restart"] and found["old_replicas_after_restart"] == 0
    assert found["statuses_during_restart"] and not any(" 5" in told for told in found["statuses_during_restart"])


@pytest.mark.timeout(1500)
def test_behind_a_url_killed_replicas_lose_and_cross_nothing_either(tmp_path: Path) -> None:
    script = [sys.executable, "benchmarks/cluster.py", "--json", str(tmp_path / "found.json"), "--url", "objects"]
    options = ["--seconds", "40", "--memories", "6", "--kill-every", "15"]
    done = subprocess.run([*script, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1400)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert found["killed"] >= 1 and found["acknowledged_writes"] > found["memories"]
    assert found["lost_or_crossed"] == [] and found["given_up"] == []
    assert found["memories_that_open"] == found["memories"] > 0


def replica(name: str) -> Any:
    return SimpleNamespace(replica_id=SimpleNamespace(unique_id=name))


def asking(memory: str) -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(multiplexed_model_id=memory), routing_context=SimpleNamespace())


def test_a_request_that_names_a_memory_is_its_owners_alone() -> None:
    from mplus_integrations.cluster.owners import owner
    from mplus_integrations.cluster.routing import OwnerRouter

    replicas = [replica(name) for name in "abc"]

    def chosen(memory: str) -> list[list[str]]:
        router = OwnerRouter.__new__(OwnerRouter)
        ranks = asyncio.run(router.choose_replicas(replicas, asking(memory)))
        return [[one.replica_id.unique_id for one in rank] for rank in ranks]

    assert chosen("anna") == [[owner("anna", "abc")]] and chosen("bob") == [[owner("bob", "abc")]]
    assert chosen("") == [["a", "b", "c"]]


def test_the_application_is_built_from_settings_and_asks_for_keys() -> None:
    from mplus_integrations.cluster import build

    assert type(build({"replicas": 2, "max_replicas": 4})).__name__ == "Application"
    with pytest.raises(ValueError, match="replica_count"):
        build({"replica_count": 2})


def test_replicas_come_and_go_as_the_settings_say() -> None:
    from mplus_integrations.cluster import build

    def growing(**settings: Any) -> Any:
        replicas: Any = build(settings)
        return replicas._bound_deployment.init_args[1]._bound_deployment._deployment_config.autoscaling_config

    usual = growing(replicas=2, max_replicas=4)
    assert (usual.min_replicas, usual.max_replicas, usual.target_ongoing_requests) == (2, 4, 16)
    assert (usual.upscale_delay_s, usual.downscale_delay_s) == (30, 600)
    quick = growing(max_replicas=3, max_running=2, grow_seconds=4, shrink_seconds=9)
    assert (quick.target_ongoing_requests, quick.upscale_delay_s, quick.downscale_delay_s) == (2, 4, 9)
    assert growing(replicas=4, max_replicas=4) is None and growing(replicas=4) is None
