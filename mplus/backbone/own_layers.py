"""``OwnLayers``: a backbone whose layers are called as they are, for every model that is not like Llama throughout.

Unlike ``LlamaLayers`` it knows nothing of a layer. Keys and values are taken where attention makes them,
and how they turn with position is measured (``turning.py``). A memory layer is one whose attention keeps keys and
values; recurrent layers and layers that reuse another's keys are none, and read the prompt alone. The state of a token
in a memory layer is what its attention is given. A read adapter changes linear layers of a second view of the body.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mplus.backbone.adapters import Adapter, LoraLinear, seen_through, with_children, with_descendant
from mplus.backbone.attention import KeysValues, Projection
from mplus.backbone.backbone import Backbone, HeadShapes
from mplus.backbone.memory_layer import MemoryLayer, Rotations
from mplus.backbone.own_head import own_head
from mplus.backbone.own_pass import (
    OWN_ATTENTION,
    Pass,
    PassCache,
    Window,
    cache_argument,
    register_own_attention,
    run,
    watch,
)
from mplus.backbone.passes import ReadAlone, Writing
from mplus.backbone.survey import FAILURES, PASSING, body_name, surveyed, windows_of
from mplus.backbone.turning import UnknownTurningError, measured, steady_positions
from mplus.computed_once import computed_once
from mplus.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


UNKNOWN_WINDOW = 32_768
"""Number of positions of a model whose config names none."""


@dataclass(frozen=True)
class OwnLayers(Backbone):
    """A backbone that calls the model's own forward. ``write_layers`` are the attention modules of memory layers.

    ``read_layers`` are these modules as the read adapter changes them; the same ones where there is no adapter.
    """

    memory_layers: tuple[MemoryLayer, ...] = field(default=(), repr=False)
    windows: Mapping[int, Window] = field(default_factory=dict, repr=False)
    recurrent: bool = False
    """Whether some layers keep a state instead of keys and values."""
    bos_token_id: int = 0
    read_body: nn.Module | None = field(default=None, repr=False)
    """The body as the read adapter changes it; None: there is no adapter."""
    write_body: nn.Module | None = field(default=None, repr=False)
    """The body that encodes what is written, where the read adapter writes, too; None: the model's own."""

    @classmethod
    def discover(cls, model: "PreTrainedModel", *, bos_token_id: int = 0) -> "OwnLayers":
        """Make a backbone of any decoder-only model: one short pass shows what its layers keep and how keys turn.

        Raises:
            UnsupportedModelError: Its attention does not go through transformers' interface, or its keys depend on
                position in an unknown way; the message has the difference found.
        """
        model.requires_grad_(False)
        model.eval()
        kind = model.config.model_type
        register_own_attention()
        exactly = model.config._attn_implementation == "eager" or not getattr(model, "_supports_sdpa", True)
        model.config._attn_implementation = OWN_ATTENTION
        with torch.inference_mode(False), torch.no_grad():
            survey = surveyed(model)
            layers: list[MemoryLayer] = []
            for number, call in survey.calls.items():
                try:
                    made = call.at_several_positions()
                    keys, values = (measured(heads.transpose(1, 2), call.given_angles) for heads in made[:2])
                except PASSING:
                    raise
                except (UnknownTurningError, *FAILURES) as error:
                    raise UnsupportedModelError(f"Backbone type {kind!r}, layer {number}: {error}.") from error
                shapes = HeadShapes(made[0].shape[1], made[0].shape[3], made[1].shape[1], made[1].shape[3])
                layers.append(MemoryLayer(number, call.attention, call, keys, values, shapes, made[2].shape[3]))
        attentions = nn.ModuleList([layer.attention for layer in layers])
        watch(list(attentions), own_formula=exactly)
        config = model.config.get_text_config(decoder=True)
        none = torch.zeros(len(layers), int(config.hidden_size))
        windows, recurrent = windows_of(config)
        turning = [layer for layer in layers if layer.key_turning or layer.value_turning]
        limit = None
        if turning:
            most = int(getattr(config, "max_position_embeddings", 0) or 0)
            limit = steady_positions(lambda positions: turning[0].rotation_parts(positions), most)
        backbone = cls(
            model,
            attentions,
            attentions,
            none,
            limit,
            memory_layers=tuple(layers),
            windows=windows,
            recurrent=recurrent,
            bos_token_id=bos_token_id,
        )
        with torch.inference_mode(False), torch.no_grad():
            states = backbone.plain_states(torch.tensor([bos_token_id]), len(layers) - 1)
        return replace(backbone, bos_states=torch.cat([state.to(backbone.device) for state in states]))

    # --- adapters ---------------------------------------------------------------------------------

    @computed_once
    def _paths(self) -> list[str]:
        """Where the attention modules of memory layers stand in the body."""
        names = {module: name for name, module in self._inner.named_modules()}
        return [names[attention] for attention in self.write_layers]

    @computed_once
    def _layers_path(self) -> str:
        """Where the list of decoder layers stands in the body."""
        for name, module in self._inner.named_modules():
            if isinstance(module, nn.ModuleList) and all(path.startswith(f"{name}.") for path in self._paths):
                return name
        raise UnsupportedModelError(
            f"Backbone type {self.model.config.model_type!r}: its layers are in no common list, so an adapter cannot "
            f"name them; attention stands at {self._paths[0]!r}."
        )

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The layers whose linear layers an adapter changes, without an adapter."""
        layers = self._inner.get_submodule(self._layers_path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def reading_through(self, adapter: Adapter, *, merge: bool, write_from: int | None = None) -> "OwnLayers":
        """The same backbone, which reads memory through an adapter; see ``Backbone``."""
        body = seen_through(self._inner, self._layers_path, adapter, merge=merge)
        attentions = nn.ModuleList([body.get_submodule(path) for path in self._paths])
        writing = None if write_from is None else self._writing_body(body, write_from)
        return replace(self, read_layers=attentions, read_body=body, write_body=writing, write_from=write_from)

    def _writing_body(self, read_body: nn.Module, first: int) -> nn.Module:
        """The body whose decoder layers are those of ``read_body`` from one on, and the model's own below it."""
        read = read_body.get_submodule(self._layers_path)
        assert isinstance(read, nn.ModuleList)
        layers = nn.ModuleList([*self.decoder_layers[:first], *read[first:]])
        return with_descendant(self._inner, self._layers_path, layers)

    @property
    def encoding_layers(self) -> Sequence[nn.Module]:
        """Attention modules of memory layers that encode what is written."""
        return self._encoding_layers

    @computed_once
    def _encoding_layers(self) -> list[nn.Module]:
        return [(self.write_body or self._inner).get_submodule(path) for path in self._paths]

    def adapted_linears(self) -> dict[str, LoraLinear]:
        """The linear layers that reading changes on the fly, by name below the decoder layers."""
        if self.read_body is None:
            return {}
        named = self.read_body.get_submodule(self._layers_path).named_modules()
        return {name: module for name, module in named if isinstance(module, LoraLinear)}

    @property
    def reading_model(self) -> Any:
        """The causal language model with the body that reads, as transformers calls it."""
        return with_children(self.model, **{body_name(self.model): self.read_body or self._inner})

    @property
    def trees(self) -> list[nn.Module]:
        """Modules that together hold every linear layer, those of adapters too."""
        return [self.model, *(body for body in (self.read_body, self.write_body) if body is not None)]

    # --- what the model is ------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The transformers config of the language model."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def num_layers(self) -> int:
        """Number of memory layers [L]."""
        return len(self.memory_layers)

    @property
    def pads_batches(self) -> bool:
        """Whether prompts of different length can share a batch; recurrent layers would read the padding."""
        return not self.recurrent

    @property
    def whole_prompts(self) -> bool:
        """Whether a prompt is read in one piece, and none of an earlier read is kept."""
        return self.recurrent

    def decoder_layer(self, layer: int) -> int:
        """Which decoder layer a memory layer is."""
        return self.memory_layers[layer].number

    def head_shapes(self, layer: int) -> HeadShapes:
        """Heads that a memory layer keeps."""
        return self.memory_layers[layer].heads

    @property
    def num_key_value_heads(self) -> int:
        """Number of key heads of the first memory layer."""
        return self.memory_layers[0].heads.key_heads

    @property
    def head_size(self) -> int:
        """Size of a key head of the first memory layer."""
        return self.memory_layers[0].heads.key_size

    def layer_device(self, layer: int) -> torch.device:
        """The device on which a memory layer computes and its memory is kept."""
        attention = self.memory_layers[layer].attention
        device: Any = getattr(getattr(attention, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        found = next(attention.parameters()).device
        return self.device if found.type == "meta" else found

    def normed(self, layers: nn.ModuleList, layer: int, states: Tensor) -> Tensor:
        """The states themselves: they are what attention is given."""
        return states

    @computed_once
    def _numbers(self) -> dict[int, int]:
        return {layer.number: index for index, layer in enumerate(self.memory_layers)}

    def memory_layer(self, number: int) -> int | None:
        """Which memory layer a layer of the model is; None: none."""
        return self._numbers.get(number)

    # --- pieces of a forward pass -----------------------------------------------------------------

    @computed_once
    def _inner(self) -> nn.Module:
        return getattr(self.model, body_name(self.model))

    @computed_once
    def _head(self) -> nn.Module:
        """The causal model around a body that returns what it is given: final scales and caps are the model's own."""
        return own_head(self.model, body_name(self.model))

    def logits(self, hidden: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows V"]:
        """The model's own head on states after its final norm."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        logits: Tensor = self._head(inputs_embeds=rows, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)

    def forward(
        self,
        current: Pass,
        input_ids: Int[Tensor, "B S"],
        positions: Int[Tensor, "B S"],
        cache: PassCache,
        *,
        reading: bool = False,
        writing: bool = False,
    ) -> Tensor | None:
        """Token ids through the model's own layers, within a pass; None if it had enough before the end.

        Args:
            current: The pass.
            input_ids: Token ids.
            positions: Their positions.
            cache: For the states of recurrent layers.
            reading: Through the read adapter, where there is one.
            writing: Through the layers that encode what is written.
        """
        arguments: dict[str, Any] = {"position_ids": positions.to(self.device), "use_cache": True}
        arguments[cache_argument(type(self._inner))] = cache
        body = (self.read_body if reading else self.write_body if writing else None) or self._inner
        output = run(current, body, input_ids=input_ids.to(self.device), **arguments)
        return None if output is None else output.last_hidden_state

    def new_cache(self) -> PassCache:
        """An empty cache for the states of recurrent layers."""
        return PassCache(self.config)

    @computed_once
    def _by_attention(self) -> dict[nn.Module, MemoryLayer]:
        """Memory layers by their attention, and as the read adapter changes it."""
        found = {layer.attention: layer for layer in self.memory_layers}
        for layer, attention in zip(self.memory_layers, self.read_layers, strict=True):
            call = replace(layer.call, attention=attention)
            found.setdefault(attention, replace(layer, attention=attention, call=call))
        return found

    def _layer_of(self, attention: nn.Module) -> MemoryLayer:
        return self._by_attention[attention]

    def keys_values(self, layer: nn.Module, normed: Float[Tensor, "*rows D"]) -> KeysValues:
        """Keys and values, before they turn, of rows that the layer's attention is given."""
        one = self._layer_of(layer)
        rows = normed.reshape(-1, normed.shape[-1])
        if not len(rows):
            shapes = one.heads
            return KeysValues(
                rows.new_empty(*normed.shape[:-1], shapes.key_heads, shapes.key_size),
                rows.new_empty(*normed.shape[:-1], shapes.value_heads, shapes.value_size),
            )
        positions = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        made = one.call.heads(rows[None], positions)
        kept = KeysValues(*(part[0].transpose(0, 1) for part in made[:2]))
        found = one.rotations(positions).turned_back(kept)
        return KeysValues(*(part.reshape(*normed.shape[:-1], *part.shape[1:]) for part in found))

    def queries(self, layer: nn.Module, normed: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows A E"]:
        """Attention queries at position 0 of rows that the layer's attention is given."""
        rows = normed.reshape(-1, normed.shape[-1])
        positions = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        queries = self._layer_of(layer).call.heads(rows[None], positions)[2]
        return queries[0].transpose(0, 1).reshape(*normed.shape[:-1], *queries.shape[1::2])

    @property
    def window(self) -> int:
        """Number of positions that the model was trained for."""
        window = int(getattr(self.config, "max_position_embeddings", None) or UNKNOWN_WINDOW)
        return window if self.steady is None else min(window, self.steady)

    @property
    def recalls_once(self) -> bool:
        """Whether recall can only happen before the layers, once for all of them."""
        return True

    @property
    def scores_by_attention(self) -> bool:
        """Whether queries and keys of attention are of one size in all layers, so that recall can use them."""
        shapes = {layer.heads for layer in self.memory_layers}
        queries = {layer.query_size for layer in self.memory_layers}
        return len(shapes) == 1 and queries == {self.head_size}

    def projections(self) -> list[Projection]:
        """For each memory layer, what makes its queries and keys for recall."""

        def project(attention: nn.Module, kind: str, normed: Tensor) -> Tensor:
            return self.queries(attention, normed) if kind == "q" else self.keys_values(attention, normed).keys

        return [partial(project, layer.attention) for layer in self.memory_layers]

    def rotary_layer(self, layer: int) -> int:
        """The layer itself: how keys turn is measured for each."""
        return layer

    def prefix_rotation(self, layer: int, length: int, device: torch.device) -> Rotations:
        """Turns a prefix of a memory layer to positions 0, 1, … of keys and values."""
        return self.memory_layers[layer].rotations(torch.arange(length, device=device))

    # --- texts ------------------------------------------------------------------------------------

    def plain_states(self, input_ids: Int[Tensor, "*B S"], num_layers: int) -> list[Float[Tensor, "*B S D"]]:
        """States of a text read alone, or of several equally long, in memory layers 0 … ``num_layers``."""
        rows = input_ids.reshape(-1, input_ids.shape[-1])
        reading = ReadAlone(self, rows.shape[1], num_layers)
        self.forward(reading, rows, reading.positions.expand(len(rows), -1), self.new_cache())
        return [states.view(*input_ids.shape, -1) for states in reading.states]

    def encode(
        self,
        chunks: Sequence[Sequence[int]],
        continues: Sequence[bool],
        earlier: Sequence[Sequence[Tensor] | None],
        num_layers: int,
    ) -> tuple[list[Tensor], list[KeysValues]]:
        """States, keys and values of chunks of text in every memory layer, packed one chunk after the other.

        Each chunk has a row of its own: bos, then its text, behind the keys of the chunk that it continues.

        Args:
            chunks: Token ids.
            continues: Whether each continues the one before it.
            earlier: For each, the states by layer of a chunk written earlier that it continues; else None.
            num_layers: Only the first memory layers.
        """
        writing = Writing(self, chunks, continues, earlier, num_layers)
        rows = [torch.tensor([self.bos_token_id, *chunk]) for chunk in chunks]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.bos_token_id)
        self.forward(writing, ids, writing.positions, self.new_cache(), writing=True)
        return writing.states, writing.made
