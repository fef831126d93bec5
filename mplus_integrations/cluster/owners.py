"""Which replica owns a memory, by rendezvous hashing: everybody who knows the same replicas finds the same owner.

A replica that leaves gives its memories to all others alike, one that comes takes an equal share of each; no other
memory moves.
"""

from collections.abc import Iterable
from hashlib import blake2b


def weight(memory: str, replica: str) -> int:
    """How strongly a replica draws a memory; the same on every machine and in every version."""
    return int.from_bytes(blake2b(f"{replica}\0{memory}".encode(), digest_size=8).digest(), "big")


def owner(memory: str, replicas: Iterable[str]) -> str:
    """The replica that answers all requests of a memory: the one that draws it most.

    Args:
        memory: Name of the memory.
        replicas: Ids of the replicas that live, in any order.

    Raises:
        ValueError: There are no replicas.
    """
    found = max(replicas, key=lambda replica: (weight(memory, replica), replica), default=None)
    if found is None:
        raise ValueError("replicas is empty: expected the ids of the replicas that live.")
    return found
