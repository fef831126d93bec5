"""``NewMemories``: memories in which nothing has been written."""

from dataclasses import replace
from typing import Any

import torch

from mplus.checkpoint.initial_memory import initial_state
from mplus.checkpoint.parts import TrainedParts
from mplus.config import MemoryConfig
from mplus.forks import ProcessLock
from mplus.memory.memory import Memory
from mplus.memory.state import Lineage, MemoryState
from mplus.weights import Weights


class NewMemories:
    """Makes new memories for one model.

    Args:
        weights: The model.
        tokenizer: Its tokenizer.
        parts: What training added to it; a published checkpoint brings a memory.
    """

    def __init__(self, weights: Weights, tokenizer: Any, parts: TrainedParts) -> None:
        self._weights, self._tokenizer, self._parts = weights, tokenizer, parts
        self._initial_states: dict[MemoryConfig, MemoryState] = {}
        self._lock = ProcessLock()

    def make(self, config: MemoryConfig, seed: int) -> Memory:
        """A memory of a layout.

        Args:
            config: The layout.
            seed: Seed of random eviction.

        Raises:
            ValueError: The layout needs parts that the model does not have.
        """
        self.check(config)
        with self._lock:
            if config not in self._initial_states:
                with torch.no_grad():
                    self._initial_states[config] = initial_state(self._weights, config, self._parts.initial)
        initial = self._initial_states[config]
        # Buffers of finished reads are kept by short-term pool. Each memory gets a pool object of its own, even while
        # empty, so that two users never share buffers.
        own = tuple(replace(track, short_term=replace(track.short_term)) for track in initial.tracks)
        initial = replace(initial, tracks=own, lineage=Lineage()).cooled()
        return Memory(config, initial, model_fingerprint=self._weights.fingerprints[config.recall], seed=seed)

    def check(self, config: MemoryConfig) -> None:
        """Check that the model has what memories of a layout need.

        Raises:
            ValueError: It does not.
        """
        if config.recall not in self._weights.scorers:
            raise ValueError(
                f"recall={config.recall!r}: these weights have no such retriever; expected one of "
                f"{', '.join(sorted(self._weights.scorers))}."
            )
        if config.read == "text" and self._tokenizer is None:
            raise ValueError('read="text": this model has no tokenizer to decode text with. Use read="latent".')
        if not config.keeps_chunks and self._weights.backbone.recalls_once:
            raise ValueError(
                f"layout={config.layout!r}: this model's layers are called as they are, so recall happens once, before "
                'them. Use layout="chunk".'
            )
        if config.encoding == "adapter" and self._weights.write_position is None:
            raise ValueError('encoding="adapter": these weights have no trained write adapter. Use encoding="states".')
        if config.recall_layer is not None and config.recall_layer >= self._weights.backbone.num_layers:
            raise ValueError(
                f"recall_layer={config.recall_layer}: the backbone has layers 0 to "
                f"{self._weights.backbone.num_layers - 1}."
            )
        backbone, scored = self._weights.backbone, config.recall_layer
        first = backbone.write_from
        if scored is not None and first is not None and backbone.decoder_layer(scored) > first:
            raise ValueError(
                f"recall_layer={scored}: this model's read adapter writes from decoder layer {first} on, and a "
                "question is compared as the backbone alone has it. Leave recall_layer out, or take an earlier one."
            )
