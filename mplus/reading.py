"""A prompt being answered: decoder layers called over a cache, and where each row stands."""

from collections.abc import Sequence
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from mplus.backbone import Backbone, Rotation
from mplus.prefix import PrefixLayer
from mplus.recall import Recalled
from mplus.weights import Weights


class Reading:
    """A batch of prompts being answered: the cache, and where each row stands.

    Made by ``prefill``; ``decode`` adds one token to every row.
    """

    def __init__(
        self,
        weights: Weights,
        modules: nn.ModuleList,
        layers: list[PrefixLayer],
        positions: list[Int[Tensor, " B"]],
        masks: list[Tensor | None],
        recalled: list[tuple[Recalled, ...]],
    ) -> None:
        self.weights = weights
        self.modules = modules
        """Decoder layers: with the read adapter where there is a prefix."""
        self.cache = Cache(layers=layers)  # pyright: ignore[reportArgumentType]
        self.layers = layers
        self.positions = positions
        """Per layer, the next position of each row."""
        self.masks = masks
        """Per layer, which columns each row may see; None where it may see all."""
        self.recalled = recalled
        """Per row, what each track recalled."""

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int]) -> Float[Tensor, "B V"]:
        """Logits after one more token in every row."""
        backbone = self.weights.backbone
        hidden = backbone.embed(torch.tensor(tokens)[:, None])
        rotations: dict[int, Rotation] = {}
        for index in range(backbone.num_layers):
            hidden = hidden.to(self.layers[index].key_buffer.device)
            position = self.positions[index]
            if id(position) not in rotations:
                rotations[id(position)] = backbone.rotation(position[:, None])
            mask = self.masks[index]
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
                self.masks[index] = mask
                mask = backbone.layer_mask(mask[:, None, None])
            hidden = call_layer(
                self.modules[index],
                hidden,
                rotations[id(position)],
                mask,
                self.cache,
                position[:, None],
            )
        moved: dict[int, Tensor] = {}
        for index, position in enumerate(self.positions):
            if id(position) not in moved:
                moved[id(position)] = position + 1
            self.positions[index] = moved[id(position)]
        return backbone.logits(hidden[:, -1])

    def select(self, rows: Sequence[int]) -> None:
        """Go on with only some rows of the batch."""
        index = torch.tensor(rows)
        moved: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers):
            layer.select(index)
            mask, position = self.masks[number], self.positions[number]
            self.masks[number] = None if mask is None else mask[index.to(mask.device)]
            if id(position) not in moved:
                moved[id(position)] = position[index.to(position.device)]
            self.positions[number] = moved[id(position)]
        self.recalled = [self.recalled[row] for row in rows]


def call_layer(
    layer: Any, hidden: Tensor, rotation: Rotation, mask: Tensor | None, cache: Cache, positions: Tensor
) -> Float[Tensor, "B S D"]:
    """One transformers decoder layer over a cache."""
    output = layer(
        hidden,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        position_embeddings=rotation,
        **{_cache_keyword(type(layer)): cache},
    )
    return output[0] if isinstance(output, tuple) else output


@lru_cache
def _cache_keyword(kind: type[nn.Module]) -> str:
    """What a decoder layer calls its cache: transformers 5.24 renamed it and warns about the old name."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"


def geometry(
    backbone: Backbone,
    lengths: tuple[int, ...],
    columns: Int[Tensor, "B S"],
    where: torch.device,
    widest: int | None = None,
) -> tuple[Tensor, Rotation, Tensor, Tensor, Tensor | None]:
    """Positions, rotation, prefill mask, next position and decode mask of rows with these prefixes.

    Prefixes are padded on the left to ``widest`` columns, by default those of the longest.
    """
    prefix = torch.tensor(lengths)
    widest = max(lengths) if widest is None else widest
    position = (prefix[:, None] + columns).clamp(min=0)
    before = torch.arange(widest) >= (widest - prefix)[:, None]  # prefixes are padded on the left
    own = columns >= 0
    visible = torch.cat([before, own], dim=1)
    causal = columns[:, :, None] >= columns[:, None, :]
    mask = torch.cat([before[:, None].expand(-1, columns.shape[1], -1), causal & own[:, None]], dim=2)
    # A padding row sees itself, so that its softmax is not empty.
    mask[:, :, widest:] |= torch.eye(columns.shape[1], dtype=torch.bool)
    position = position.to(where)
    everything = bool(visible.all())
    return (
        position,
        backbone.rotation(position),
        mask[:, None].to(where),
        position[:, -1] + 1,
        None if everything else visible.to(where),
    )
