"""How often long-term tokens were recalled, which says how long they may stay."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from mplus.memory.state import MemoryState


def recalled(state: MemoryState, births: Sequence[Int[Tensor, " _"]], gain: float) -> MemoryState:
    """The state once a read has used some of its long-term tokens.

    Args:
        state: The state, which may be a later one than the read saw.
        births: For each track, how many tokens had been written when each recalled token was. That number never
            changes, so a write or a consolidation in between does not matter.
        gain: What is added to the recall frequency of each.
    """
    tracks = list(state.tracks)
    for number, (track, born) in enumerate(zip(tracks, births, strict=True)):
        known = track.long_term.provenance
        is_recalled = torch.isin(state.written_tokens - known.ages, born)
        provenance = known.changed(recall_frequencies=known.recall_frequencies + gain * is_recalled)
        tracks[number] = replace(track, long_term=replace(track.long_term, provenance=provenance))
    return replace(state, tracks=tuple(tracks))
