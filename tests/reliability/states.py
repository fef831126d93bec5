"""What the reliability tests share: a tiny model, texts, and a hash of everything that a memory holds."""

import hashlib
from dataclasses import fields

import torch

from mplus import Memory, MemoryConfig, MPlus
from mplus.memory.state import MemoryState
from mplus.memory.state_files import plain_fields
from mplus.memory.tokens import Provenance
from mplus.storage.json_fields import encode, to_json
from mplus.storage.shards import content_hash
from mplus.testing import tiny_model

CONFIG = MemoryConfig(
    chunk_tokens=16,
    minimum_chunk_tokens=8,
    tokens_per_write=16,
    short_term_tokens=32,
    recalled_tokens=32,
    consolidate_every=2,
)


def model() -> MPlus:
    torch.set_num_threads(1)
    return tiny_model(memory=CONFIG, num_hidden_layers=2)


def text(seed: int, sentences: int = 6) -> str:
    return " ".join(f"Sentence {i} of text {seed} says {seed * 31 + i * 7 % 13}." for i in range(sentences))


def hash_of(memory: Memory) -> str:
    """Equal exactly where two memories hold the same: every tensor, source, counter and snapshot."""
    states = [memory.state, *(snapshot.state for snapshot in memory.snapshots)]
    return hashlib.sha256("".join(map(_hash_of_state, states)).encode()).hexdigest()


def _hash_of_state(state: MemoryState) -> str:
    tensors: dict[str, torch.Tensor] = {}
    for number, track in enumerate(state.tracks):
        for pool in ("short_term", "pending", "long_term"):
            held = getattr(track, pool)
            every = torch.arange(len(held))
            columns = [field.name for field in fields(Provenance)]
            tensors |= {f"{number}.{pool}.{name}": getattr(held.provenance, name) for name in columns}
            if not len(held):
                continue
            content = held.content if pool == "short_term" else held.content(every, track.dtype, track.devices)
            tensors[f"{number}.{pool}.retrieval_keys"] = content.retrieval_keys
            for kind in ("keys", "values"):
                tensors |= {f"{number}.{pool}.{kind}.{n}": rows for n, rows in enumerate(getattr(content, kind))}
    if state.context is not None:
        tensors |= {f"context.{n}": rows for n, rows in enumerate((*state.context.states, state.context.sources))}
    plain = {name: encode(getattr(state, name)) for name in plain_fields()}
    return content_hash(tensors) + hashlib.sha256(to_json(plain)).hexdigest()
