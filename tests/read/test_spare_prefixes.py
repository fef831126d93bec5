"""What is kept of finished reads, where garbage collection comes in between."""

from types import SimpleNamespace
from typing import Any

from mplus.read.spare_prefixes import SparePrefixes


def test_prefixes_may_be_dropped_by_garbage_collection_while_there_is_too_much_to_keep() -> None:
    spares = SparePrefixes(0)

    class Large(SimpleNamespace):
        @property
        def nbytes(self) -> int:
            spares.clear()  # as the end of a short-term memory does
            return 1

    class Pool:
        pass

    pool = Pool()
    spare: Any = Large(short_term=lambda: pool)
    spares.keep(spare)
    assert not spares._kept
