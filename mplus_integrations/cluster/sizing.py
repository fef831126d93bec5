"""How many replicas and bytes so many users need, from figures that were measured of one replica."""

import math
from dataclasses import dataclass

DAY = 86_400.0


@dataclass(frozen=True)
class Measured:
    """What one replica does; the defaults are the default model on two cores of an AMD EPYC, from the lab book.

    Attributes:
        first_token_seconds: Recall and reading a prompt, for each answer.
        tokens_per_second: Tokens of all answers together where many are made at a time.
        written_tokens_per_second: Tokens of text that are written.
        bytes_per_token: Bytes that a token of text keeps in storage.
        bytes_per_save: Bytes that a change sends to storage beside those that it keeps.
        requests_per_read: Requests to storage for an answer from a warm memory.
        requests_per_save: Requests to storage for a change of a warm memory.
        warm_bytes: Host memory of a warm memory.
    """

    first_token_seconds: float = 0.158
    tokens_per_second: float = 69.0
    written_tokens_per_second: float = 763.0
    bytes_per_token: float = 12_200.0
    bytes_per_save: float = 7.5e6
    requests_per_read: float = 2.0
    requests_per_save: float = 20.0
    warm_bytes: float = 45e6

    def __post_init__(self) -> None:
        _check(self, positive=("first_token_seconds", "tokens_per_second", "written_tokens_per_second"))


@dataclass(frozen=True)
class Demand:
    """What users do.

    Attributes:
        users: People with a memory.
        active: Share of them who come on a day.
        answers: Answers for each of those on that day; what they write is written with these.
        answer_tokens: Tokens of an answer.
        written_tokens: Tokens that each of those writes on that day, their messages included.
        saves: Changes of a memory into which these are divided.
        kept_tokens: Tokens that a memory keeps in the end.
        busiest: How many times the mean the busiest minutes of a day are.
        wait_seconds: How long one of a hundred requests may wait in these for the others of its replica to be done,
            if these are answered one after the other.
    """

    users: int
    active: float = 0.2
    answers: float = 10.0
    answer_tokens: float = 100.0
    written_tokens: float = 1000.0
    saves: float = 10.0
    kept_tokens: float = 50_000.0
    busiest: float = 3.0
    wait_seconds: float = 10.0

    def __post_init__(self) -> None:
        _check(self, positive=("users", "active", "answers", "busiest", "wait_seconds"))
        if self.active > 1:
            raise ValueError(f"active={self.active}: expected a share from 0 to 1.")


@dataclass(frozen=True)
class Needed:
    """What it takes.

    Attributes:
        replicas: Replicas, one of which may be down.
        answers_per_second: Answers in the busiest minutes.
        busy_seconds: Seconds that a replica works on an answer and on what is written with it.
        used: Share of its time that each replica works in the busiest minutes, while one is down.
        stored_bytes: Bytes of all memories.
        sent_bytes_per_day: Bytes that are sent to storage.
        storage_requests_per_second: Requests to storage in the busiest minutes.
        warm_memories: Memories that a replica has warm if it keeps those of a day.
        warm_bytes: Host memory of these.
    """

    replicas: int
    answers_per_second: float
    busy_seconds: float
    used: float
    stored_bytes: float
    sent_bytes_per_day: float
    storage_requests_per_second: float
    warm_memories: float
    warm_bytes: float


def needed(demand: Demand, measured: Measured | None = None) -> Needed:
    """What so many users need.

    Every memory has one replica, so each replica has a queue of its own (M/M/1): of a hundred requests one waits longer
    than t where used · exp(-(1 - used) · t / busy_seconds) is 0.01. The fewest replicas whose used stays below that are
    taken, and one more, so that one may be down. Memories are dealt by hashing, not evenly: the share of the fullest
    replica is taken to lie three standard deviations above the mean.

    Args:
        demand: What users do.
        measured: What one replica does; None: the default model on two cores.

    Raises:
        ValueError: No number of replicas keeps ``wait_seconds``, because one person alone, whose memory has one
            replica, has it work too long.
    """
    of = Measured() if measured is None else measured
    people = demand.users * demand.active
    answers = people * demand.answers * demand.busiest / DAY
    busy = of.first_token_seconds + demand.answer_tokens / of.tokens_per_second
    busy += demand.written_tokens / demand.answers / of.written_tokens_per_second
    most = most_used(demand.wait_seconds / busy)
    alone = answers / people * busy
    if alone > most:
        raise ValueError(
            f"wait_seconds={demand.wait_seconds:g}: one person alone has a replica work {alone:.2g} of the busiest "
            f"minutes, and it may work {most:.2g} of them at most, so no number of replicas keeps this. Expected a "
            "longer wait, fewer or shorter answers, less text, or faster replicas."
        )
    replicas = max(math.ceil(answers * busy / most), 1)
    while answers * busy / replicas * fullest(replicas, people) > most:
        replicas += 1
    saves = people * demand.saves
    return Needed(
        replicas=replicas + 1,
        answers_per_second=answers,
        busy_seconds=busy,
        used=answers * busy / replicas,
        stored_bytes=demand.users * demand.kept_tokens * of.bytes_per_token,
        sent_bytes_per_day=people * demand.written_tokens * of.bytes_per_token + saves * of.bytes_per_save,
        storage_requests_per_second=answers * of.requests_per_read
        + saves * demand.busiest / DAY * of.requests_per_save,
        warm_memories=people / replicas,
        warm_bytes=people / replicas * of.warm_bytes,
    )


def most_used(patience: float, late: float = 0.01) -> float:
    """The greatest share of its time that a queue may work so that few requests wait longer than is borne.

    Args:
        patience: How long a request may wait, over how long one takes.
        late: Share of requests that may wait longer.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * math.exp(-(1 - middle) * patience) <= late else (low, middle)
    return low


def fullest(replicas: int, people: float) -> float:
    """The load of the fullest replica over that of the mean one, where people are dealt by hashing."""
    return 1 + 3 * math.sqrt(max(replicas - 1, 0) / people)


def _check(given: object, positive: tuple[str, ...]) -> None:
    for name, value in vars(given).items():
        if value < 0 or (name in positive and value == 0):
            expected = "more than 0" if name in positive else "0 or more"
            raise ValueError(f"{name}={value}: expected a number that is {expected}.")
