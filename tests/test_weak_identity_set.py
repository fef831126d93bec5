"""A set of objects by identity, which it does not keep alive."""

import gc
from dataclasses import dataclass

from mplus.weak_identity_set import WeakIdentitySet


@dataclass
class Owner:
    """Equal to others with the same name, and without a hash."""

    name: str


def names(owners: WeakIdentitySet[Owner]) -> list[str]:
    return sorted(owner.name for owner in owners)


def test_equal_objects_without_a_hash_are_members_each_for_itself() -> None:
    owners, one, other = WeakIdentitySet[Owner](), Owner("a"), Owner("a")
    for owner in (one, other, one):
        owners.add(owner)
    assert names(owners) == ["a", "a"]


def test_a_member_goes_when_nothing_else_holds_it() -> None:
    owners, kept = WeakIdentitySet[Owner](), Owner("kept")
    owners.add(kept)
    owners.add(Owner("gone"))
    gc.collect()
    assert names(owners) == ["kept"]


def test_members_may_come_and_go_while_it_is_gone_over() -> None:
    owners, held = WeakIdentitySet[Owner](), [Owner("first"), Owner("second")]
    for owner in held:
        owners.add(owner)
    later = Owner("later")
    seen: list[str] = []
    for owner in owners:
        seen.append(owner.name)
        owners.add(later)
        held.clear()
        del owner
        gc.collect()
    assert seen == ["first"], "the second went meanwhile, and what came is not seen"
    assert names(owners) == ["later"]
