"""Vectors of chunks of text, made by an embedder that a user brings: one for each chunk that is held."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mplus.config import StorageDtype
from mplus.memory.precision import Plane
from mplus.memory.transfer import HOST

BLOCK_CHUNKS = 1024
"""Vectors are kept in immutable blocks of up to this many, which forks and successive saves share."""

Serials = Int[Tensor, " U"]
"""Serial numbers of chunks, ascending."""


@dataclass(frozen=True)
class VectorBlock:
    """Vectors of some chunks, in host memory; never changes."""

    chunks: Serials
    vectors: Plane
    """[U E], of unit length, in the precision of retrieval keys."""

    def __len__(self) -> int:
        return len(self.chunks)

    def take(self, index: Int[Tensor, " u"]) -> "VectorBlock":
        """A block with copies of the rows at ``index`` only."""
        return VectorBlock(self.chunks[index], self.vectors.take(index))


@dataclass(frozen=True)
class ChunkVectors:
    """The vectors of a memory's chunks, in the order of writing."""

    embedder: str = ""
    """Name of the embedder that made them; empty as long as there are none."""
    blocks: tuple[VectorBlock, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def chunks(self) -> Serials:
        """Serial numbers of the chunks that have a vector."""
        return torch.cat([torch.empty(0, dtype=torch.int64), *(block.chunks for block in self.blocks)])

    @property
    def size(self) -> int | None:
        """Numbers of one vector [E]; None if there is none."""
        return self.blocks[0].vectors.data.shape[1] if self.blocks else None

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors."""
        return sum(block.vectors.nbytes for block in self.blocks)

    def append(self, chunks: Serials, vectors: Float[Tensor, "U E"], dtype: StorageDtype) -> "ChunkVectors":
        """With the vectors of more chunks.

        Args:
            chunks: Their serial numbers, none of which is here yet.
            vectors: Their vectors, of unit length.
            dtype: The precision to store them in; int8 in place of int4, as for retrieval keys.
        """
        new = VectorBlock(chunks, Plane.store(vectors.contiguous(), "int8" if dtype == "int4" else dtype))
        blocks = list(self.blocks)
        if blocks and (blocks[-1].chunks[-1] > chunks[0] or blocks[-1].vectors.dtype != new.vectors.dtype):
            return self._sorted_in(new, dtype)
        if blocks and len(blocks[-1]) < BLOCK_CHUNKS:
            new = _joined([blocks.pop(), new])
        parts = [new.take(index) for index in torch.arange(len(new)).split(BLOCK_CHUNKS)]
        return replace(self, blocks=(*blocks, *parts))

    def _sorted_in(self, new: VectorBlock, dtype: StorageDtype) -> "ChunkVectors":
        """With a block whose chunks belong between others, or that is of another precision."""
        everything = [*self.blocks, new]
        chunks = torch.cat([block.chunks for block in everything])
        rows = torch.cat([block.vectors.rows(slice(None), torch.float32, HOST) for block in everything])
        order = chunks.argsort()
        return replace(self, blocks=()).append(chunks[order], rows[order], dtype)

    def keeping(self, held: Serials) -> "ChunkVectors":
        """With the vectors of these chunks only; no tensor holds another."""
        blocks: list[VectorBlock] = []
        for block in self.blocks:
            stays = torch.isin(block.chunks, held)
            if bool(stays.all()):
                blocks.append(block)
            elif bool(stays.any()):
                blocks.append(block.take(stays.nonzero().flatten()))
        unchanged = len(blocks) == len(self.blocks) and all(map(operator.is_, blocks, self.blocks))
        return self if unchanged else replace(self, blocks=tuple(blocks))

    def cosines(self, vector: Float[Tensor, " E"], chunks: Serials) -> Float[Tensor, " U"]:
        """Cosine of a unit-length vector with those of some chunks, each of which has one."""
        known = self.chunks
        every = torch.cat([block.vectors.rows(slice(None), torch.float32, HOST) @ vector for block in self.blocks])
        places = torch.searchsorted(known, chunks).clamp(max=len(known) - 1)
        assert bool((known[places] == chunks).all()), "a chunk has no vector"
        return every[places]


def _joined(blocks: Sequence[VectorBlock]) -> VectorBlock:
    """One block of the rows of several, in their stored form."""
    scales = [block.vectors.scale for block in blocks if block.vectors.scale is not None]
    data = torch.cat([block.vectors.data for block in blocks])
    return VectorBlock(
        torch.cat([block.chunks for block in blocks]), Plane(data, torch.cat(scales) if scales else None)
    )
