"""Replicas that are killed while they write: what was acknowledged is there, nothing is crossed, memories stay warm.

    python benchmarks/cluster.py [--seconds 300] [--memories 20] [--kill-every 10] [--restart] [--url URL]

Starts ``mplus serve --ray`` with a tiny random model on this machine. Clients write, read back and chat; every few
seconds a replica is killed (SIGKILL), if another one has its model loaded: starting one may take longer than that. In
the end every memory is opened from storage and compared with what was acknowledged. Locality is the share of answers
that came from the replica which gave the memory's answer before, so that the memory was warm there.

``--url`` keeps memories behind a url, and gives each replica copies of its own, as on a machine of its own. "objects"
is a folder that behaves like an object store and compares at each exchange. Another url, such as s3://bucket/memories,
is taken as it is. ``--restart`` replaces all replicas one after the other at the end, under load.

Counts, no seconds: any machine will do.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster_clients import Notes, TinyModel, asking, found, running_replicas, settings_of, statuses, written
from ray import serve
from ray.exceptions import RayError

from mplus_integrations.cluster.application import NAME, application
from mplus_integrations.cluster.running import end, start
from mplus_integrations.server.settings import ServeSettings

RECOVERY_SECONDS = 180.0
"""Most seconds until the replicas that were killed are replaced, before all of them are."""
AFTERWARDS_SECONDS = 5.0
"""So long clients go on after all replicas are replaced."""


def kill(tiny: TinyModel, seconds: float, every: float) -> int:
    """Kill a replica every few seconds, as long as another one is left to answer; returns how many."""
    killed, ends = 0, time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(min(every, max(ends - time.monotonic(), 0.0)))
        living = tiny.living()
        if time.monotonic() < ends and len(living) > 1:
            os.kill(random.choice(living), signal.SIGKILL)
            killed += 1
    return killed


def replaced(settings: ServeSettings, tiny: TinyModel) -> int:
    """Replace all replicas one after the other, as a new version does; returns how many of the old ones still live."""
    old = set(tiny.living())
    changed = settings.model_copy(update={"max_waiting": settings.max_waiting + 1})
    serve.run(application(changed, load=tiny), name=NAME, route_prefix="/")
    time.sleep(AFTERWARDS_SECONDS)
    return len(old & set(tiny.living()))


def recovered(replicas: int, tiny: TinyModel) -> bool:
    """Wait until there are as many replicas again as there should be."""
    ends = time.monotonic() + RECOVERY_SECONDS
    while time.monotonic() < ends:
        if running_replicas() == len(tiny.living()) == replicas:
            return True
        time.sleep(0.5)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--memories", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=10, help="0: none is killed")
    parser.add_argument("--url", help="keep memories behind this url; objects: an object store in a folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--restart", action="store_true", help="replace all replicas at the end, under load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mplus-cluster-", ignore_cleanup_errors=True) as folder:
        written(measure(Path(folder), options), options.json)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the clients and the storage say."""
    settings, tiny = settings_of(folder, options.url, replicas=options.replicas)
    memories = {f"user-{number}": Notes() for number in range(options.memories)}
    url = start(settings, load=tiny)
    killed, left, is_whole = 0, None, None
    try:
        with asking(url, memories, options.clients):
            if options.kill_every:
                killed = kill(tiny, options.seconds, options.kill_every)
            else:
                time.sleep(options.seconds)
            if options.restart:
                is_whole = recovered(options.replicas, tiny)
            before = statuses(memories)
            if options.restart:
                left = replaced(settings, tiny)
        during = statuses(memories) - before
    finally:
        with suppress(RayError):
            end()
    return {
        "killed": killed,
        **found(settings, folder, memories),
        "statuses": dict(before),
        "recovered_before_restart": is_whole,
        "old_replicas_after_restart": left,
        "statuses_during_restart": dict(during) if options.restart else None,
    }


if __name__ == "__main__":
    main()
