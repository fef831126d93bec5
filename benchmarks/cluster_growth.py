"""Replicas that come when many ask and go when few do: nothing acknowledged is lost or crossed while it happens.

    python benchmarks/cluster_growth.py [--max-replicas 3] [--grow-seconds 30] [--shrink-seconds 600] [--url URL]

Starts ``mplus serve --ray`` with a tiny random model, one replica and ``--max-replicas`` on this machine. Many clients
write, read back and chat until all replicas are there; then a single one goes on until one replica is left. In the end
every memory is opened from storage and compared with what was acknowledged. ``--url`` is that of ``cluster.py``.
"""

import argparse
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster_clients import Notes, asking, found, running_replicas, settings_of, statuses, written
from ray.exceptions import RayError

from mplus_integrations.cluster.running import end, start

RUNNING = 2
"""Answers at a time for which one replica is meant."""


def watched(until: int, seconds: float, lasting: float) -> list[tuple[float, int]]:
    """Each change of the number of replicas, by seconds from now, until it has been ``until`` for a while."""
    began, seen, since = time.monotonic(), list[tuple[float, int]](), None
    while time.monotonic() < began + seconds:
        now, replicas = time.monotonic() - began, running_replicas()
        if not seen or seen[-1][1] != replicas:
            seen.append((round(now, 1), replicas))
        since = None if replicas != until else now if since is None else since
        if since is not None and now > since + lasting:
            break
        time.sleep(0.5)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-replicas", type=int, default=3)
    parser.add_argument("--memories", type=int, default=20)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--grow-seconds", type=float, default=30)
    parser.add_argument("--shrink-seconds", type=float, default=600)
    parser.add_argument("--most-seconds", type=float, default=300, help="each way, beyond the two above")
    parser.add_argument("--lasting", type=float, default=10, help="seconds that clients go on after each way")
    parser.add_argument("--url", help="keep memories behind this url; objects: an object store in a folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mplus-cluster-", ignore_cleanup_errors=True) as folder:
        written(measure(Path(folder), options), options.json)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the clients, Ray Serve and the storage say."""
    settings, tiny = settings_of(
        folder,
        options.url,
        max_replicas=options.max_replicas,
        max_running=RUNNING,
        grow_seconds=options.grow_seconds,
        shrink_seconds=options.shrink_seconds,
    )
    memories = {f"user-{number}": Notes() for number in range(options.memories)}
    url = start(settings, load=tiny)
    try:
        with asking(url, memories, options.clients):
            grown = watched(options.max_replicas, options.grow_seconds + options.most_seconds, options.lasting)
        many = statuses(memories)
        with asking(url, memories, 1, seed=options.clients):
            shrunk = watched(1, options.shrink_seconds + options.most_seconds, options.lasting)
        few = statuses(memories) - many
        living = len(tiny.living())
    finally:
        with suppress(RayError):
            end()
    return {
        "replicas_while_many_ask": grown,
        "replicas_while_one_asks": shrunk,
        "processes_in_the_end": living,
        **found(settings, folder, memories),
        "statuses_while_many_ask": dict(many),
        "statuses_while_one_asks": dict(few),
    }


if __name__ == "__main__":
    main()
