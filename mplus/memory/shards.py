"""Shards: files of tensors of which every block of rows can be read, checked or decrypted by itself.

A plain shard is a safetensors file with one tensor more, a CRC-32 of every block. A sealed one holds the
same header and blocks, each encrypted by AES-GCM. The header and all checksums are covered by a SHA-256 in
the memory's manifest, so that opening a shard reads its header only: rows stay on disk, mapped into
memory, and a block is checked when it is first used.
"""

import hashlib
import json
import os
import stat
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Shaped
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from mplus.errors import CorruptMemoryError
from mplus.memory.folders import Sink

BLOCK_BYTES = 2**16
MAX_HEADER_BYTES = 2**21
MAX_TENSORS = 2**16
MAX_DIMENSIONS = 8
CHECKSUMS = "checksums"
DTYPES: dict[str, torch.dtype] = {
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
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardSum(BaseModel):
    """What a manifest knows of a file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    nbytes: int = Field(ge=0, le=2**50)
    """Size of the file."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of its header and checksums; of all of it where the file is no shard."""


@runtime_checkable
class Cipher(Protocol):
    """Encryption of the blocks of one shard, each under its own number."""

    head: bytes
    """What the file begins with, so that the key of this shard can be found again."""
    overhead: int
    """Bytes that a block grows by."""

    def encrypt(self, number: int, block: Any) -> bytes:
        """An encrypted block."""
        ...

    def decrypt(self, number: int, block: Any) -> bytes:
        """The block again; raises ``CorruptMemoryError`` where it was altered."""
        ...


@runtime_checkable
class Seal(Protocol):
    """A key, as shards see it."""

    head_bytes: int
    overhead: int

    def new_cipher(self, name: str) -> Cipher:
        """Encryption of a new shard of that name."""
        ...

    def cipher(self, name: str, head: bytes) -> Cipher:
        """Decryption of the shard that begins with ``head``."""
        ...


# --- layout -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorLayout:
    """Where one tensor of a shard lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from where the data begins."""
    first_block: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.shape[0] * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        size = self.dtype.itemsize
        for extent in self.shape[1:]:
            size *= extent
        return size

    @property
    def rows_per_block(self) -> int:
        """A block is a run of whole rows, of about BLOCK_BYTES."""
        return max(BLOCK_BYTES // max(self.row_bytes, 1), 1)

    @property
    def num_blocks(self) -> int:
        """How many blocks the tensor has."""
        return -(-self.shape[0] // self.rows_per_block) if self.row_bytes else 0

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last byte of each block, within the tensor."""
        step = self.rows_per_block * self.row_bytes
        for number in range(self.num_blocks):
            yield number * step, min((number + 1) * step, self.nbytes)


@dataclass(frozen=True)
class Layout:
    """The tensors of a shard, in the order of the file."""

    tensors: Mapping[str, TensorLayout]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """Lay tensors out, the widest numbers first so that every one is aligned."""
        placed: dict[str, TensorLayout] = {}
        start = block = 0
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
            tensor = tensors[name]
            placed[name] = TensorLayout(tensor.dtype, tuple(tensor.shape), start, block)
            start, block = start + placed[name].nbytes, block + placed[name].num_blocks
        return cls(placed)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def num_blocks(self) -> int:
        """Blocks of all tensors."""
        return sum(tensor.num_blocks for tensor in self.tensors.values())

    def header(self, *, sealed: bool) -> bytes:
        """The safetensors header; a sealed shard needs no checksums."""
        described: dict[str, Any] = {"__metadata__": {"format": "mplus", "block_bytes": str(BLOCK_BYTES)}}
        entries = [(name, t.dtype, t.shape, t.start, t.start + t.nbytes) for name, t in self.tensors.items()]
        if not sealed:
            sums = self.num_blocks
            entries.append((CHECKSUMS, torch.uint8, (sums, 4), self.nbytes, self.nbytes + 4 * sums))
        for name, dtype, shape, start, stop in entries:
            described[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        text = json.dumps(described, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    @classmethod
    def parse(cls, header: bytes, *, room: int, sealed: bool) -> "Layout":
        """Read a header, believing nothing of it.

        Args:
            header: Its bytes.
            room: Bytes that follow it in the file.
            sealed: Whether blocks are encrypted.

        Raises:
            CorruptMemoryError: It does not describe tensors that fill those bytes exactly.
        """
        try:
            described = json.loads(header)
            described.pop("__metadata__", None)
            if len(described) > MAX_TENSORS:
                raise ValueError(f"{len(described)} tensors")
            placed: dict[str, TensorLayout] = {}
            start = block = 0
            for name, entry in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
                shape, offsets = entry["shape"], entry["data_offsets"]
                whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, *offsets))
                if not whole or not 1 <= len(shape) <= MAX_DIMENSIONS:
                    raise ValueError(f"tensor {name!r} has shape {shape!r:.80} at {offsets!r:.80}")
                tensor = TensorLayout(DTYPES[entry["dtype"]], tuple(shape), start, block)
                if offsets != [start, start + tensor.nbytes] or tensor.nbytes > room:
                    raise ValueError(f"tensor {name!r} does not lie where it should")
                placed[name] = tensor
                start, block = start + tensor.nbytes, block + tensor.num_blocks
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptMemoryError(f"its header is not one of a shard ({error})") from error
        sums = None if sealed else placed.pop(CHECKSUMS, None)
        layout = cls(placed)
        expected = (layout.num_blocks, 4)
        if not sealed and (sums is None or sums.shape != expected or sums.start != layout.nbytes):
            raise CorruptMemoryError("it lacks the checksums of its blocks")
        return layout


# --- writing ------------------------------------------------------------------------------------------


def shard_bytes(tensors: Mapping[str, Tensor], seal: Seal | None) -> int:
    """The size of the file that ``write_shard`` makes, before it is made."""
    layout = Layout.of(tensors)
    header = len(layout.header(sealed=seal is not None))
    if seal is None:
        return 8 + header + layout.nbytes + 4 * layout.num_blocks
    return seal.head_bytes + 8 + header + layout.nbytes + seal.overhead * (1 + layout.num_blocks)


def write_shard(file: Sink, name: str, tensors: Mapping[str, Tensor], seal: Seal | None) -> ShardSum:
    """Write tensors in one pass, from where they are to the file."""
    layout = Layout.of(tensors)
    header = layout.header(sealed=seal is not None)
    sums = np.zeros(layout.num_blocks, dtype="<u4")
    cipher = None if seal is None else seal.new_cipher(name)
    if cipher is None:
        head = len(header).to_bytes(8, "little") + header
    else:
        sealed = cipher.encrypt(0, header)
        head = cipher.head + len(sealed).to_bytes(8, "little") + sealed
    size = file.write(head)
    for key, tensor in layout.tensors.items():
        data = as_bytes(tensors[key])
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
    """The bytes of a tensor, without a copy where it is in host memory already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def content_hash(tensors: Mapping[str, Tensor], key: bytes = b"") -> str:
    """A name made of what tensors hold; keyed where even that should say nothing."""
    digest = hashlib.sha256(key)
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)};".encode())
        digest.update(as_bytes(tensors[name]))
    return digest.hexdigest()[:32]


# --- reading ------------------------------------------------------------------------------------------


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a link, folder or device in its place is an altered memory.

    Raises:
        CorruptMemoryError: It is missing or no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise CorruptMemoryError(f"{path}: missing or not readable ({error.strerror}). Restore it.") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CorruptMemoryError(f"{path}: not a regular file. Restore it from a copy.")
    return os.fdopen(handle, "rb")


class OpenShard:
    """A shard whose rows are read when they are asked for.

    Raises:
        CorruptMemoryError: The file is not the one that its memory was saved with.
    """

    def __init__(self, path: Path, expected: ShardSum | None, *, seal: Seal | None = None) -> None:
        self.path = path
        self._cipher: Cipher | None = None
        self._lock = threading.Lock()
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if expected is not None and size != expected.nbytes:
                raise CorruptMemoryError(
                    f"{path}: {size:,} bytes, expected {expected.nbytes:,}. It was cut or altered."
                )
            head = file.read((0 if seal is None else seal.head_bytes) + 8)
            length = int.from_bytes(head[-8:], "little")
            if length > min(MAX_HEADER_BYTES, size - len(head)):
                raise CorruptMemoryError(f"{path}: announces a header of {length:,} bytes. It was altered.")
            header = file.read(length)
            self._data_start = len(head) + length
            try:
                if seal is not None:
                    self._cipher = seal.cipher(path.name, head[:-8])
                    plain = self._cipher.decrypt(0, header)
                else:
                    plain = header
                self.layout = Layout.parse(plain, room=size - self._data_start, sealed=seal is not None)
            except CorruptMemoryError as error:
                raise CorruptMemoryError(f"{path}: {error}. Restore it from a copy.") from error
            tail = b""
            if seal is None:
                file.seek(self._data_start + self.layout.nbytes)
                tail = file.read(4 * self.layout.num_blocks)
        overhead = 4 if self._cipher is None else self._cipher.overhead
        if size != self._data_start + self.layout.nbytes + overhead * self.layout.num_blocks:
            raise CorruptMemoryError(f"{path}: {size:,} bytes do not hold what its header says. It was altered.")
        if expected is not None and hashlib.sha256(head + header + tail).hexdigest() != expected.sha256:
            raise CorruptMemoryError(f"{path}: was altered after it was saved. Restore it from a copy.")
        self._sums = np.frombuffer(tail, dtype="<u4")
        self._checked = np.zeros(len(self._sums), dtype=bool)
        self._bytes = _mapped(path, size)

    def rows(self, name: str, index: Int[Tensor, " T"] | slice) -> Tensor:
        """Some rows of a tensor, checked."""
        tensor = self.layout.tensors[name]
        if isinstance(index, slice):
            index = torch.arange(tensor.shape[0])[index]
        if not len(index):
            return torch.empty(0, *tensor.shape[1:], dtype=tensor.dtype)
        first, last = (int(bound) // tensor.rows_per_block for bound in index.aminmax())
        blocks = range(first, last + 1)
        if len(blocks) > len(index):
            blocks = (index // tensor.rows_per_block).unique().tolist()
        if self._cipher is None:
            self._check(name, blocks)
            return self._view(name)[index]
        held = [self._decrypted(name, block) for block in blocks]
        place = torch.searchsorted(torch.tensor(list(blocks)), index // tensor.rows_per_block)
        return torch.cat(held)[place * tensor.rows_per_block + index % tensor.rows_per_block]

    def whole(self, name: str) -> Tensor:
        """A whole tensor, checked; mapped from the file where that is not encrypted."""
        tensor = self.layout.tensors[name]
        blocks = range(tensor.num_blocks)
        if self._cipher is None:
            self._check(name, blocks)
            return self._view(name)
        if not blocks:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        return torch.cat([self._decrypted(name, block) for block in blocks])

    def verify(self) -> None:
        """Check every block."""
        for name in self.layout.tensors:
            self.whole(name)

    def _view(self, name: str) -> Tensor:
        tensor = self.layout.tensors[name]
        start = self._data_start + tensor.start
        return self._bytes[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

    def _check(self, name: str, blocks: range | list[int]) -> None:
        tensor = self.layout.tensors[name]
        window = range(tensor.first_block + blocks[0], tensor.first_block + blocks[-1] + 1) if blocks else range(0)
        if self._checked[window.start : window.stop].all():
            return
        data = self._bytes.numpy().data
        for block in blocks:
            number = tensor.first_block + block
            if self._checked[number]:
                continue
            start = self._data_start + tensor.start + block * tensor.rows_per_block * tensor.row_bytes
            stop = min(
                start + tensor.rows_per_block * tensor.row_bytes, self._data_start + tensor.start + tensor.nbytes
            )
            if zlib.crc32(data[start:stop]) != self._sums[number]:
                raise CorruptMemoryError(
                    f"{self.path}: bytes {start:,} to {stop:,} were altered after it was saved. Restore it from a copy."
                )
            self._checked[number] = True

    def _decrypted(self, name: str, block: int) -> Tensor:
        assert self._cipher is not None
        tensor, overhead = self.layout.tensors[name], self._cipher.overhead
        rows = min(tensor.rows_per_block, tensor.shape[0] - block * tensor.rows_per_block)
        number = tensor.first_block + block
        start = self._data_start + tensor.start + block * tensor.rows_per_block * tensor.row_bytes + number * overhead
        sealed = self._bytes[start : start + rows * tensor.row_bytes + overhead].numpy()
        try:
            plain = self._cipher.decrypt(number + 1, sealed)
        except CorruptMemoryError as error:
            raise CorruptMemoryError(f"{self.path}: {error}. Restore it from a copy.") from error
        return torch.frombuffer(bytearray(plain), dtype=tensor.dtype).view(rows, *tensor.shape[1:])


def _mapped(path: Path, size: int) -> Tensor:
    """The bytes of a file, read when they are touched."""
    storage = torch.UntypedStorage.from_file(str(path), False, size)  # pyright: ignore[reportAttributeAccessIssue]
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,))  # pyright: ignore[reportCallIssue]
