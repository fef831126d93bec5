"""What 10,000 and 10 million users need, and a simulation of the busiest minutes that checks it.

    python benchmarks/cluster_sizing.py [--users 10000 10000000] [--minutes 60] [--wait-seconds 10]

The figures of one replica are those of the lab book (``Measured``). The simulation knows nothing of the formula:
requests of random users come at random moments, each goes to its memory's owner by the hashing that the cluster uses,
and takes a random time there; replicas are simulated one by one, with one of them down. Of a large cluster some
replicas are simulated, each with the users that hashing gives it.

The formula lets a replica make one answer after the other, each at the speed that sixteen have together. A real one
makes up to sixteen at the same time, each at its share of a speed that grows with their number (``concurrency.json``).
That is simulated too: how many wait so long until their answer is begun, and how much longer than alone it then takes.
"""

import argparse
import json
import random
import statistics
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mplus_integrations.cluster.owners import owner
from mplus_integrations.cluster.sizing import Demand, Measured, Needed, needed

LOOKED_AT = 40
"""Most replicas that are simulated."""
RESULTS = Path(__file__).parent / "results" / "concurrency.json"
SPEEDS = {row["users"]: row["tokens_per_second"] for row in json.loads(RESULTS.read_text())["rows"]}
"""Tokens per second of so many answers together, one first."""


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


class Together(NamedTuple):
    """Answers of one replica that are made at the same time: seconds until each begins, and that it took over alone."""

    until_begun: list[float]
    longer: list[float]


def speed(answers: int) -> float:
    """Tokens per second of so many answers together."""
    for few, many in pairwise(SPEEDS):
        if answers <= many:
            return SPEEDS[few] + (SPEEDS[many] - SPEEDS[few]) * (answers - few) / (many - few)
    return SPEEDS[max(SPEEDS)]


def together(people: int, demand: Demand, measured: Measured, seconds: float, draw: random.Random) -> Together:
    """The requests of one replica. Reading and writing count as the tokens that are made in the same time."""
    rate = people * demand.answers * demand.busiest / 86_400
    beside = measured.first_token_seconds + demand.written_tokens / demand.answers / measured.written_tokens_per_second
    found, waiting = Together([], []), deque[tuple[float, float]]()
    running: list[tuple[float, float, float]] = []  # what is left of it, all of it, when it came
    now, comes = 0.0, draw.expovariate(rate)
    while running or comes < seconds:
        share = speed(len(running)) / len(running) if running else 0.0
        ends = now + min(running)[0] / share if running else float("inf")
        until = min(ends, comes if comes < seconds else float("inf"))
        running = sorted((left - (until - now) * share, all_of_it, came) for left, all_of_it, came in running)
        now = until
        if ends > comes and comes < seconds:
            work = draw.expovariate(1 / demand.answer_tokens) + beside * measured.tokens_per_second
            waiting.append((work, now))
            comes += draw.expovariate(rate)
        else:
            _, work, came = running.pop(0)
            found.longer.append(now - came - work / speed(1))
        while waiting and len(running) < max(SPEEDS):
            work, came = waiting.popleft()
            found.until_begun.append(now - came)
            running.append((work, work, came))
    return found


def simulated(demand: Demand, found: Needed, seconds: float, seed: int) -> tuple[float, float]:
    """Share of requests that wait longer than is borne, and the load of the fullest replica over the mean one."""
    draw = random.Random(seed)
    people = owned(demand, found.replicas - 1, seed)
    told = [
        wait > demand.wait_seconds for one in people for wait in waits(one, demand, found.busy_seconds, seconds, draw)
    ]
    return sum(told) / max(len(told), 1), max(people) / (sum(people) / len(people))


def simulated_together(demand: Demand, found: Needed, seconds: float, seed: int) -> Together:
    """The requests of all replicas."""
    draw, all_of_them = random.Random(seed), Together([], [])
    for people in owned(demand, found.replicas - 1, seed):
        one = together(people, demand, Measured(), seconds, draw)
        all_of_them.until_begun.extend(one.until_begun)
        all_of_them.longer.extend(one.longer)
    return all_of_them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[10_000, 10_000_000])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--wait-seconds", type=float, default=Demand(users=1).wait_seconds)
    options = parser.parse_args()
    print(
        "| users | replicas | answers/s | used | stored | sent a day | requests to storage/s | warm a replica | late "
        "| begun late | longer than alone, s: median, 99% |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for users in options.users:
        demand = Demand(users=users, wait_seconds=options.wait_seconds)
        found = needed(demand, Measured())
        runs = [simulated(demand, found, options.minutes * 60, seed) for seed in range(options.runs)]
        late = sum(share for share, _ in runs) / len(runs)
        beside = [simulated_together(demand, found, options.minutes * 60, seed) for seed in range(options.runs)]
        begun = [seconds for one in beside for seconds in one.until_begun]
        begun_late = sum(seconds > demand.wait_seconds for seconds in begun) / max(len(begun), 1)
        longer = statistics.quantiles([seconds for one in beside for seconds in one.longer], n=100)
        print(
            f"| {users:,} | {found.replicas:,} | {found.answers_per_second:,.1f} | {found.used:.2f} | "
            f"{found.stored_bytes / 1e12:,.1f} TB | {found.sent_bytes_per_day / 1e12:,.2f} TB | "
            f"{found.storage_requests_per_second:,.0f} | "
            f"{found.warm_memories:,.0f}, {found.warm_bytes / 1e9:,.0f} GB | {late:.4f} | "
            f"{begun_late:.4f} | {longer[49]:.1f}, {longer[98]:.1f} |"
        )


if __name__ == "__main__":
    main()
