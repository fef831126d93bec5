"""LoRA adapters: one set of base weights writes and reads with two sets of low-rank changes.

One module tree with a switchable adapter could not be shared by threads. So each role (writing, reading) has
its own tree of *containers* around the same base modules. Base weights exist
once; an adapted linear layer is either ``base(x) + scale * B(A(x))`` or, where merging is cheap, a plain
linear layer with the sum.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mplus.backbone.quantised import is_dense
from mplus.errors import CheckpointError


@dataclass(frozen=True)
class LoraWeights:
    """The two low-rank matrices of one adapted linear layer, and their scale."""

    down: Float[Tensor, "rank inputs"]
    up: Float[Tensor, "outputs rank"]
    scale: float

    def in_full(self) -> "LoraWeights":
        """The same in float32, for training."""
        return LoraWeights(self.down.float(), self.up.float(), self.scale)


MERGE_LIMIT_BYTES = 2 * 2**30
"""Merged copies of adapted layers are made up to this size; above it LoRA is applied on the fly."""

Adapter = Mapping[str, LoraWeights]
"""Adapted linear layers by module name below the decoder layers, as in ``0.self_attn.q_proj``."""


def untrained_adapter(
    layers: nn.ModuleList, names: Sequence[str], rank: int, alpha: float, generator: torch.Generator
) -> Adapter:
    """A new adapter, which does not change the output of any layer until it is trained.

    Args:
        layers: The decoder layers.
        names: The linear layers within them that it adapts.
        rank: Rank of the two matrices.
        alpha: The adapter's scale times its rank.
        generator: Draws the initial weights.
    """
    modules = dict(layers.named_modules())
    adapter: dict[str, LoraWeights] = {}
    for name in names:
        linear: Any = modules[name]
        down = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
        adapter[name] = LoraWeights(down, torch.zeros(linear.out_features, rank), alpha / rank)
    return adapter


def called_linears(layers: nn.ModuleList, call: Callable[[], object], *, rank: int) -> list[str]:
    """Names of the linear layers that map rows to rows when a model is called, in the order of its modules.

    Routers that return choices, projections whose weight another module uses by itself, and maps as narrow as an
    adapter of this rank are none of them.

    Args:
        layers: The decoder layers.
        call: Calls the model.
        rank: Of the adapter.
    """
    called: set[nn.Module] = set()

    def note(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.shape[-1] == module.out_features:
            called.add(module)

    linears: dict[str, Any] = {name: module for name, module in layers.named_modules() if _is_linear(module)}
    hooks = [module.register_forward_hook(note) for module in linears.values()]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return [
        name
        for name, one in linears.items()
        if one in called and min(int(one.in_features), int(one.out_features)) > rank
    ]


def _is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, whichever library made it."""
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def rank_of(adapter: Adapter) -> int:
    """The largest rank of an adapter's layers; 0 if it has none."""
    return max((len(weights.down) for weights in adapter.values()), default=0)


def widened(adapter: Adapter, rank: int, generator: torch.Generator) -> Adapter:
    """The same change with room for more: rows that change nothing until they are trained.

    Args:
        adapter: What there is.
        rank: Of every layer of the result; layers that have it already stay as they are.
        generator: Draws the new rows.
    """

    def wide(weights: LoraWeights) -> LoraWeights:
        spare = max(rank - len(weights.down), 0)
        inputs, outputs = weights.down.shape[1], len(weights.up)
        down = torch.randn(spare, inputs, generator=generator) / inputs**0.5
        up = torch.zeros(outputs, spare)
        rows = torch.cat([weights.down, down.to(weights.down)])
        return LoraWeights(rows, torch.cat([weights.up, up.to(weights.up)], dim=1), weights.scale)

    return {name: wide(weights) for name, weights in adapter.items()}


def mean_of(adapters: Sequence[Adapter], shares: Sequence[float] | None = None) -> Adapter:
    """The mean of what several adapters change, as one adapter whose rank is the sum of theirs.

    Adapters trained from different initial weights make different errors, and their mean reads better than each of
    them (docs/lab/training.md). Merged into the backbone's weights, the mean costs no more than one adapter.

    Args:
        adapters: Adapters of one backbone.
        shares: Weight of each adapter; None weighs them equally.

    Raises:
        ValueError: There are no adapters, they change different layers, or the number of shares differs.
    """
    if len({frozenset(adapter) for adapter in adapters}) != 1:
        raise ValueError(f"{len(adapters)} adapters do not change the same layers; expected adapters of one backbone.")
    shares = [1 / len(adapters)] * len(adapters) if shares is None else shares
    if len(shares) != len(adapters):
        raise ValueError(f"{len(shares)} shares for {len(adapters)} adapters; expected one for each.")

    def mean(parts: Sequence[LoraWeights]) -> LoraWeights:
        scale = parts[0].scale
        up = torch.cat(
            [part.up * (part.scale / scale * share) for part, share in zip(parts, shares, strict=True)], dim=1
        )
        return LoraWeights(torch.cat([part.down for part in parts]), up, scale)

    return {name: mean([adapter[name] for adapter in adapters]) for name in adapters[0]}


class LoraLinear(nn.Module):
    """A linear layer of the backbone plus a low-rank change; the base module is shared, not copied."""

    def __init__(self, base: nn.Module, weights: LoraWeights) -> None:
        super().__init__()
        # A plain attribute, not a submodule, so that accelerate's hooks stay on the base module only.
        self._base = [base]
        self.down = nn.Parameter(weights.down, requires_grad=False)
        self.up = nn.Parameter(weights.up, requires_grad=False)
        self.scale = weights.scale
        self.dropout = 0.0
        """Share of input features dropped in training: a fresh choice each pass, the same for all of its rows."""
        self.kept: Tensor | None = None
        """A choice that was made before, [inputs]: what each feature is multiplied with in training."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The base layer's output plus the scaled low-rank change."""
        if torch.is_grad_enabled():
            return self._forward_in_training(inputs)
        change = nn.functional.linear(nn.functional.linear(inputs.to(self.down.dtype), self.down), self.up)
        output: Tensor = self._base[0](inputs)
        return output + (change * self.scale).to(output.dtype)

    def _forward_in_training(self, inputs: Tensor) -> Tensor:
        """The same in the inputs' precision, with dropout and scale applied to the small matrices, not to the rows."""
        down = self.down
        if self.kept is not None:
            down = down * self.kept
        elif self.dropout:
            down = down * nn.functional.dropout(down.new_ones(down.shape[1]), self.dropout)
        low = nn.functional.linear(inputs, down.to(inputs.dtype)).flatten(0, -2)
        output: Tensor = self._base[0](inputs)
        up = (self.up * self.scale).to(output.dtype)
        return torch.addmm(output.flatten(0, -2), low.to(output.dtype), up.T).view_as(output)


def device_of(*modules: nn.Module) -> torch.device:
    """The device on which a module with weights computes: the one accelerate moves them to, else theirs.

    Args:
        modules: The module, and others whose accelerate hooks are looked at too.
    """
    for module in modules:
        device: Any = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    weight: Any = modules[0].weight
    return weight.device


