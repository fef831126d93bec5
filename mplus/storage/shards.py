"""Shards: files of tensors in which each block of rows can be read, checked and decrypted separately.

A plain shard is a safetensors file with one additional tensor, the CRC-32 of every block. A sealed shard holds
the same header and blocks, each encrypted by AES-GCM. The header and all checksums are covered by a SHA-256 in
the memory's manifest, so that opening a shard reads its header only: rows stay on disk, mapped into
memory, and a block is checked when it is first used.
"""

import hashlib
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Shaped
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mplus.errors import CorruptMemoryError, damage_in
from mplus.storage.blocks import BlockTable, TensorExtent
from mplus.storage.encryption import MemoryKey
from mplus.storage.folder import open_regular
from mplus.storage.place import Sink

MAX_HEADER_BYTES = 2**21


class ShardSum(BaseModel):
    """Size and checksum that a manifest has of a file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    nbytes: int = Field(ge=0, le=2**50)
    """Size of the file."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 of the shard's header and checksums, or of the whole file if it is not a shard."""


# --- writing ------------------------------------------------------------------------------------------


def shard_bytes(tensors: Mapping[str, Tensor], key: MemoryKey | None) -> int:
    """The size in bytes of the file that ``write_shard`` would write."""
    table = BlockTable.of(tensors)
    header = len(table.header(sealed=key is not None))
    if key is None:
        return 8 + header + table.nbytes + 4 * table.num_blocks
    return key.head_bytes + 8 + header + table.nbytes + key.overhead * (1 + table.num_blocks)


def write_shard(file: Sink, name: str, tensors: Mapping[str, Tensor], key: MemoryKey | None) -> ShardSum:
    """Write tensors to a file in one pass, from whatever device they are on."""
    table = BlockTable.of(tensors)
    header = table.header(sealed=key is not None)
    sums = np.zeros(table.num_blocks, dtype="<u4")
    cipher = None if key is None else key.new_cipher(name)
    if cipher is None:
        head = len(header).to_bytes(8, "little") + header
    else:
        sealed = cipher.encrypt(0, header)
        head = cipher.head + len(sealed).to_bytes(8, "little") + sealed
    size = file.write(head)
    for inner, tensor in table.tensors.items():
        data = as_bytes(tensors[inner])
        for number, (start, stop) in enumerate(tensor.blocks(), tensor.first_block):
            if cipher is None:
                sums[number] = zlib.crc32(data[start:stop])
            else:
                size += file.write(cipher.encrypt(number + 1, data[start:stop]))
        if cipher is None:
            size += file.write(data)
    tail = sums.tobytes() if cipher is None else b""
    size += file.write(tail)
    return ShardSum(nbytes=size, sha256=hashlib.sha256(head + tail).hexdigest())


def as_bytes(tensor: Shaped[Tensor, "..."]) -> memoryview:
    """The bytes of a tensor, without a copy if it is in host memory already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def content_hash(tensors: Mapping[str, Tensor], key: bytes = b"") -> str:
    """A name derived from the tensors' content; derived with the key if there is one, so that it reveals nothing."""
    digest = hashlib.sha256(key)
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)};".encode())
        digest.update(as_bytes(tensors[name]))
    return digest.hexdigest()[:32]


# --- reading ------------------------------------------------------------------------------------------


