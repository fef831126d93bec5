"""Random histories of memories against a slow, obvious model: lists of chunks of text.

By default 30 of them; ``MPLUS_RELIABILITY=full pytest tests/memory/test_state_machine.py`` runs 1,000.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

import mplus
from mplus.config import MemoryConfig
from mplus.encode import Chunk, encode_states
from mplus.memory.state import MemoryState
from mplus.testing import tiny_model

CHUNK, MINIMUM, SHORT_TERM = 8, 4, 20
EXAMPLES = 1000 if os.environ.get("MPLUS_RELIABILITY") == "full" else 30
SOURCES = st.sampled_from("abc")
# Printable letters of the byte tokenizer: no sentence ever ends, so that chunks are cut where they are full.
TEXTS = st.lists(st.integers(40, 60), min_size=1, max_size=22).map(tuple)

Ids = tuple[int, ...]
MODEL = tiny_model(
    memory=MemoryConfig(
        chunk_tokens=CHUNK,
        minimum_chunk_tokens=MINIMUM,
        tokens_per_write=CHUNK,
        short_term_tokens=SHORT_TERM,
        recalled_tokens=16,
        consolidate_every=2,
        long_term_dtype="float32",
    ),
    num_hidden_layers=2,
)


@dataclass(frozen=True)
class Written:
    """One chunk, and those of its source that it goes on from, in the order in which they were written."""

    source: str
    ids: Ids
    before: tuple[Ids, ...] = ()


@dataclass(frozen=True)
class Slow:
    """What a memory should hold."""

    writes: tuple[tuple[str, Ids], ...] = ()
    chunks: tuple[Written, ...] = ()
    tail: tuple[str, Ids] = ("", ())
    last: Written | None = None
    """The chunk written last, if it is held still."""
    is_torn: bool = False
    """Whether something was taken out of it."""

    def write(self, source: str, ids: Ids) -> "Slow":
        after = replace(self, writes=(*self.writes, (source, ids)), tail=("", ()))
        waiting, tail = self.tail
        if waiting == source:
            ids = tail + ids
        elif tail:
            after = after._with_chunk(waiting, tail)
        while len(ids) > CHUNK:
            after, ids = after._with_chunk(source, ids[:CHUNK]), ids[CHUNK:]
        return after._with_chunk(source, ids) if len(ids) >= MINIMUM else replace(after, tail=(source, ids))

    def _with_chunk(self, source: str, ids: Ids) -> "Slow":
        goes_on = self.last is not None and self.last.source == source
        before = (*self.last.before, self.last.ids) if self.last is not None and goes_on else ()
        chunk = Written(source, ids, before)
        return replace(self, chunks=(*self.chunks, chunk), last=chunk)

    def forget(self, source: str) -> "Slow":
        if all(s != source for s, _ in self.writes):
            return self
        return Slow(
            tuple(w for w in self.writes if w[0] != source),
            tuple(c for c in self.chunks if c.source != source),
            ("", ()) if self.tail[0] == source else self.tail,
            None if self.last is not None and self.last.source == source else self.last,
            is_torn=True,
        )

    def rebuild(self, source: str) -> "Slow":
        if not self.is_torn and all(s != source for s, _ in self.writes):
            return self
        again = Slow()
        for name, ids in self.writes:
            if name != source:
                again = again.write(name, ids)
        return again

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(s for s, _ in self.writes))

    @property
    def num_recent(self) -> int:
        """Chunks in short-term memory: the newest that fit."""
        held = 0
        for count, chunk in enumerate(reversed(self.chunks)):
            held += len(chunk.ids)
            if held > SHORT_TERM:
                return count
        return len(self.chunks)


@lru_cache(4096)
def keys_of(chunk: Written) -> torch.Tensor:
    """Keys of a chunk's tokens in the last layer, encoded with nothing but what it goes on from."""
    run = [Chunk(list(ids), [0] * len(ids), place > 0) for place, ids in enumerate((*chunk.before, chunk.ids))]
    with torch.inference_mode():
        encoded = encode_states(MODEL.weights, run, [None] * len(run))
    assert encoded.base is not None
    return encoded.base[-1].keys[-len(chunk.ids) :]


@dataclass
class Pair:
    """A memory and what it should be."""

    memory: mplus.Memory
    slow: Slow = field(default_factory=Slow)
    snapshots: dict[str, Slow] = field(default_factory=dict)


def held_chunks(state: MemoryState) -> Iterator[tuple[str, torch.Tensor]]:
    """Source and keys of every chunk, oldest first."""
    track = state.tracks[0]
    for pool in (track.long_term, track.pending, track.short_term):
        if not len(pool):
            continue
        index = torch.arange(len(pool))
        content = pool.content if pool is track.short_term else pool.content(index, track.dtype, track.devices)
        sizes = pool.provenance.chunks.unique_consecutive(return_counts=True)[1].tolist()
        for rows in index.split(sizes):
            (number,) = set(pool.provenance.sources[rows].tolist())
            yield state.sources[number].name, content.keys[-1][rows]


def assert_holds(state: MemoryState, slow: Slow) -> None:
    held = list(held_chunks(state))
    assert [(name, len(keys)) for name, keys in held] == [(c.source, len(c.ids)) for c in slow.chunks]
    for (_, keys), chunk in zip(held, slow.chunks, strict=True):
        torch.testing.assert_close(keys, keys_of(chunk), atol=1e-4, rtol=1e-4)


class Memories(RuleBasedStateMachine):
    pairs = Bundle("pairs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.all: list[Pair] = []

    def _added(self, pair: Pair) -> Pair:
        self.all.append(pair)
        return pair

    @initialize(target=pairs)
    def begin(self) -> Pair:
        return self._added(Pair(MODEL.new_memory()))

    @rule(pair=pairs, source=SOURCES, ids=TEXTS)
    def write(self, pair: Pair, source: str, ids: Ids) -> None:
        MODEL.write(pair.memory, list(ids), source=source)
        pair.slow = pair.slow.write(source, ids)

    @rule(target=pairs, pair=pairs)
    def fork(self, pair: Pair) -> Pair:
        return self._added(Pair(pair.memory.fork(), pair.slow, dict(pair.snapshots)))

    @rule(pair=pairs, source=SOURCES)
    def forget(self, pair: Pair, source: str) -> None:
        held = sum(len(c.ids) for c in pair.slow.chunks if c.source == source)
        waiting = len(pair.slow.tail[1]) if pair.slow.tail[0] == source else 0
        assert pair.memory.forget(source) == held + waiting
        pair.slow = pair.slow.forget(source)
        pair.snapshots = {n: s.forget(source) for n, s in pair.snapshots.items()}

    @rule(pair=pairs, source=SOURCES)
    def forget_and_rebuild(self, pair: Pair, source: str) -> None:
        pair.memory.forget(source, rebuild=MODEL)
        pair.slow = pair.slow.rebuild(source)
        pair.snapshots = {n: s.rebuild(source) for n, s in pair.snapshots.items()}

    @rule(pair=pairs)
    def snapshot(self, pair: Pair) -> None:
        pair.snapshots[pair.memory.snapshot()] = pair.slow

    @rule(pair=pairs, choice=st.integers(0, 9))
    def rollback(self, pair: Pair, choice: int) -> None:
        if pair.snapshots:
            name = list(pair.snapshots)[choice % len(pair.snapshots)]
            difference = pair.memory.diff(name)
            now, then = pair.slow.names, pair.snapshots[name].names
            assert difference.added == tuple(n for n in now if n not in then)
            assert difference.removed == tuple(n for n in then if n not in now)
            pair.memory.rollback(name)
            pair.slow = pair.snapshots[name]

    @rule(target=pairs, pair=pairs, again=st.booleans())
    def save_and_load(self, pair: Pair, again: bool) -> Pair:
        """Into a folder of the pair's own, or over what another one saved there."""
        folder = self.folder / ("shared" if again else f"{len(self.all)}")
        pair.memory.save(folder)
        loaded = mplus.Memory.load(folder, MODEL)
        assert loaded.fingerprint == pair.memory.fingerprint
        if not again:
            return self._added(Pair(loaded, pair.slow, dict(pair.snapshots)))
        pair.memory = loaded
        return multiple()  # type: ignore[return-value]

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        for pair in self.all:
            state = pair.memory.state
            assert [s.name for s in pair.memory.sources()] == pair.slow.names
            recent = pair.slow.chunks[len(pair.slow.chunks) - pair.slow.num_recent :]
            assert len(state.tracks[0].short_term) == sum(len(c.ids) for c in recent)
            assert len(state.tracks[0]) == sum(len(c.ids) for c in pair.slow.chunks)
            assert state.tail.input_ids == pair.slow.tail[1]
            assert [s.id for s in pair.memory.snapshots] == list(pair.snapshots)

    def teardown(self) -> None:
        shutil.rmtree(self.folder)
        for pair in self.all:
            assert_holds(pair.memory.state, pair.slow)
            for snapshot in pair.memory.snapshots:
                assert_holds(snapshot.state, pair.snapshots[snapshot.id])


TestMemories = Memories.TestCase
TestMemories.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
