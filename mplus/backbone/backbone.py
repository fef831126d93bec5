"""``Backbone``: the frozen language model as memory sees it, however its layers are called.

Memory enters and leaves at every layer, so a layer's keys and values are asked for by themselves. There are two ways to
call the layers: ``LlamaLayers`` runs those of models like Llama one by one, ``OwnLayers`` leaves any other model to
its own forward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mplus.backbone.adapters import Adapter, LoraLinear, called_linears, device_of
from mplus.backbone.attention import KeysValues, Projection
from mplus.backbone.quantised import dense_copy
from mplus.computed_once import computed_once

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel


class HeadShapes(NamedTuple):
    """Numbers and sizes of the heads whose keys and values a layer keeps."""

    key_heads: int
    key_size: int
    value_heads: int
    value_size: int


@dataclass(frozen=True)
class Backbone(ABC):
    """Weights of one language model, with one view for writing and one for reading.

    ``write_layers`` and ``read_layers`` share every base weight; they differ by the adapter they carry. A read adapter
    may write, too, from some layer on (``encoding_layers``).
    """

    model: "PreTrainedModel"
    write_layers: nn.ModuleList
    read_layers: nn.ModuleList
    bos_states: Float[Tensor, "L D"] = field(repr=False)
    """States of the bos token at the input of each layer; they stand at position 0 of every prefix."""
    steady: int | None = None
    """How many positions the rotary embedding turns the same in texts of any length; None: all of the window."""
    write_from: int | None = None
    """First decoder layer that encodes what is written through the read adapter, too; None: no layer does."""

    # --- adapters ---------------------------------------------------------------------------------

    @property
    @abstractmethod
    def encoding_layers(self) -> Sequence[nn.Module]:
        """The layers that encode what is written: those of reading from ``write_from`` on, below it the others."""

    @computed_once
    def reads_as_written(self) -> Sequence[bool]:
        """For each layer, whether keys and values that a write makes are those that a read takes."""
        return [mine is read for mine, read in zip(self.encoding_layers, self.read_layers, strict=True)]

    @property
    @abstractmethod
    def decoder_layers(self) -> nn.ModuleList:
        """The layers whose linear layers an adapter changes, without an adapter."""

    @abstractmethod
    def reading_through(self, adapter: Adapter, *, merge: bool, write_from: int | None = None) -> "Backbone":
        """The same backbone, which reads memory through an adapter; base weights are shared.

        Args:
            adapter: The adapter.
            merge: Copy the layers that it changes, rather than change their outputs.
            write_from: First decoder layer that encodes what is written through it, too; None: no layer does.

        Raises:
            CheckpointError: The adapter does not fit the model.
            UnsupportedModelError: Its layers are in no common list.
        """

    @torch.inference_mode(False)
    @torch.no_grad()
    def linears(self, rank: int) -> list[str]:
        """Names, below the decoder layers, of the linear layers that an adapter of some rank changes."""
        ids = torch.arange(8) % self.vocabulary_size
        return called_linears(self.decoder_layers, lambda: self.plain_states(ids, self.num_layers), rank=rank)

    @abstractmethod
    def adapted_linears(self) -> dict[str, LoraLinear]:
        """The linear layers that reading changes on the fly, by name below the decoder layers."""

    @property
    @abstractmethod
    def reading_model(self) -> Any:
        """The causal language model with the layers that read, as transformers calls it."""

    @property
    @abstractmethod
    def trees(self) -> list[nn.Module]:
        """Modules that together hold every linear layer, those of adapters too."""

    # --- what the model is ------------------------------------------------------------------------

    @property
    @abstractmethod
    def config(self) -> "PretrainedConfig":
        """The transformers config."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of layers [L]."""

    @property
    def hidden_size(self) -> int:
        """Hidden size [D]."""
        return int(self.config.hidden_size)

    @property
    @abstractmethod
    def num_key_value_heads(self) -> int:
        """Number of key-value heads [H]."""

    @property
    @abstractmethod
    def head_size(self) -> int:
        """Size of an attention head [E]."""

    @property
    def vocabulary_size(self) -> int:
        """Vocabulary size [V]."""
        return int(self.config.vocab_size)

    @property
    @abstractmethod
    def window(self) -> int:
        """Number of positions that the model was trained for."""

    def room(self, prefix_tokens: int) -> int:
        """Number of positions of the window that a prefix leaves free.

        If the prefix alone exceeds the window, the layout was chosen deliberately, and the whole window counts as free.
        """
        return self.window - prefix_tokens if prefix_tokens < self.window else self.window

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of activations."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """The device of the token embeddings, on which prompts start."""
        return device_of(self.model.get_input_embeddings())

    @abstractmethod
    def layer_device(self, layer: int) -> torch.device:
        """The device on which a layer computes and its memory is kept."""

    @abstractmethod
    def decoder_layer(self, layer: int) -> int:
        """Which decoder layer a layer with memory is."""

    @abstractmethod
    def head_shapes(self, layer: int) -> HeadShapes:
        """Heads of which a layer keeps keys and values."""

    @property
    @abstractmethod
    def pads_batches(self) -> bool:
        """Whether prompts of different length can share a batch."""

    @property
    @abstractmethod
    def whole_prompts(self) -> bool:
        """Whether a prompt is read in one piece, and none of an earlier read is kept."""

    @property
    @abstractmethod
    def recalls_once(self) -> bool:
        """Whether recall can only happen before the layers, once for all of them."""

    @property
    @abstractmethod
    def scores_by_attention(self) -> bool:
        """Whether queries and keys of attention are of one size in all layers, so that recall can use them."""

    def save(self, folder: "Path") -> None:
        """Save the base weights in transformers' format, without adapters.

        Weights that are quantised in a way that has no file format are saved as the numbers that they stand for.
        """
        implementation = self.model.config._attn_implementation
        quantiser: Any = getattr(self.model, "hf_quantizer", None)
        keeps = quantiser is None or quantiser.is_serializable()
        model = self.model if keeps else dense_copy(self.model)
        model.save_pretrained(folder)
        self.model.config._attn_implementation = implementation

    # --- pieces of a forward pass -----------------------------------------------------------------

    def embed(self, input_ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        """Token embeddings."""
        return self.model.get_input_embeddings()(
            input_ids if input_ids.device == self.device else input_ids.to(self.device)
        )

    @abstractmethod
    def logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """Final norm and output head."""

    @abstractmethod
    def normed(self, layers: nn.ModuleList, layer: int, states: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """States at the input of a layer as its attention sees them."""

    @abstractmethod
    def keys_values(self, layer: nn.Module, normed: Float[Tensor, "*rows D"]) -> KeysValues:
        """Keys (before rotary embedding) and values of rows already normed by that layer."""

    @abstractmethod
    def queries(self, layer: nn.Module, normed: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows A E"]:
        """Attention queries (before rotary embedding) of rows already normed by that layer."""

    @computed_once
    def key_offsets(self) -> Sequence[Float[Tensor, "H E"] | None]:
        """For each layer, the keys that reading makes of a row of zeros, which is their bias; None where there is none.

        Memory keeps keys without it: biases of some models (Qwen2, Qwen2.5) are a hundred times larger than what tells
        one token from another, which would be lost in eight bits, and in part in sixteen.
        """
        found: list[Tensor | None] = []
        with torch.inference_mode(False), torch.no_grad():
            for index, layer in enumerate(self.read_layers):
                zeros = torch.zeros(1, self.hidden_size, dtype=self.dtype, device=self.layer_device(index))
                keys = self.keys_values(layer, zeros).keys[0]
                found.append(keys if bool(keys.isfinite().all() and keys.any()) else None)
        return found

    @abstractmethod
    def projections(self) -> list[Projection]:
        """For each layer, what makes its queries and keys for recall."""

    @abstractmethod
    def rotary_layer(self, layer: int) -> int:
        """The first layer that turns keys as this one does."""

    @abstractmethod
    def prefix_rotation(self, layer: int, length: int, device: torch.device) -> Any:
        """What turns the keys of a prefix in a layer to positions 0, 1, …."""

    @abstractmethod
    def new_cache(self) -> Any:
        """A cache for the states of recurrent layers; None if there are none."""

    # --- texts ------------------------------------------------------------------------------------

    @abstractmethod
    def plain_states(self, input_ids: Int[Tensor, "*B S"], num_layers: int) -> list[Float[Tensor, "*B S D"]]:
        """States of a text read alone, or of several equally long, at the input of layers 0 … ``num_layers``."""

    def plain_state(self, input_ids: Int[Tensor, "*B S"], layer: int) -> Float[Tensor, "*B S D"]:
        """States of a text read alone, or of several equally long, at the input of one layer."""
        return self.plain_states(input_ids, layer)[-1]
