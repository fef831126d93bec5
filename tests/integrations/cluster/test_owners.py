"""Who owns a memory: everybody finds the same replica, shares are equal, and only what must move does."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mplus_integrations.cluster.owners import owner

MEMORIES = [f"user-{number}" for number in range(3000)]
REPLICAS = [f"replica-{number}" for number in range(10)]


@given(st.text(), st.sets(st.text(min_size=1), min_size=1, max_size=8), st.randoms())
def test_the_owner_is_a_replica_and_does_not_hang_on_their_order(
    memory: str, replicas: set[str], shuffled: random.Random
) -> None:
    listed = sorted(replicas)
    found = owner(memory, listed)
    shuffled.shuffle(listed)
    assert found in replicas and owner(memory, listed) == found


def test_every_machine_and_every_version_finds_the_same_owner() -> None:
    assert [owner(name, "abc") for name in ("anna", "bob", "cid", "dora")] == ["c", "b", "c", "b"]


def test_replicas_own_equal_shares() -> None:
    owned = Counter(owner(memory, REPLICAS) for memory in MEMORIES)
    assert len(owned) == len(REPLICAS)
    assert max(owned.values()) < 1.3 * len(MEMORIES) / len(REPLICAS)


def test_a_replica_that_dies_gives_its_memories_to_all_others_and_no_other_moves() -> None:
    before = {memory: owner(memory, REPLICAS) for memory in MEMORIES}
    after = {memory: owner(memory, REPLICAS[1:]) for memory in MEMORIES}
    moved = {memory for memory in MEMORIES if before[memory] != after[memory]}
    assert moved == {memory for memory in MEMORIES if before[memory] == REPLICAS[0]}
    assert {after[memory] for memory in moved} == set(REPLICAS[1:])


def test_a_replica_that_comes_takes_its_share_and_no_other_moves() -> None:
    before = {memory: owner(memory, REPLICAS) for memory in MEMORIES}
    after = {memory: owner(memory, [*REPLICAS, "new"]) for memory in MEMORIES}
    moved = {memory for memory in MEMORIES if before[memory] != after[memory]}
    assert {after[memory] for memory in moved} == {"new"}
    assert len(moved) == pytest.approx(len(MEMORIES) / (len(REPLICAS) + 1), rel=0.25)


def test_without_replicas_there_is_no_owner() -> None:
    with pytest.raises(ValueError, match="replicas is empty"):
        owner("anna", [])