def merged(base: nn.Linear, weights: LoraWeights) -> nn.Linear:
    """A new linear layer whose weight is the sum of base and change."""
    linear = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    change = (weights.up.float() @ weights.down.float()) * weights.scale
    weight = (base.weight.float() + change.to(base.weight.device)).to(base.weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = base.bias
    return linear


def with_adapter(layers: nn.ModuleList, adapter: Adapter, *, merge: bool) -> nn.ModuleList:
    """The same decoder layers seen through an adapter; base modules are shared, not copied.

    Raises:
        CheckpointError: The adapter changes a layer that the backbone does not have, or that has another
            shape.
    """
    view = _View(adapter, merge=merge)
    result = nn.ModuleList([view.of(layer, str(index)) for index, layer in enumerate(layers)])
    view.check()
    return result


def seen_through(body: nn.Module, layers: str, adapter: Adapter, *, merge: bool) -> nn.Module:
    """A module that holds decoder layers, seen through an adapter of these; base modules are shared, not copied.

    Args:
        body: The module.
        layers: Where in it the list of decoder layers stands.
        adapter: Names linear layers below that list.
        merge: Copy the layers that it changes, rather than change their outputs.

    Raises:
        CheckpointError: The adapter changes a layer that the module does not have, or that has another shape.
    """
    view = _View(adapter, merge=merge, within=f"{layers}.")
    result = view.of(body, "")
    view.check()
    return result


class _View:
    """Makes containers around the modules that an adapter does not change, and notes which layers it changed."""

    def __init__(self, adapter: Adapter, *, merge: bool, within: str = "") -> None:
        self._adapter = {f"{within}{name}": weights for name, weights in adapter.items()}
        self._merge, self._within = merge, within
        self._adapted: set[str] = set()

    def of(self, module: nn.Module, name: str) -> nn.Module:
        """A module of this name, seen through the adapter."""
        if name in self._adapter:
            self._adapted.add(name)
            return _adapt(module, name.removeprefix(self._within), self._adapter[name], merge=self._merge)
        below = f"{name}." if name else ""
        if not any(key.startswith(below) for key in self._adapter):
            return module
        return with_children(module, **{key: self.of(child, f"{below}{key}") for key, child in module.named_children()})

    def check(self) -> None:
        """Raise if the adapter changes what is not there."""
        if missing := sorted(set(self._adapter) - self._adapted):
            raise CheckpointError(
                f"The adapter changes {len(missing)} linear layers that the backbone does not have, first "
                f"{missing[0].removeprefix(self._within)!r}; expected names like '0.self_attn.q_proj'. Load it onto "
                "the backbone it was trained on."
            )


def with_children(module: nn.Module, **children: nn.Module) -> Any:
    """A module that shares everything with another one except some children."""
    shallow = copy.copy(module)
    # accelerate binds a hook to one module, so the copy needs a hook of its own.
    hook = shallow.__dict__.pop("_hf_hook", None)
    shallow.__dict__.pop("_old_forward", None)
    if hook is not None:
        shallow.__dict__.pop("forward", None)
    shallow.__dict__["_modules"] = {**module._modules, **children}
    if hook is not None:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(shallow, hook)
    return shallow


def with_descendant(module: nn.Module, path: str, descendant: nn.Module) -> Any:
    """A module that shares everything with another one except the part at a path, as in "text.layers"."""
    name, _, rest = path.partition(".")
    child = with_descendant(module.get_submodule(name), rest, descendant) if rest else descendant
    return with_children(module, **{name: child})


def _adapt(base: nn.Module, name: str, weights: LoraWeights, *, merge: bool) -> nn.Module:
    inputs, outputs = getattr(base, "in_features", None), getattr(base, "out_features", None)
    if (weights.down.shape[1], weights.up.shape[0]) != (inputs, outputs):
        raise CheckpointError(
            f"Adapter for {name!r} maps {weights.down.shape[1]} to {weights.up.shape[0]} numbers, but the "
            f"backbone's layer maps {inputs} to {outputs}. Load it onto the backbone it was trained on."
        )
    if merge and type(base) is nn.Linear and is_dense(base.weight) and not hasattr(base, "_hf_hook"):
        return merged(base, weights)
    where = device_of(base)
    return LoraLinear(base, LoraWeights(weights.down.to(where), weights.up.to(where), weights.scale))


def is_merged(layers: nn.ModuleList, adapter: Adapter) -> bool:
    """Whether an adapter of decoder layers is small enough for copies of the layers that it changes."""
    modules = dict(layers.named_modules())
    weights = [getattr(modules.get(name), "weight", None) for name in adapter]
    return sum(w.nbytes for w in weights if isinstance(w, Tensor)) <= MERGE_LIMIT_BYTES
