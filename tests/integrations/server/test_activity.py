"""What was done with memories, as the server keeps it in mind."""

import tracemalloc

import pytest

pytest.importorskip("pydantic_settings", reason="needs the extra serve")

from mplus_integrations.server.activity import KEPT, Act, Activity


def test_the_acts_that_are_kept_take_few_bytes() -> None:
    activity = Activity()
    tracemalloc.start()
    try:
        for number in range(KEPT):
            act = Act(time=0.5 + number, operation="chat", seconds=0.1 * number, first_text_seconds=0.01 * number)
            activity.note("anna", act)
        assert tracemalloc.get_traced_memory()[0] / KEPT < 300
    finally:
        tracemalloc.stop()
    assert [act.time for act in activity.of("anna")][-1] == KEPT - 0.5
