"""What 10,000 and 10 million users need, and a simulation of the busiest minutes that checks it.

    python benchmarks/cluster_sizing.py [--users 10000 10000000] [--minutes 60]

The figures of one replica are those of the lab book (``Measured``). The simulation knows nothing of the formula:
requests of random users come at random moments, each goes to its memory's owner by the hashing that the cluster uses,
and takes a random time there; replicas are simulated one by one, with one of them down. Of a large cluster some
replicas are simulated, each with the users that hashing gives it.
"""

import argparse
import random
from collections.abc import Iterator

from mplus_integrations.cluster.owners import owner
from mplus_integrations.cluster.sizing import Demand, Measured, Needed, needed

LOOKED_AT = 40
"""Most replicas that are simulated."""


def owned(demand: Demand, replicas: int, seed: int) -> list[int]:
    """How many of the people of a day each replica owns; of some replicas where there are many."""
    people = round(demand.users * demand.active)
    if people * replicas <= 2_000_000:
        names = [f"replica-{seed}-{number}" for number in range(replicas)]
        found = dict.fromkeys(names, 0)
        for person in range(people):
            found[owner(f"user-{person}", names)] += 1
        return list(found.values())
    # Dealt by hashing, each replica's people are binomial; so many are normal.
    draw, share = random.Random(seed), 1 / replicas
    spread = (people * share * (1 - share)) ** 0.5
    return [max(round(draw.gauss(people * share, spread)), 0) for _ in range(LOOKED_AT)]


def waits(people: int, demand: Demand, busy_seconds: float, seconds: float, draw: random.Random) -> Iterator[float]:
    """How long each request of one replica waits; the time that one takes is exponential."""
    rate = people * demand.answers * demand.busiest / 86_400
    now, free = 0.0, 0.0
    while rate > 0:
        now += draw.expovariate(rate)
        if now > seconds:
            return
        yield max(free - now, 0.0)
        free = max(free, now) + draw.expovariate(1 / busy_seconds)


def simulated(demand: Demand, found: Needed, seconds: float, seed: int) -> tuple[float, float]:
    """Share of requests that wait longer than is borne, and the load of the fullest replica over the mean one."""
    draw = random.Random(seed)
    people = owned(demand, found.replicas - 1, seed)
    told = [
        wait > demand.wait_seconds for one in people for wait in waits(one, demand, found.busy_seconds, seconds, draw)
    ]
    return sum(told) / max(len(told), 1), max(people) / (sum(people) / len(people))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 10_000_000])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    print(
        "| users | replicas | answers/s | used | stored | sent a day | requests to storage/s | warm a replica | late |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for users in options.users:
        demand = Demand(users=users)
        found = needed(demand, Measured())
        runs = [simulated(demand, found, options.minutes * 60, seed) for seed in range(options.runs)]
        late = sum(share for share, _ in runs) / len(runs)
        print(
            f"| {users:,} | {found.replicas:,} | {found.answers_per_second:,.1f} | {found.used:.2f} | "
            f"{found.stored_bytes / 1e12:,.1f} TB | {found.sent_bytes_per_day / 1e12:,.2f} TB | "
            f"{found.storage_requests_per_second:,.0f} | "
            f"{found.warm_memories:,.0f}, {found.warm_bytes / 1e9:,.0f} GB | {late:.4f} |"
        )


if __name__ == "__main__":
    main()
