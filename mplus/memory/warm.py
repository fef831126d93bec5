"""Keys and values of chunks that a memory keeps as token ids: made when they are read, and held up to a limit.

They depend on the chunk's token ids alone, since such a chunk is encoded by itself. So they are found by a hash of the
ids, whoever holds the chunk, and dropping them changes no answer: they are made again, bit for bit.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from mplus.config import MemoryConfig, StorageDtype
from mplus.forks import ProcessLock
from mplus.memory.long_term import LongTermMemory
from mplus.memory.tiers import Segment, SegmentTier
from mplus.memory.tokens import Tokens


def chunk_key(input_ids: Int32[Tensor, " T"]) -> bytes:
    """What the keys and values of a chunk are found by."""
    return hashlib.blake2b(input_ids.contiguous().numpy().tobytes(), digest_size=16).digest()


class WarmChunks:
    """Keys and values of whole chunks; the least recently used are dropped first.

    All states of a memory and its forks share one, until something is forgotten: the forgetting memory then goes on
    with a copy that never held it.

    Args:
        dtype: Storage dtype of long-term keys and values.
        tier: Where they are kept, "device" or "host".
        max_bytes: Most bytes that are held.
    """

    def __init__(self, dtype: StorageDtype, tier: SegmentTier, max_bytes: int) -> None:
        self.dtype: StorageDtype = dtype
        self.tier: SegmentTier = tier
        self.max_bytes = max_bytes
        self.encoded_tokens = 0
        """Text tokens that went through all layers for reads."""
        self._held: OrderedDict[tuple[bytes, StorageDtype], Segment] = OrderedDict()
        self._nbytes = 0
        self._short_term: WeakKeyDictionary[Tokens, Tokens] = WeakKeyDictionary()
        self._guard = ProcessLock()

    @classmethod
    def of(cls, config: MemoryConfig, tier: SegmentTier) -> "WarmChunks | None":
        """Room for the chunks of a memory of this layout; None if it keeps all keys and values itself."""
        if not config.keeps_ids:
            return None
        return cls(config.resolved_long_term_dtype, tier, config.long_term_latent_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks and short-term pools that are held."""
        with self._guard:
            return self._nbytes + sum(whole.nbytes for whole in self._short_term.values())

    @property
    def room(self) -> int:
        """Bytes that can be added before another chunk is dropped."""
        return max(self.max_bytes - self._nbytes, 0)

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: bytes, dtype: StorageDtype) -> Segment | None:
        """A chunk's keys and values in a storage dtype; None if they have to be made.

        Those held in the model's own dtype are brought into another one as they would be in long-term memory.
        """
        with self._guard:
            found = self._held.get((key, dtype))
            if found is None and dtype != "auto" and (plain := self._held.get((key, "auto"))) is not None:
                found = plain.converted(dtype)
                self.put(key, dtype, found)
            elif found is not None:
                self._held.move_to_end((key, dtype))
            return found

    def put(self, key: bytes, dtype: StorageDtype, segment: Segment) -> None:
        """Hold a chunk's keys and values; the least recently used chunks make room."""
        with self._guard:
            if segment.nbytes > self.max_bytes:
                return
            before = self._held.pop((key, dtype), None)
            self._nbytes += segment.nbytes - (0 if before is None else before.nbytes)
            self._held[key, dtype] = segment
            while self._nbytes > self.max_bytes:
                self._nbytes -= self._held.popitem(last=False)[1].nbytes

    def short_term(self, pool: Tokens) -> Tokens | None:
        """What ``keep_short_term`` was given for a pool; None if it was not, or the pool is gone."""
        with self._guard:
            return self._short_term.get(pool)

    def note_encoded(self, num_tokens: int) -> None:
        """Count text tokens that went through all layers for a read."""
        with self._guard:
            self.encoded_tokens += num_tokens

    def settle(self, keys: Collection[bytes]) -> None:
        """Bring chunks that moved to long-term memory into its storage dtype, if they are held."""
        with self._guard:
            for key in keys if self.dtype != "auto" else ():
                if (key, "auto") in self._held:
                    self.get(key, self.dtype)
                    plain = self._held.pop((key, "auto"), None)
                    self._nbytes -= 0 if plain is None else plain.nbytes

    def keep_short_term(self, pool: Tokens, whole: Tokens) -> None:
        """Hold a short-term pool with its keys and values for as long as the pool itself is held."""
        with self._guard:
            self._short_term[pool] = whole

    def drop(self) -> None:
        """Drop everything that is held; later reads make it again."""
        with self._guard:
            self._held.clear()
            self._short_term.clear()
            self._nbytes = 0

    def anew(self) -> "WarmChunks":
        """The same room with nothing in it."""
        return WarmChunks(self.dtype, self.tier, self.max_bytes)

    def without(self, keys: Collection[bytes]) -> "WarmChunks":
        """A copy without some chunks; short-term pools are not copied."""
        other = self.anew()
        with self._guard:
            held = list(self._held.items())
        for (key, dtype), segment in held:
            if key not in keys:
                other.put(key, dtype, segment)
        return other

    def at(self, source: int) -> "WarmChunks":
        """The room for chunks of a source."""
        return self

    def beside(self, key: bytes) -> "WarmChunks":
        """The same room for a state with one more chunk, that waits in the tail and may still grow or be forgotten."""
        return _Beside(self, key)


