"""``WeakIdentitySet``: objects told apart by identity, which it does not keep alive."""

from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class WeakIdentitySet(Generic[T]):
    """A set of objects for as long as something else holds them.

    Unlike ``weakref.WeakSet`` it neither hashes nor compares them, so that two equal objects, or ones without a hash,
    are two members. Going over it sees those that were there at its beginning: others may come and go meanwhile, from
    any thread.
    """

    def __init__(self) -> None:
        self._members: WeakValueDictionary[int, T] = WeakValueDictionary()

    def add(self, member: T) -> None:
        """Have an object in the set; adding it again changes nothing."""
        self._members[id(member)] = member

    def __iter__(self) -> Iterator[T]:
        for reference in self._members.valuerefs():
            member = reference()
            if member is not None:
                yield member
