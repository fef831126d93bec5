"""The position of each tensor in a shard file, and the blocks that it is cut into."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from mplus.computed_once import computed_once
from mplus.errors import CorruptMemoryError

BLOCK_BYTES = 2**14
"""Bytes of a block in new files: about one chunk of one layer. A block is the least that can be read and checked."""
MOST_BLOCK_BYTES = 2**30
MAX_TENSORS = 2**16
MAX_DIMENSIONS = 8
CHECKSUMS = "checksums"
DTYPE_BY_CODE: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODE_BY_DTYPE = {dtype: name for name, dtype in DTYPE_BY_CODE.items()}
ITEM_BYTES = {dtype: dtype.itemsize for dtype in CODE_BY_DTYPE}
"""Bytes of one number by dtype; asking torch each time took a third of the time to open a large memory."""


@dataclass(frozen=True)
class TensorExtent:
    """The position of one tensor in a shard file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from where the data begins."""
    first_block: int
    block_bytes: int

    @computed_once
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.shape[0] * self.row_bytes

    @computed_once
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ITEM_BYTES[self.dtype] * prod(self.shape[1:])

    @computed_once
    def rows_per_block(self) -> int:
        """How many whole rows a block of about ``block_bytes`` bytes has."""
        return max(self.block_bytes // max(self.row_bytes, 1), 1)

    @computed_once
    def num_blocks(self) -> int:
        """How many blocks the tensor has."""
        return -(-self.shape[0] // self.rows_per_block) if self.row_bytes else 0

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last byte of each block, within the tensor."""
        step = self.rows_per_block * self.row_bytes
        for number in range(self.num_blocks):
            yield number * step, min((number + 1) * step, self.nbytes)


@dataclass(frozen=True)
class BlockTable:
    """The tensors of a shard, in the order of the file."""

    tensors: Mapping[str, TensorExtent]
    block_bytes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "BlockTable":
        """Lay tensors out, those with the widest numbers first, so that each is aligned."""
        placed: dict[str, TensorExtent] = {}
        start = block = 0
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
            tensor = tensors[name]
            placed[name] = TensorExtent(tensor.dtype, tuple(tensor.shape), start, block, BLOCK_BYTES)
            start, block = start + placed[name].nbytes, block + placed[name].num_blocks
        return cls(placed, BLOCK_BYTES)

    @computed_once
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @computed_once
    def num_blocks(self) -> int:
        """Blocks of all tensors."""
        return sum(tensor.num_blocks for tensor in self.tensors.values())

    def header(self, *, sealed: bool) -> bytes:
        """The safetensors header. A sealed (encrypted) shard has no checksums: AES-GCM authenticates its blocks."""
        described: dict[str, Any] = {"__metadata__": {"format": "mplus", "block_bytes": str(self.block_bytes)}}
        entries = [(name, t.dtype, t.shape, t.start, t.start + t.nbytes) for name, t in self.tensors.items()]
        if not sealed:
            sums = self.num_blocks
            entries.append((CHECKSUMS, torch.uint8, (sums, 4), self.nbytes, self.nbytes + 4 * sums))
        for name, dtype, shape, start, stop in entries:
            described[name] = {"dtype": CODE_BY_DTYPE[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        text = json.dumps(described, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    @classmethod
    def parse(cls, header: bytes, *, room: int, sealed: bool) -> "BlockTable":
        """Read a header and check everything it says.

        Args:
            header: The header's bytes.
            room: Number of bytes that follow the header in the file.
            sealed: Whether blocks are encrypted.

        Raises:
            CorruptMemoryError: The header does not describe tensors that fill those bytes exactly.
        """
        try:
            described = json.loads(header)
            block_bytes = int(described.pop("__metadata__")["block_bytes"])
            if not 0 < block_bytes <= MOST_BLOCK_BYTES:
                raise ValueError(f"blocks of {block_bytes} bytes")
            if len(described) > MAX_TENSORS:
                raise ValueError(f"{len(described)} tensors")
            placed: dict[str, TensorExtent] = {}
            start = block = 0
            for name, entry in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
                shape, offsets = entry["shape"], entry["data_offsets"]
                whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, *offsets))
                if not whole or not 1 <= len(shape) <= MAX_DIMENSIONS:
                    raise ValueError(f"tensor {name!r} has shape {shape!r:.80} at {offsets!r:.80}")
                tensor = TensorExtent(DTYPE_BY_CODE[entry["dtype"]], tuple(shape), start, block, block_bytes)
                if offsets != [start, start + tensor.nbytes] or tensor.nbytes > room:
                    raise ValueError(f"tensor {name!r} is not at its expected position")
                placed[name] = tensor
                start, block = start + tensor.nbytes, block + tensor.num_blocks
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptMemoryError(f"its header is not one of a shard ({error})") from error
        sums = None if sealed else placed.pop(CHECKSUMS, None)
        table = cls(placed, block_bytes)
        expected = (table.num_blocks, 4)
        if not sealed and (sums is None or sums.shape != expected or sums.start != table.nbytes):
            raise CorruptMemoryError("it lacks the checksums of its blocks")
        return table
