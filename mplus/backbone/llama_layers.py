"""``LlamaLayers``: a backbone whose layers are like Llama's, run one by one.

Departs from transformers in one way: the loop over decoder layers is ours, because memory enters and
leaves at each of them. The layers, norms, rotary embedding and attention kernels are transformers' own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from mplus.backbone.adapters import Adapter, LoraLinear, device_of, is_merged, with_adapter, with_children
from mplus.backbone.attention import (
    GROUPED_ATTENTION,
    KeysValues,
    LayerInput,
    Packing,
    Projection,
    Rotation,
    eager_attention,
    grouped_attention,
    project_heads,
    rotate,
    stacked_mask,
    turned_heads,
)
from mplus.backbone.backbone import Backbone, HeadShapes
from mplus.backbone.turning import steady_positions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class LlamaLayers(Backbone):
    """A backbone whose parts have Llama's names; that they compute the same, ``checkpoint/trial.py`` has shown."""

    @classmethod
    def wrap(
        cls,
        model: "PreTrainedModel",
        *,
        write_adapter: Adapter | None = None,
        read_adapter: Adapter | None = None,
        bos_states: Float[Tensor, "L D"] | None = None,
        bos_token_id: int = 0,
        write_from: int | None = None,
    ) -> "LlamaLayers":
        """Make a backbone of a transformers causal language model.

        Raises:
            CheckpointError: An adapter does not fit the model.
        """
        model.requires_grad_(False)
        model.eval()
        causal: Any = model
        layers: nn.ModuleList = causal.model.layers

        def view(adapter: Adapter | None) -> nn.ModuleList:
            return with_adapter(layers, adapter, merge=is_merged(layers, adapter)) if adapter else layers

        # The bos states are computed by the backbone, so it must exist first.
        none = torch.zeros(len(layers), int(model.config.hidden_size))
        backbone = cls(model, view(write_adapter), view(read_adapter), none if bos_states is None else bos_states)
        steady = steady_positions(backbone._angles, int(model.config.max_position_embeddings))
        backbone = replace(backbone, steady=steady, write_from=write_from)
        return (
            backbone if bos_states is not None else replace(backbone, bos_states=backbone._attention_sink(bos_token_id))
        )

    @staticmethod
    def looks_like_llama(model: "PreTrainedModel") -> bool:
        """Whether a model has the parts of Llama; whether it computes what Llama computes, only a trial shows."""
        inner: Any = getattr(model, "model", None)
        if not all(hasattr(inner, part) for part in ("layers", "norm", "rotary_emb")) or not hasattr(model, "lm_head"):
            return False
        return all(_has_parts(layer) for layer in inner.layers)

    # --- adapters ---------------------------------------------------------------------------------

    @property
    def encoding_layers(self) -> Sequence[nn.Module]:
        """The layers that encode what is written: those of reading from ``write_from`` on, below it the others."""
        first = self.num_layers if self.write_from is None else self.write_from
        return [*self.write_layers[:first], *self.read_layers[first:]]

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The layers whose linear layers an adapter changes, without an adapter."""
        causal: Any = self.model
        return causal.model.layers

    def reading_through(self, adapter: Adapter, *, merge: bool, write_from: int | None = None) -> "LlamaLayers":
        """The same backbone, which reads memory through an adapter; see ``Backbone``."""
        return replace(self, read_layers=with_adapter(self.write_layers, adapter, merge=merge), write_from=write_from)

    def adapted_linears(self) -> dict[str, LoraLinear]:
        """The linear layers that reading changes on the fly, by name below the decoder layers."""
        named = self.read_layers.named_modules()
        return {name: module for name, module in named if isinstance(module, LoraLinear)}

    @property
    def reading_model(self) -> Any:
        """The causal language model with the layers that read, as transformers calls it."""
        causal: Any = self.model
        return with_children(causal, model=with_children(causal.model, layers=self.read_layers))

    @property
    def trees(self) -> list[nn.Module]:
        """Modules that together hold every linear layer, those of adapters too."""
        return [self.model, self.write_layers, self.read_layers]

    # --- what the model is ------------------------------------------------------------------------

    @property
    def config(self) -> "PretrainedConfig":
        """The transformers config."""
        return self.model.config

    @property
    def num_layers(self) -> int:
        """Number of layers [L]."""
        return int(self.config.num_hidden_layers)

    @property
    def num_key_value_heads(self) -> int:
        """Number of key-value heads [H]."""
        return int(self.config.num_key_value_heads)

    @property
    def head_size(self) -> int:
        """Size of an attention head [E]."""
        explicit = getattr(self.config, "head_dim", None)
        return int(explicit or self.hidden_size // self.config.num_attention_heads)

    @property
    def window(self) -> int:
        """Number of positions that the model was trained for."""
        window = int(self.config.max_position_embeddings)
        return window if self.steady is None else min(window, self.steady)

    def layer_device(self, layer: int) -> torch.device:
        """The device on which a layer computes and its memory is kept."""
        block: Any = self.read_layers[layer]
        return device_of(block.input_layernorm, block)

    def decoder_layer(self, layer: int) -> int:
        """Which decoder layer a layer with memory is."""
        return layer

    def head_shapes(self, layer: int) -> HeadShapes:
        """Heads of which a layer keeps keys and values."""
        return HeadShapes(self.num_key_value_heads, self.head_size, self.num_key_value_heads, self.head_size)

    @property
    def pads_batches(self) -> bool:
        """Whether prompts of different length can share a batch; flash kernels cannot, since they take no mask."""
        return not str(self.config._attn_implementation).startswith("flash")

    @property
    def whole_prompts(self) -> bool:
        """Whether a prompt is read in one piece, and none of an earlier read is kept."""
        return False

    @property
    def recalls_once(self) -> bool:
        """Whether recall can only happen before the layers, once for all of them."""
        return False

    @property
    def scores_by_attention(self) -> bool:
        """Whether queries and keys of attention are of one size in all layers, so that recall can use them."""
        return True

    # --- pieces of a forward pass -----------------------------------------------------------------

    def logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Final norm and output head."""
        causal: Any = self.model
        return causal.lm_head(causal.model.norm(hidden))

    def rotation(self, positions: Int[Tensor, "*positions"]) -> Rotation:
        """Rotary cosines and sines of the given positions."""
        causal: Any = self.model
        flat = positions.reshape(1, -1)
        if not flat.numel():  # embeddings that depend on the highest position have none
            none = torch.empty(*positions.shape, self.head_size, dtype=self.dtype, device=flat.device)
            return Rotation(none, none)
        like = torch.empty(0, dtype=self.dtype, device=flat.device)
        cos, sin = causal.model.rotary_emb(like, flat)
        shape = (*positions.shape, cos.shape[-1])
        made = Rotation(cos.reshape(shape), sin.reshape(shape))
        # accelerate leaves the result on the device of the rotary module.
        return made if cos.device == flat.device else made.on(flat.device)

    def _angles(self, positions: Int[Tensor, " P"]) -> Float[Tensor, "P N"]:
        rotation = self.rotation(positions.to(self.device))
        return torch.cat([rotation.cos, rotation.sin], dim=-1).float()

    def layer_mask(self, mask: Bool[Tensor, "B 1 Q P"] | None) -> Tensor | None:
        """A mask in the form that transformers' layers take for this attention implementation."""
        if mask is None or not self.pads_batches:
            return None  # flash kernels mask causally on their own, aligned bottom-right
        kind = self.config._attn_implementation
        if kind == GROUPED_ATTENTION:
            # As attention needs it, so that not every layer makes the same of it again.
            groups = self.config.num_attention_heads // self.num_key_value_heads
            return stacked_mask(mask, groups, self.dtype)
        if kind == "eager":
            return torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, torch.finfo(self.dtype).min)
        return mask

    def normed(self, layers: nn.ModuleList, layer: int, states: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """States at the input of a layer as its attention sees them."""
        return layers[layer].input_layernorm(states)  # pyright: ignore[reportCallIssue, reportReturnType]

    def keys_values(self, layer: nn.Module, normed: Float[Tensor, "*rows D"]) -> KeysValues:
        """Keys (before rotary embedding) and values of rows already normed by that layer."""
        keys, values = (project_heads(layer.self_attn, kind, normed, self.head_size) for kind in "kv")
        return KeysValues(keys, values)

    def queries(self, layer: nn.Module, normed: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows A E"]:
        """Attention queries (before rotary embedding) of rows already normed by that layer."""
        return project_heads(layer.self_attn, "q", normed, self.head_size)

    def attend(
        self,
        layer: nn.Module,
        queries: Float[Tensor, "B A Q E"],
        keys: Float[Tensor, "B H P E"],
        values: Float[Tensor, "B H P E"],
        mask: Shaped[Tensor, "#B #H _ P"] | None,
    ) -> Float[Tensor, "B Q AE"]:
        """Attention of rotated queries over rotated keys, before the output projection.

        The mask is for the queries of one head, or as ``layer_mask`` gives it.
        """
        attention: Any = layer.self_attn
        kernel = eager_attention if self.config._attn_implementation == "eager" else grouped_attention
        output, _ = kernel(attention, queries, keys, values, mask, scaling=attention.scaling)
        return output.flatten(2)

    def finish(
        self, layer: nn.Module, hidden: Float[Tensor, "*rows D"], attended: Float[Tensor, "*rows AE"]
    ) -> Float[Tensor, "*rows D"]:
        """The rest of a layer after attention: output projection, residual, feed-forward."""
        block: Any = layer
        hidden = hidden + block.self_attn.o_proj(attended)
        return hidden + block.mlp(block.post_attention_layernorm(hidden))

    def projections(self) -> list[Projection]:
        """For each layer, what makes its queries and keys for recall."""
        return [partial(project_heads, layer.self_attn, head_size=self.head_size) for layer in self.write_layers]

    def rotary_layer(self, layer: int) -> int:
        """The first layer that turns keys as this one does."""
        return 0

    def prefix_rotation(self, layer: int, length: int, device: torch.device) -> Any:
        """Turns a prefix to positions 0, 1, …: cosines and sines here, the same in every layer."""
        return self.rotation(torch.arange(length, device=device))

    def new_cache(self) -> Any:
        """A cache for the states of recurrent layers; None if there are none."""
        return None

    # --- packed rows through one layer ------------------------------------------------------------

    def layer_input(self, layer: nn.Module, rows: Float[Tensor, "T D"]) -> LayerInput:
        """The input of a layer's attention: rows normed by the layer, with their keys and values."""
        block: Any = layer
        normed = block.input_layernorm(rows)
        return LayerInput(rows, normed, *self.keys_values(layer, normed))

    def layer_output(self, layer: nn.Module, given: LayerInput, packing: Packing) -> Float[Tensor, "S D"]:
        """The layer's output for the rows with a query in ``packing``, which is on the layer's device."""
        queries = self.queries(layer, given.normed[packing.first :])[packing.queries]
        attended = self.attend(
            layer,
            rotate(queries, packing.query_rotation).transpose(1, 2),
            rotate(given.keys[packing.keys], packing.key_rotation).transpose(1, 2),
            given.values[packing.keys].transpose(1, 2),
            packing.mask,
        )
        return self.finish(layer, given.rows[packing.first :], attended.flatten(0, 1)[packing.places])

    # --- texts ------------------------------------------------------------------------------------

    def plain_states(self, input_ids: Int[Tensor, "*B S"], num_layers: int) -> list[Float[Tensor, "*B S D"]]:
        """States of a text read alone, or of several equally long, at the input of layers 0 … ``num_layers``."""
        shape = (*input_ids.shape, self.hidden_size)
        hidden = self.embed(input_ids.reshape(-1, input_ids.shape[-1]))
        rows = torch.arange(hidden.shape[1], device=hidden.device)
        rotation, mask = self.rotation(rows), self.layer_mask((rows <= rows[:, None])[None, None])
        states = [hidden.view(shape)]
        for index in range(num_layers):
            where, layer = self.layer_device(index), self.write_layers[index]
            if hidden.device != where:
                hidden, rotation, mask = hidden.to(where), rotation.on(where), None if mask is None else mask.to(where)
            normed = self.normed(self.write_layers, index, hidden)
            queries, (keys, values) = self.queries(layer, normed), self.keys_values(layer, normed)
            # Queries and keys turn in one step; every row has a query.
            turned = turned_heads(torch.cat([queries, keys], dim=2).transpose(1, 2), rotation)
            queries, keys = turned.split([queries.shape[2], keys.shape[2]], dim=1)
            attended = self.attend(layer, queries, keys, values.transpose(1, 2), mask)
            hidden = self.finish(layer, hidden, attended)
            states.append(hidden.view(shape))
        return states

    @torch.inference_mode(False)
    @torch.no_grad()
    def _attention_sink(self, token_id: int) -> Float[Tensor, "L D"]:
        """States of the bos token read alone, for a backbone without trained bos vectors."""
        states = self.plain_states(torch.tensor([token_id]), self.num_layers - 1)
        return torch.stack([state[0].to(self.device) for state in states])


def _has_parts(layer: nn.Module) -> bool:
    """Whether a decoder layer has the parts of Llama's."""
    attention: Any = getattr(layer, "self_attn", None)
    parts = all(hasattr(attention, f"{kind}_proj") for kind in "qkvo") and hasattr(attention, "scaling")
    return parts and all(hasattr(layer, part) for part in ("input_layernorm", "post_attention_layernorm", "mlp"))
