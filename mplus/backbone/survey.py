"""One short pass through an unknown model: which layers keep keys and values, and how their attention is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mplus.backbone.own_pass import Enough, Pass, PassCache, Window, cache_argument, run
from mplus.errors import UnsupportedModelError

POSITIONS = (0, 1, 2, 3, 5, 11, 23, 47)
"""Positions of the tokens of the pass."""


FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError)
"""What the code of an unknown model may raise where it is called otherwise than it expects."""
PASSING = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
"""Of these, what the machine raises: it says nothing about the model."""


@dataclass(frozen=True)
class RotaryCall:
    """How the model called a rotary module, and what it returned."""

    module: nn.Module
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    returned: Any


@dataclass(frozen=True)
class Call:
    """How the model called the attention of a layer, for calls with other rows and positions."""

    attention: nn.Module
    rows: Tensor
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]
    rotary: RotaryCall | None
    config: Any = field(repr=False)

    @property
    def turns(self) -> bool:
        """Whether attention is given angles."""
        return self.rotary is not None

    @property
    def given_angles(self) -> Any:
        """The angles that attention was given at ``POSITIONS``."""
        return None if self.rotary is None else self.rotary.returned

    def angles(self, positions: Int[Tensor, " P"]) -> Any:
        """The same for other positions."""
        if self.rotary is None:
            return None
        device = _device_of(self.rotary.returned)
        positions = positions.to(device)
        given = [_with_positions(value, positions) for value in self.rotary.arguments]
        named = {name: _with_positions(value, positions) for name, value in self.rotary.named.items()}
        return self.rotary.module(*given, **named)

    def at_several_positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and queries of every row of the pass, each as if it stood at each of ``POSITIONS``."""
        rows = self.rows[0][:, None].repeat(1, len(POSITIONS), 1)
        return self.heads(rows, torch.tensor(POSITIONS, device=rows.device))

    def heads(self, rows: Float[Tensor, "B S D"], positions: Int[Tensor, " S"]) -> tuple[Tensor, Tensor, Tensor]:
        """What attention makes of rows at some positions: keys and values that it keeps, and queries."""
        taking, cache = _Taking(), PassCache(self.config)
        angles = self.angles(positions)

        def changed(value: Any) -> Any:
            if isinstance(value, PassCache):
                return cache
            if self.rotary is not None and _same(value, self.rotary.returned):
                return angles
            return _with_positions(value, positions)

        named = {name: changed(value) for name, value in self.named.items()}
        arguments = [changed(value) for value in self.arguments]
        if arguments:
            arguments[0] = rows
        else:
            named["hidden_states"] = rows
        attention = self.attention

        def call() -> Any:
            return attention(*arguments, **named)

        run(taking, call)
        return taking.taken()


@dataclass(frozen=True)
class Survey:
    """What a pass showed: calls of attention by the number of the layer, for layers that keep keys and values."""

    calls: Mapping[int, Call]


