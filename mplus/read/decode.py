"""Decoding of a batch: decoder layers over a cache, and the position of each row."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mplus.backbone.attention import Rotation
from mplus.backbone.backbone import Backbone
from mplus.backbone.few_rows import answering
from mplus.backbone.llama_layers import LlamaLayers
from mplus.backbone.own_layers import OwnLayers
from mplus.backbone.own_pass import cache_argument
from mplus.backbone.passes import Reads
from mplus.read.cache_layer import PrefixLayer, Slots, join, leave, prepare
from mplus.recall.choose import Recalled
from mplus.weights import Weights

Watch = Callable[[int, Tensor], None]
"""Is shown the states of new tokens at the input of each layer, [B, S, D]."""


class Reading:
    """A batch of prompts being answered; the cache of each row has its own length.

    Made by ``prefill``; ``decode`` adds one token to every row. Rows are added and removed between tokens.
    """

    def __init__(
        self,
        weights: Weights,
        modules: nn.ModuleList,
        layers: list[PrefixLayer],
        recalled: list[tuple[Recalled, ...]],
        recurrent: Any = None,
    ) -> None:
        self.weights = weights
        self.modules = modules
        """Decoder layers; with the read adapter for what it was trained to read."""
        self.layers = layers
        self.recurrent = recurrent
        """States of recurrent layers, of models that have such."""
        self.recalled = recalled
        """For each row, the result of recall of each track."""
        self.decline_odds: Float[Tensor, " B"] | None = None
        """For each row that was just read, log-odds of the decline head; None without one."""
        self.when_done: Callable[[], object] = lambda: None
        """Called when the buffers are no longer needed."""

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Float[Tensor, "B V"]:
        """Logits after one more token in every row."""
        backbone = self.weights.backbone
        ids = torch.tensor(tokens)[:, None]
        with answering():
            hidden = through_model(backbone, self.modules, self.layers, ids, recurrent=self.recurrent)
            return backbone.logits(hidden[:, -1])

    @torch.inference_mode()
    def join(self, other: "Reading") -> None:
        """Append the rows of another batch to this one."""
        assert self.modules is other.modules, "reads of different kinds are read apart"
        join(self.layers, other.layers)
        self.recalled += other.recalled
        self.when_done()

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        leave(self.layers, row)
        self.recalled[row] = self.recalled[-1]
        self.recalled.pop()


class Geometry(NamedTuple):
    """Positions of new tokens, where they go in the cache, and the mask of the columns that they see."""

    position: Int[Tensor, "B S"]
    rotation: Rotation
    slots: Slots | None
    """None if all go into the same columns."""
    mask: Tensor | None
    """As decoder layers take it; None if all columns are seen."""


def geometry(backbone: LlamaLayers, size: int, lengths: tuple[int, ...], where: torch.device) -> Geometry:
    """Geometry of ``size`` new tokens in every row after ``lengths`` columns; a column is a position."""
    position = torch.tensor(lengths, device=where)[:, None] + torch.arange(size, device=where)
    unequal, mask, slots = len(set(lengths)) > 1, None, None
    if size > 1 or unequal:
        columns = torch.arange(max(lengths) + size, device=where)
        mask = backbone.layer_mask((columns <= position[:, :, None])[:, None])
    if unequal:
        slots = Slots.after(lengths, size, backbone.num_key_value_heads, where)
    return Geometry(position, backbone.rotation(position), slots, mask)


def through_model(
    backbone: Backbone,
    modules: nn.ModuleList,
    layers: list[PrefixLayer],
    input_ids: Int[Tensor, "B S"],
    make: Callable[[int, Tensor], list[PrefixLayer]] | None = None,
    recurrent: Any = None,
    watch: Watch | None = None,
) -> Float[Tensor, "B S D"]:
    """States of new tokens, from which ``Backbone.logits`` computes logits; arguments as of ``through_layers``."""

    def made(index: int, states: Tensor) -> list[PrefixLayer]:
        assert make is not None
        with answering(copies=False):  # what was kept as token ids is encoded as it was written
            return make(index, states)

    with answering():
        making = None if make is None else made
        if isinstance(backbone, LlamaLayers):
            return through_layers(backbone, modules, layers, backbone.embed(input_ids), making, watch)
        assert isinstance(backbone, OwnLayers)
        reads = Reads(backbone, layers, making, *input_ids.shape, watch=watch)
        reading = modules is backbone.read_layers
        hidden = backbone.forward(reads, input_ids, reads.positions, recurrent, reading=reading)
        assert hidden is not None, "a read goes to the end"
        return hidden


def through_layers(
    backbone: LlamaLayers,
    modules: nn.ModuleList,
    layers: list[PrefixLayer],
    hidden: Float[Tensor, "B S D"],
    make: Callable[[int, Tensor], list[PrefixLayer]] | None = None,
    watch: Watch | None = None,
) -> Float[Tensor, "B S D"]:
    """Hidden states of new tokens after all decoder layers, each over its cache layer.

    Args:
        backbone: The model.
        modules: Its decoder layers.
        layers: The cache layers, to which the new tokens are appended; missing layers are made and added.
        hidden: Embeddings of the new tokens.
        make: Makes a cache layer, and some that follow it, from its number and the states at its decoder layer's input.
        watch: Shown the states at the input of each decoder layer.
    """
    at = cache(partial(geometry, backbone, hidden.shape[1]))
    for index, module in enumerate(modules):
        if hidden.device != (device := backbone.layer_device(index)):
            hidden = hidden.to(device)
        if make is not None and index == len(layers):
            layers += make(index, hidden)
        if watch is not None:
            watch(index, hidden)
        place = at(tuple(layers[index].lengths), hidden.device)
        if layers[index].step is None:
            prepare(layers[index:], hidden.shape[1], place.slots)
        output: Any = module(
            hidden,
            attention_mask=place.mask,
            position_ids=place.position,
            use_cache=True,
            position_embeddings=place.rotation,
            **{cache_argument(type(module)): Cache(layers=[*layers])},
        )
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden
