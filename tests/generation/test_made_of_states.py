"""What reads made of states is kept for the next read of the same states, and no longer than these."""

import gc
from dataclasses import replace

from mplus.generation.made_of_states import MOST_KEPT, MadeOfStates
from mplus.memory.state import MemoryState


def state(name: str) -> MemoryState:
    return MemoryState((), digest=name)


def test_it_is_found_for_the_same_states_in_the_same_order_and_way() -> None:
    made, one, other = MadeOfStates[str](), state("one"), state("other")
    made.put([one, other], "both")
    made.put([one, other], "both, in March", "March")
    assert made.get([one, other]) == "both" and made.get([one, other], "March") == "both, in March"
    assert made.get([other, one]) is None and made.get([one]) is None and made.get([one, replace(other)]) is None


def test_it_goes_with_any_of_the_states() -> None:
    made, one, other = MadeOfStates[str](), state("one"), state("other")
    made.put([one, other], "both")
    del other
    gc.collect()
    assert not made._known


def test_the_oldest_makes_room() -> None:
    made, states = MadeOfStates[int](), [state(str(number)) for number in range(MOST_KEPT + 1)]
    for number, one in enumerate(states):
        made.put([one], number)
    assert made.get([states[0]]) is None and made.get([states[1]]) == 1
