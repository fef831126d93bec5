"""``PresentStates``: what a read sees of memories at the moment."""

from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary, ref

from mplus.encode import Chunk
from mplus.generation.made_of_states import MadeOfStates
from mplus.generation.memories_read import MemoryLike, check_alike, check_belongs, memories_of
from mplus.memory.memory import Memory
from mplus.memory.periods import Period, within
from mplus.memory.state import MemoryState, Tail
from mplus.memory.together import Together, alone, together
from mplus.read.warming import warmed_state
from mplus.weights import Weights
from mplus.write.absorb import write_chunks

TailsWritten = WeakKeyDictionary[Memory, tuple[ref[MemoryState], MemoryState]]
"""For each memory a state of it, and what that is once its waiting tail is written."""


class PresentStates:
    """What a read of a memory, or of several together, sees now.

    What is made for one read is kept for the next one of the same states, and goes with them.

    Args:
        weights: The model that reads.
        name: Its name, for messages.
    """

    def __init__(self, weights: Weights, name: str = "") -> None:
        self._weights, self._name = weights, name
        self._with_tails: TailsWritten = WeakKeyDictionary()
        self._joined = MadeOfStates[Together]()
        self._periods = MadeOfStates[MemoryState]()

    def of(self, memory: MemoryLike, period: Period | None = None) -> Together:
        """What a read sees; only what was said in a period, if one is given.

        Raises:
            MemoryMismatchError: A memory belongs to another model, or memories of different layouts are given.
        """
        memories = memories_of(memory)
        for one in memories:
            check_belongs(one, self._weights, self._name)
        if len(memories) == 1:
            one = memories[0]
            return alone(self.state_of(one) if period is None else self._warmed(self.within(one, period)))
        check_alike(memories)
        states = [one.state if period is None else self.within(one, period) for one in memories]
        if (known := self._joined.get(states)) is None:
            if period is None:
                present = [self.state_of(one) for one in memories]
            else:
                present = [self._warmed(state) for state in states]
            config = memories[0].config
            asked = {config.recall, *([config.token_recall] if self._weights.gate is not None else [])}
            for track in present[-1].tracks:  # its index is made here, where it is kept for other reads
                for name in sorted(asked):
                    self._weights.scorers[name].prepare(track.long_term, config)
            known = together(present)
            self._joined.put(states, known)
        return known

    def state_of(self, memory: Memory) -> MemoryState:
        """A memory's state for a read: the waiting tail is written into it first.

        A write adapter was not trained on such short text; with one the tail is read as text instead.
        """
        return self._warmed(self._with_tail(memory))

    def within(self, memory: Memory, period: Period) -> MemoryState:
        """A memory's state with what was said in a period, kept for the next read of the same state.

        Keys and values of what a memory keeps as token ids are still to be made.
        """
        state = self._with_tail(memory)
        if (known := self._periods.get([state], period)) is None:
            known = within(state, memory.config, period)
            if known is not state:  # else it would keep itself alive
                self._periods.put([state], known, period)
        return known

    def _warmed(self, state: MemoryState) -> MemoryState:
        return warmed_state(self._weights, state)

    def _with_tail(self, memory: Memory) -> MemoryState:
        """A memory's state with the waiting tail written into it: the same object until the memory changes."""
        state = memory.state
        if not state.tail.input_ids or memory.config.encoding == "adapter":
            return state
        known = self._with_tails.get(memory)
        if known is not None and known[0]() is state:
            return known[1]
        last = state.context.sources[-1:].tolist() if state.context is not None else []
        tail = state.tail
        source = state.sources[tail.sources[0]]
        continues = last == [tail.sources[0]] and source.comes_before(tail.time, is_dated=tail.is_dated)
        chunk = Chunk(list(tail.input_ids), list(tail.sources), continues, tail.since, latest=tail.latest)
        whole, _ = write_chunks(self._weights, memory, replace(state.beside_tail(), tail=Tail()), [chunk])
        self._with_tails[memory] = (ref(state, _dropping(self._with_tails, memory)), whole)
        return whole


def _dropping(known: TailsWritten, memory: Memory) -> Callable[[object], None]:
    """What drops that which was made of a memory's earlier state as soon as nothing else holds that state."""
    of = ref(memory)

    def drop(gone: object) -> None:
        present = of()
        made = None if present is None else known.get(present)
        if present is not None and made is not None and made[0] is gone:
            known.pop(present, None)

    return drop
