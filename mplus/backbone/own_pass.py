"""A pass through a model's own forward, in which memory enters and leaves where attention makes keys and values.

The layers are the model's business: norms, multipliers, experts, parallel blocks, fused projections. Three places of
transformers' interface are ours: the cache, to which attention gives its keys and values; the attention function,
which gets all keys and the queries; and a hook that sees what attention is given.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from mplus.backbone.attention import grouped_attention

OWN_ATTENTION = "mplus_own_layers"
NEUTRAL = ("dropout", "scaling", "sliding_window", "is_causal", "position_ids", "use_cache", "layer_idx")
"""Arguments of attention functions that change nothing beyond scale and mask."""


class Enough(Exception):
    """Everything that was wanted has been computed; the rest of the forward pass is not needed."""


@dataclass(frozen=True)
class Window:
    """Which keys a layer sees: all before a query, those at most ``size`` back, or those of its own stretch."""

    size: int | None = None
    stretches: bool = False

    def sees(self, queries: Int[Tensor, "B S"], keys: Int[Tensor, "#B P"]) -> Bool[Tensor, "B 1 S P"]:
        """Which keys each query sees, by position; keys at negative positions are seen by none."""
        query, key = queries[:, :, None], keys[:, None]
        seen = (key >= 0) & (key <= query)
        if self.size is not None:
            seen &= (key // self.size == query // self.size) if self.stretches else (key > query - self.size)
        return seen[:, None]


class Pass(ABC):
    """One forward pass. It is current in its thread while the model runs."""

    windows: Mapping[int, Window]
    """Window of each of the model's layers, by its number."""

    def enters(self, layer: int, rows: Tensor, given: Mapping[str, Any]) -> None:
        """Attention of a layer is given rows, [B, S, D]."""
        return

    @abstractmethod
    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of a layer has made keys and values of its rows; returns all that it attends to."""

    @abstractmethod
    def mask(self, layer: int, rows: int, columns: int) -> Tensor | None:
        """Which columns each row sees, as booleans; None: all of them."""

    def asks(self, layer: int, queries: Tensor) -> None:
        """Attention of a layer has made queries, [B, A, S, E]."""
        return

    def length(self) -> int:
        """Columns before the rows of this pass."""
        return 0


CURRENT: ContextVar[Pass | None] = ContextVar("mplus_own_pass", default=None)


@lru_cache
def cache_argument(kind: type[nn.Module]) -> str:
    """The name of the cache among the arguments of a model or a layer: transformers 5.24 renamed it, and warns."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"


class PassCache(DynamicCache):
    """The cache of a pass: keys and values go to the pass, states of recurrent layers stay here."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Keys and values of a layer."""
        running = CURRENT.get()
        assert running is not None, "a pass's cache outside of its pass"
        return running.update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before the rows of this pass."""
        running = CURRENT.get()
        return 0 if running is None else running.length()

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of a mask."""
        return self.get_seq_length() + query_length, 0


def run(current: Pass, model: Callable[..., Any], **arguments: Any) -> Any:
    """Call a model within a pass; None if the pass had enough before the end."""
    token = CURRENT.set(current)
    try:
        return model(**arguments)
    except Enough:
        return None
    finally:
        CURRENT.reset(token)


def _enters(module: nn.Module, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    running = CURRENT.get()
    if running is not None:
        rows = arguments[0] if arguments else given.get("hidden_states")
        layer: Any = module.layer_idx
        if isinstance(rows, Tensor):
            running.enters(layer, rows, given)


def watch(attentions: Sequence[nn.Module], *, own_formula: bool) -> None:
    """Let the current pass see what these attention modules are given.

    Args:
        attentions: The modules.
        own_formula: Attend by the model's own formula, step by step, even where a faster kernel might do.
    """
    for module in attentions:
        module.__dict__["mplus_own_formula"] = own_formula
        if _enters not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_enters, with_kwargs=True)


def own_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, Any]:
    """Attention over all columns of the current pass, by the model's own formula."""
    running = CURRENT.get()
    if running is not None:
        layer: Any = module.layer_idx
        running.asks(layer, query)
        attention_mask = running.mask(layer, query.shape[2], key.shape[2])
    special = any(argument is not None for name, argument in given.items() if name not in NEUTRAL)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    stepwise: bool = module.__dict__.get("mplus_own_formula", True)
    if (special or stepwise) and eager is not None:
        return eager(module, query, key, value, _additive(attention_mask, query, key), **given)
    output, _ = grouped_attention(module, query, key, value, attention_mask, scaling=given.get("scaling"))
    return output.flatten(2, -2).contiguous(), None  # some models take a view of it


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """A mask of booleans as numbers to add to scores."""
    rows, columns = query.shape[2], key.shape[2]
    if mask is None:
        seen = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        mask = seen[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def _own_mask(*arguments: Any, **given: Any) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    return None if CURRENT.get() is not None else sdpa_mask(*arguments, **given)


def register_own_attention() -> None:
    """Make ``own_attention`` known to transformers under its name."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(OWN_ATTENTION, own_attention)
    AttentionMaskInterface.register(OWN_ATTENTION, _own_mask)
