"""``computed_once``: computed at the first use, and never waited for in vain."""

import os
import threading

import pytest

from mplus.computed_once import computed_once
from tests.reliability.forks import in_child


class Slow:
    """An object whose attribute is computed when it may go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.times = 0

    @computed_once
    def value(self) -> list[int]:
        """A new list each time it is computed."""
        self.times += 1
        self.begun.set()
        self.go_on.wait()
        return [self.times]


def test_it_is_computed_once() -> None:
    slow = Slow()
    assert slow.value is slow.value == [1] and isinstance(Slow.value, computed_once)


def test_threads_that_compute_it_at_once_get_one_value() -> None:
    slow, found = Slow(), list[list[int]]()
    slow.go_on.clear()
    threads = [threading.Thread(target=lambda: found.append(slow.value)) for _ in range(2)]
    for thread in threads:
        thread.start()
    slow.go_on.set()
    for thread in threads:
        thread.join()
    assert found[0] is found[1] is slow.value


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_does_not_wait_for_what_a_thread_of_its_parent_computes() -> None:
    slow, other = Slow(), Slow()
    slow.go_on.clear()
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    slow.begun.wait()
    assert other.value == [1], "another object is not waited for either"
    assert in_child(lambda: (slow.go_on.set(), slow.value[0], other.value[0])[1:]) == [2, 1]
    slow.go_on.set()
    thread.join()
    assert slow.value == [1]
