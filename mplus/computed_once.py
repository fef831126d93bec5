"""``computed_once``: a property whose value is computed at its first use and kept.

``functools.cached_property`` of Python 3.11 has one lock for all objects of a class: one that computes makes all others
wait, and a child that was forked meanwhile waits for ever.
"""

from functools import cached_property
from typing import Any, TypeVar, overload

T = TypeVar("T")


class computed_once(cached_property[T]):
    """A ``cached_property`` without a lock. Threads may compute it beside each other; all get the first value."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> "computed_once[T]": ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...
    def __get__(self, instance: object, owner: type[Any] | None = None) -> "computed_once[T] | T":
        if instance is None or self.attrname is None:
            return self
        return instance.__dict__.setdefault(self.attrname, self.func(instance))
