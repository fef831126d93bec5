"""Several memories read as one, such as a user's own and one of documents for all.

Their pools are put side by side for a read; nothing is copied but short-term memory and provenance, and no memory
changes. What is recalled is chosen from all of them by one scorer, and the sources of each stay its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from mplus.memory.ledger import Ledger, WrittenText
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import MemoryState, Tail, Track, chained
from mplus.memory.tokens import Provenance, StoredProvenance, Tokens
from mplus.memory.vectors import ChunkVectors
from mplus.memory.warm import JoinedWarm
from mplus.memory.written import texts_of

Shifted = TypeVar("Shifted", Provenance, StoredProvenance)


@dataclass(frozen=True)
class Member:
    """One of the memories of a read.

    Attributes:
        first_source: Row of its first source in the table of sources of the read.
        num_sources: Number of its sources.
        written_tokens: Memory tokens per layer that had been written after it and into it, as ages in the read count.
            This less the age of a token is how many had been written into its memory when it was.
        ledger: What was written into it; None if it keeps no ledger.
    """

    first_source: int
    num_sources: int
    written_tokens: int
    ledger: Ledger | None = None

    def holds(self, source: int) -> bool:
        """Whether a row of the table of sources of the read is one of its sources."""
        return self.first_source <= source < self.first_source + self.num_sources


@dataclass(frozen=True)
class Together:
    """What one read sees.

    Attributes:
        state: The pools of all memories.
        members: The memories, in the order in which they were given.
    """

    state: MemoryState
    members: tuple[Member, ...]

    @property
    def has_ledgers(self) -> bool:
        """Whether every memory keeps a ledger."""
        return all(member.ledger is not None for member in self.members)

    def texts_of(self, source: int) -> list[WrittenText]:
        """What was written under the name of a source, in its own memory and in order."""
        name, member = self.state.sources[source].name, next(member for member in self.members if member.holds(source))
        return texts_of(member.ledger or (), name)


def alone(state: MemoryState) -> Together:
    """A read of a single memory."""
    return Together(state, (Member(0, len(state.sources), state.written_tokens, state.ledger),))


def together(states: Sequence[MemoryState]) -> Together:
    """Several memories as one.

    It is read as if the last one's texts had been written first, and the first one's last: these stand nearest to the
    prompt and count as the latest. The last one, usually by far the largest, keeps its chunk numbers, and so its coarse
    index.

    Args:
        states: States of memories of one layout.
    """
    order = range(len(states) - 1, -1, -1)
    first_source, first_chunk = [0] * len(states), [0] * len(states)
    sources, chunks = 0, 0
    for number in order:
        first_source[number], first_chunk[number] = sources, chunks
        sources, chunks = sources + len(states[number].sources), chunks + states[number].num_chunks

    later = [sum(state.written_tokens for state in states[:number]) for number in range(len(states))]

    def shifted(number: int, known: Shifted) -> Shifted:
        by_source, by_chunk = _up(known.sources, first_source[number]), _up(known.chunks, first_chunk[number])
        return known.aged(later[number]).changed(sources=by_source, chunks=by_chunk)

    tracks: list[Track] = []
    for place, track in enumerate(states[order[0]].tracks):
        own = [(number, states[number].tracks[place]) for number in order]
        short = [replace(t.short_term, provenance=shifted(n, t.short_term.provenance)) for n, t in own]
        stored = [
            [store.renumbered(shifted(n, store.provenance), by=first_chunk[n]) for n, store in stores]
            for stores in ([(n, t.pending) for n, t in own], [(n, t.long_term) for n, t in own])
        ]
        pending, long_term = (LongTermMemory.side_by_side(stores) for stores in stored)
        vectors = ChunkVectors.side_by_side([(t.vectors, first_chunk[n]) for n, t in own])
        pools = {"short_term": _filled(short), "pending": pending, "long_term": long_term}
        rooms = tuple((first_source[n], t.warm) for n, t in own if not isinstance(t.warm, JoinedWarm))
        warm = JoinedWarm(rooms) if any(room is not None for _, room in rooms) else None
        tracks.append(replace(track, **pools, vectors=vectors, warm=warm))
    tail = Tail(
        tuple(i for number in order for i in states[number].tail.input_ids),
        tuple(source + first_source[number] for number in order for source in states[number].tail.sources),
    )
    whole = MemoryState(
        tuple(tracks),
        chained("together", *(state.digest for state in states)),
        tail=tail,
        sources=tuple(source for number in order for source in states[number].sources),
        written_tokens=sum(state.written_tokens for state in states),
        num_chunks=chunks,
    )
    members = zip(first_source, states, later, strict=True)
    return Together(
        whole, tuple(Member(first, len(s.sources), s.written_tokens + newer, s.ledger) for first, s, newer in members)
    )


def _up(numbers: Tensor, by: int) -> Tensor:
    """Numbers that are counted on; negative ones, which stand for none, stay."""
    return numbers if not by else (numbers + by).where(numbers >= 0, numbers)


def _filled(pools: Sequence[Tokens]) -> Tokens:
    """Short-term pools in one. A new object even if only one of them has tokens, since buffers are kept by pool."""
    filled = [pool for pool in pools if len(pool)] or list(pools[:1])
    return replace(filled[0]) if len(filled) == 1 else Tokens.cat(filled)