class OpenShard:
    """A shard whose rows are read when they are used.

    Raises:
        CorruptMemoryError: The file is not the one that was saved.
    """

    def __init__(self, path: Path, expected: ShardSum | None, *, key: MemoryKey | None = None) -> None:
        self.path = path
        with damage_in(path), open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if expected is not None and size != expected.nbytes:
                raise CorruptMemoryError(f"it has {size:,} bytes, expected {expected.nbytes:,}: it was cut or altered")
            head = file.read((0 if key is None else key.head_bytes) + 8)
            length = int.from_bytes(head[-8:], "little")
            if length > min(MAX_HEADER_BYTES, size - len(head)):
                raise CorruptMemoryError(f"it announces a header of {length:,} bytes: it was altered")
            header = file.read(length)
            self._data_start = len(head) + length
            self._cipher = None if key is None else key.cipher(path.name, head[:-8])
            plain = header if self._cipher is None else self._cipher.decrypt(0, header)
            self.table = BlockTable.parse(plain, room=size - self._data_start, sealed=key is not None)
            file.seek(self._data_start + self.table.nbytes)
            tail = file.read(4 * self.table.num_blocks) if key is None else b""
            overhead = 4 if self._cipher is None else self._cipher.overhead
            if size != self._data_start + self.table.nbytes + overhead * self.table.num_blocks:
                raise CorruptMemoryError(f"its {size:,} bytes do not hold what its header says: it was altered")
            if expected is not None and hashlib.sha256(head + header + tail).hexdigest() != expected.sha256:
                raise CorruptMemoryError("it was altered after it was saved")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # never written to
        self._sums = np.frombuffer(tail, dtype="<u4")
        self._checked = np.zeros(len(self._sums), dtype=bool)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def rows(self, name: str, index: Int[Tensor, " T"] | slice) -> Tensor:
        """A checked copy of some rows of a tensor; ``index`` lists them or is a slice."""
        tensor = self.table.tensors[name]
        blocks = _touched(tensor, index)
        if not blocks:
            return torch.empty(0, *tensor.shape[1:], dtype=tensor.dtype)
        if self._cipher is None:
            self._check(name, blocks)
            found = self._view(name)[index]
            return found.clone() if isinstance(index, slice) else found
        held = torch.cat([self._decrypted(name, block) for block in blocks])
        if isinstance(index, slice):
            start, stop, _ = index.indices(tensor.shape[0])
            return held[start - blocks[0] * tensor.rows_per_block : stop - blocks[0] * tensor.rows_per_block]
        place = torch.searchsorted(torch.tensor(list(blocks)), index // tensor.rows_per_block)
        return held[place * tensor.rows_per_block + index % tensor.rows_per_block]

    def prefetch(self, name: str, index: Int[Tensor, " T"] | slice) -> None:
        """Ask the operating system to fetch the blocks of some rows, all at once and without waiting for them.

        Skips blocks that were read before, since most of them are still in memory.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        tensor = self.table.tensors[name]
        begin = end = 0
        for block in _touched(tensor, index):
            if self._cipher is None and self._checked[tensor.first_block + block]:
                continue
            start, stop = self._extent(tensor, block)
            if start != end:
                self._fetch(begin, end)
                begin = start
            end = stop
        self._fetch(begin, end)

    def _fetch(self, start: int, stop: int) -> None:
        if start < stop:
            start -= start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, stop - start)

    def whole(self, name: str) -> Tensor:
        """A whole tensor, checked; mapped from the file if that is not encrypted."""
        tensor = self.table.tensors[name]
        blocks = range(tensor.num_blocks)
        if self._cipher is None:
            self._check(name, blocks)
            return self._view(name)
        if not blocks:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        return torch.cat([self._decrypted(name, block) for block in blocks])

    def resident(self, name: str) -> Tensor:
        """A checked copy of a whole tensor in host memory; the file is read in one piece, not page by page."""
        tensor = self.table.tensors[name]
        if self._cipher is not None or not tensor.nbytes:
            return self.whole(name).clone()
        with open_regular(self.path) as file:
            file.seek(self._data_start + tensor.start)
            data = bytearray(file.read(tensor.nbytes))
        view = memoryview(data)
        for number, (start, stop) in enumerate(tensor.blocks(), tensor.first_block):
            if zlib.crc32(view[start:stop]) != self._sums[number]:
                raise CorruptMemoryError(f"{name} was altered after it was saved. Restore it from a copy.", self.path)
        return torch.frombuffer(data, dtype=tensor.dtype).view(tensor.shape)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, checked."""
        return {name: self.whole(name) for name in self.table.tensors}

    def _view(self, name: str) -> Tensor:
        tensor = self.table.tensors[name]
        start = self._data_start + tensor.start
        return self._bytes[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def _check(self, name: str, blocks: range | list[int]) -> None:
        tensor = self.table.tensors[name]
        window = range(tensor.first_block + blocks[0], tensor.first_block + blocks[-1] + 1) if blocks else range(0)
        if self._checked[window.start : window.stop].all():
            return
        data = self._bytes.numpy().data
        for block in blocks:
            number = tensor.first_block + block
            if self._checked[number]:
                continue
            start, stop = self._extent(tensor, block)
            if zlib.crc32(data[start:stop]) != self._sums[number]:
                raise CorruptMemoryError(
                    f"bytes {start:,} to {stop:,} were altered after it was saved. Restore it from a copy.", self.path
                )
            self._checked[number] = True

    def _decrypted(self, name: str, block: int) -> Tensor:
        assert self._cipher is not None
        tensor = self.table.tensors[name]
        rows = min(tensor.rows_per_block, tensor.shape[0] - block * tensor.rows_per_block)
        start, stop = self._extent(tensor, block)
        with damage_in(self.path):
            plain = self._cipher.decrypt(tensor.first_block + block + 1, self._bytes[start:stop].numpy())
        return torch.frombuffer(bytearray(plain), dtype=tensor.dtype).view(rows, *tensor.shape[1:])

    def _extent(self, tensor: TensorExtent, block: int) -> tuple[int, int]:
        """First and last byte of a block in the file."""
        overhead = 0 if self._cipher is None else self._cipher.overhead
        first_row = block * tensor.rows_per_block
        rows = min(tensor.rows_per_block, tensor.shape[0] - first_row)
        before = first_row * tensor.row_bytes + (tensor.first_block + block) * overhead
        start = self._data_start + tensor.start + before
        return start, start + rows * tensor.row_bytes + overhead


def _touched(tensor: TensorExtent, index: Int[Tensor, " T"] | slice) -> range | list[int]:
    """Numbers of the blocks that contain the rows at ``index``, in order."""
    per_block = tensor.rows_per_block
    if isinstance(index, slice):
        start, stop, step = index.indices(tensor.shape[0])
        assert step == 1, "rows are read by number, or as a run"
        return range(start // per_block, -(-stop // per_block)) if start < stop else range(0)
    if not len(index):
        return range(0)
    first, last = (int(bound) // per_block for bound in index.aminmax())
    blocks = range(first, last + 1)
    return blocks if len(blocks) <= len(index) else (index // per_block).unique().tolist()
