"""Comparing memories: their pools, and what a read of them gives."""

import torch

from mplus.model import MPlus
from mplus.read.prefill import prefill

QUESTION = "Which box is blue?"


def pools(memory):
    for track in memory.state.tracks:
        yield track.short_term.provenance
        yield track.pending.provenance
        yield track.long_term.provenance


def everything(memory):
    """All keys and values of a memory, oldest first."""
    track = memory.state.tracks[0]
    stores = [p for p in (track.long_term, track.pending) if len(p)]
    parts = [p.content(torch.arange(len(p)), torch.float32, track.devices) for p in stores] + [track.short_term.content]
    return [torch.cat([part.keys[layer] for part in parts]) for layer in range(4)], [
        torch.cat([part.values[layer] for part in parts]) for layer in range(4)
    ]


def assert_same(one, other, *, atol=1e-5) -> None:
    assert len(one.state.tracks[0]) == len(other.state.tracks[0])
    for ours, theirs in zip(everything(one), everything(other), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=atol, rtol=atol)
    for a, b in zip(pools(one), pools(other), strict=True):
        assert torch.equal(a.ages, b.ages)
        assert torch.equal(a.chunks, b.chunks)


def logits(model: MPlus, memory, prompt: str = QUESTION) -> torch.Tensor:
    return prefill(model.weights, [model.read_request(memory, prompt)], all_logits=True).logits