class _Taking(Pass):
    """Takes what one call of attention makes."""

    def __init__(self) -> None:
        self.windows: Mapping[int, Window] = {}
        self._kept: tuple[Tensor, Tensor] | None = None
        self._queries: Tensor | None = None

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._kept = (keys, values)
        return keys, values

    def asks(self, layer: int, queries: Tensor) -> None:
        self._queries = queries
        raise Enough

    def mask(self, layer: int, rows: int, columns: int) -> None:
        return None

    def taken(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self._kept is not None, "attention was called, but kept nothing"
        assert self._queries is not None, "attention was called, but asked nothing"
        return (*self._kept, self._queries)


class _Surveying(Pass):
    """Notes which layers keep keys and values, and which modules are their attention."""

    def __init__(self, positions: Tensor) -> None:
        self.windows: Mapping[int, Window] = {}
        self.positions = positions
        self.kept: list[int] = []
        self.asked: list[int] = []

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.kept.append(layer)
        return keys, values

    def asks(self, layer: int, queries: Tensor) -> None:
        self.asked.append(layer)

    def mask(self, layer: int, rows: int, columns: int) -> Tensor:
        return Window().sees(self.positions, self.positions)


def surveyed(model: Any) -> Survey:
    """Survey a model with one pass of a few tokens.

    Raises:
        UnsupportedModelError: No attention of it goes through transformers' cache and attention interface.
    """
    kind = model.config.model_type
    inner: Any = getattr(model, body_name(model))
    config = model.config.get_text_config(decoder=True)
    device = model.get_input_embeddings().weight.device
    device = torch.device("cpu") if device.type == "meta" else device
    positions = torch.tensor([POSITIONS], device=device)
    ids = (torch.arange(len(POSITIONS), device=device)[None] * 7 + 3) % int(config.vocab_size)
    surveying, called, rotary = _Surveying(positions), list[tuple[nn.Module, Any, Any]](), list[RotaryCall]()

    def attention_called(module: nn.Module, arguments: Any, named: Any) -> None:
        called.append((module, arguments, dict(named)))

    def rotary_called(module: nn.Module, arguments: Any, named: Any, returned: Any) -> None:
        if _are_angles(returned, len(POSITIONS)):
            rotary.append(RotaryCall(module, arguments, dict(named), returned))

    hooks: list[Any] = []
    for module in inner.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            hooks.append(module.register_forward_pre_hook(attention_called, with_kwargs=True))
        elif next(module.parameters(), None) is None:
            hooks.append(module.register_forward_hook(rotary_called, with_kwargs=True))
    arguments: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "use_cache": True}
    arguments[cache_argument(type(inner))] = PassCache(config)
    try:
        run(surveying, inner, **arguments)
    except PASSING:
        raise
    except FAILURES as error:
        raise UnsupportedModelError(
            f"Backbone type {kind!r} cannot be called with a cache of ours: {error}."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return Survey(_calls(kind, config, surveying, called, rotary))


def body_name(model: Any) -> str:
    """The name of the part of a causal language model that holds its layers; its head is the rest.

    Raises:
        UnsupportedModelError: There is no such part.
    """
    from transformers import PreTrainedModel

    parts = [name for name, part in model.named_children() if isinstance(part, PreTrainedModel)]
    if model.base_model_prefix in parts or len(parts) == 1:
        return model.base_model_prefix if model.base_model_prefix in parts else parts[0]
    raise UnsupportedModelError(
        f"Backbone type {model.config.model_type!r} has no body under its head; parts: {parts}."
    )


def _calls(kind: str, config: Any, surveying: _Surveying, called: Sequence[Any], rotary: Sequence[RotaryCall]) -> Any:
    keeps, asks = surveying.kept, surveying.asked
    if not keeps:
        raise UnsupportedModelError(
            f"Backbone type {kind!r}: no layer of it keeps keys and values in transformers' cache, so there is nowhere "
            "for memory to be read."
        )
    if not set(keeps) <= set(asks):
        raise UnsupportedModelError(
            f"Backbone type {kind!r}: attention of layer {min(set(keeps) - set(asks))} does not go through "
            "transformers' attention interface, so memory cannot be shown to it."
        )
    if len(set(keeps)) != len(keeps):
        raise UnsupportedModelError(f"Backbone type {kind!r}: a layer keeps keys and values more than once in a pass.")
    calls: dict[int, Call] = {}
    for number in keeps:
        found = [(m, a, n) for m, a, n in called if m.layer_idx == number and _has_cache(a, n)]
        if not found:
            raise UnsupportedModelError(f"Backbone type {kind!r}: attention of layer {number} is not given the cache.")
        attention, arguments, named = found[-1]  # the innermost module that is given the cache
        given: Any = arguments[0] if arguments else named.get("hidden_states")
        named.pop("hidden_states", None)
        named = {name: None if name == "attention_mask" else value for name, value in named.items()}
        own = next((one for one in rotary for v in (*arguments, *named.values()) if _same(v, one.returned)), None)
        calls[number] = Call(attention, given.detach().clone(), arguments, named, own, config)
    return calls


def windows_of(config: Any) -> tuple[dict[int, Window], bool]:
    """What each layer of a model sees, by transformers' own cache for it, and whether some layers are recurrent."""
    from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    windows: dict[int, Window] = {}
    recurrent = False
    for number, layer in enumerate(DynamicCache(config=config).layers):
        size = getattr(layer, "sliding_window", None)
        in_stretches = number < len(kinds) and kinds[number] == "chunked_attention"
        in_stretches = in_stretches or (not kinds and getattr(config, "sliding_window", None) is None)
        if size is not None:
            windows[number] = Window(int(size), in_stretches)
        recurrent = recurrent or isinstance(layer, LinearAttentionCacheLayerMixin)
    return windows, recurrent


# --- arguments ----------------------------------------------------------------------------------------


def _has_cache(arguments: Sequence[Any], named: Mapping[str, Any]) -> bool:
    return any(isinstance(value, PassCache) for value in (*arguments, *named.values()))


def _are_angles(returned: Any, positions: int) -> bool:
    parts = returned if isinstance(returned, tuple | list) else [returned]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) != len(parts) or any(t.dim() < 2 or t.shape[-2] != positions for t in tensors):
        return False
    return len(parts) == 2 or (len(parts) == 1 and tensors[0].is_complex())


def _same(value: Any, angles: Any) -> bool:
    """Whether an argument is what a rotary module returned."""
    if value is angles:
        return True
    ours, theirs = (part if isinstance(part, tuple | list) else [part] for part in (value, angles))
    return len(ours) == len(theirs) and all(
        isinstance(a, Tensor)
        and a.shape == b.shape
        and a.dtype == b.dtype
        and (a is b or torch.equal(a, b.to(a.device)))
        for a, b in zip(ours, theirs, strict=True)
    )


def _device_of(angles: Any) -> torch.device:
    return (angles[0] if isinstance(angles, tuple | list) else angles).device


def _with_positions(value: Any, positions: Int[Tensor, " P"]) -> Any:
    """An argument that holds positions, with others; one that scales queries by position, as at the first."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.shape[-2:] == (len(POSITIONS), 1):
        return value[..., :1, :]
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        return value
    if value.dim() == 0 or value.shape[-1] != len(POSITIONS):
        return value
    return positions.to(value.device).expand(*value.shape[:-1], len(positions))