class _Beside(WarmChunks):
    """A room that holds one chunk itself, and all others where the memory holds them."""

    def __init__(self, whole: WarmChunks, key: bytes) -> None:
        super().__init__(whole.dtype, whole.tier, whole.max_bytes)
        self._whole, self._key = whole, key

    @property
    def room(self) -> int:
        return self._whole.room

    def get(self, key: bytes, dtype: StorageDtype) -> Segment | None:
        own = super().get(key, dtype) if key == self._key else None
        return self._whole.get(key, dtype) if own is None else own

    def put(self, key: bytes, dtype: StorageDtype, segment: Segment) -> None:
        super().put(key, dtype, segment) if key == self._key else self._whole.put(key, dtype, segment)

    def note_encoded(self, num_tokens: int) -> None:
        self._whole.note_encoded(num_tokens)

    def without(self, keys: Collection[bytes]) -> WarmChunks:
        return self._whole.without(keys)


@dataclass(frozen=True)
class JoinedWarm:
    """The rooms of several memories that are read together; each keeps its own chunks.

    Attributes:
        rooms: First row of each memory in the table of sources of the read, ascending, and its room.
    """

    rooms: tuple[tuple[int, WarmChunks | None], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks that all of them hold."""
        return sum(room.nbytes for _, room in self.rooms if room is not None)

    def drop(self) -> None:
        """Drop what all of them hold."""
        for _, room in self.rooms:
            if room is not None:
                room.drop()

    def at(self, source: int) -> WarmChunks:
        """The room of the memory that a source belongs to."""
        found = next(room for first, room in reversed(self.rooms) if first <= source)
        assert found is not None, "only chunks kept as token ids are asked for"
        return found


Warm = WarmChunks | JoinedWarm


def runs(chunks: Int[Tensor, " T"]) -> list[Int[Tensor, " _"]]:
    """Places of each run of equal chunk numbers."""
    cuts = (chunks.diff() != 0).nonzero().flatten() + 1
    return list(torch.arange(len(chunks)).tensor_split(cuts)) if len(chunks) else []


def chunk_keys(pool: Tokens | LongTermMemory, rows: Int[Tensor, " _"]) -> list[bytes]:
    """Keys of the chunks at the given rows of a pool."""
    ids = pool.input_ids(rows) if len(rows) else torch.empty(0, dtype=torch.int32)
    return [chunk_key(ids[run]) for run in runs(pool.provenance.at("chunks", rows))]
