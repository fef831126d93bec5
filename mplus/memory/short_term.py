"""Short-term memory: a pool of fixed capacity that every read sees whole, oldest token first."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.memory.tokens import Tokens


class Evicted(NamedTuple):
    """What a write did to short-term memory."""

    remaining: Tokens
    """The pool afterwards, the new tokens at its end."""
    evicted: Tokens
    """What had to leave it, oldest first."""


def chunk_starts(chunks: Int[Tensor, " T"]) -> Int[Tensor, " U"]:
    """Where each chunk begins in a row of tokens that are ordered by chunk."""
    changes = (chunks[1:] != chunks[:-1]).nonzero().flatten() + 1
    return torch.cat([torch.zeros(min(len(chunks), 1), dtype=torch.int64), changes])


def evict_chunks(pool: Tokens, new: Tokens, capacity: int) -> Evicted:
    """Make room by dropping whole chunks, the oldest first; a chunk is never torn apart."""
    everything = Tokens.cat([pool, new]) if len(pool) else new
    starts = chunk_starts(everything.provenance.chunks)
    fitting = starts[len(everything) - starts <= capacity]
    cut = int(fitting[0]) if len(fitting) else len(everything)
    index = torch.arange(len(everything))
    return Evicted(everything.take(index[cut:]), everything.take(index[:cut]))


def evict_tokens(pool: Tokens, new: Tokens, capacity: int, permutation: Int[Tensor, " T"]) -> Evicted:
    """Make room by dropping single tokens at random (spec section 4).

    ``permutation`` is of the pool's rows; the first capacity - new of them remain, in order.
    """
    room = max(capacity - len(new), 0)
    remaining = permutation[:room].sort().values
    evicted = permutation[room:].sort().values
    return Evicted(Tokens.cat([pool.take(remaining), new]), pool.take(evicted))
