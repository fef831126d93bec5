"""What is kept of finished reads, where garbage collection comes in between."""

from weakref import ref

from mplus.memory.tokens import Tokens
from mplus.read.spare_prefixes import SparePrefix, SparePrefixes


def test_prefixes_may_be_dropped_by_garbage_collection_while_there_is_too_much_to_keep() -> None:
    spares, pool = SparePrefixes(0), object.__new__(Tokens)

    class Large(SparePrefix):
        @property
        def nbytes(self) -> int:
            spares.clear()  # as the end of a short-term memory does
            return 1

    spare = object.__new__(Large)
    object.__setattr__(spare, "short_term", ref(pool))
    spares.keep(spare)
    assert not spares._kept
