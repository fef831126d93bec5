"""Batches are the same whoever draws them."""

import random

import pytest

from mplus.training.ahead import POOLED_BATCHES, Batches, in_parallel, pooled_batches
from mplus.training.chunk.read_adapter import ReaderSettings
from mplus.training.chunk.sample import Sample


class Source:
    """Samples of random lengths."""

    def draw(self, rng: random.Random, count: int) -> list[Sample]:
        """Some samples."""
        return [Sample((rng.randint(0, 9),), tuple(range(rng.randint(2, 90))), 1) for _ in range(count)]


def batch_of_step(settings: ReaderSettings, step: int) -> list[Sample]:
    """The samples of a step, drawn for it alone."""
    return pooled_batches(Source(), settings, step // POOLED_BATCHES)[step % POOLED_BATCHES]


@pytest.mark.parametrize("processes", [0, 2])
def test_batches_come_in_the_order_of_their_steps(processes: int) -> None:
    settings = ReaderSettings(steps=3 * POOLED_BATCHES - 1, batch=3, seed=5)
    batches = Batches(Source(), settings, processes)
    assert [batches.of(step) for step in range(settings.steps)] == [
        batch_of_step(settings, step) for step in range(settings.steps)
    ]


@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_that_goes_on_gets_the_batches_it_would_have_had(processes: int) -> None:
    settings = ReaderSettings(steps=20, batch=2)
    first = POOLED_BATCHES + 2
    batches = Batches(Source(), settings, processes)
    assert [batches.of(step) for step in range(first, 15)] == [
        batch_of_step(settings, step) for step in range(first, 15)
    ]


def test_what_is_worked_out_in_parallel_comes_in_order() -> None:
    texts = [f"{n}" for n in range(100)]
    seen = {"7": "seven"}
    assert in_parallel(lambda text: seen.get(text, text), texts, 3) == [seen.get(text, text) for text in texts]
    assert in_parallel(len, ["a", "bb"], 3) == [1, 2]
