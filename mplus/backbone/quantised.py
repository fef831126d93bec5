"""Weight-only int8 for decoding on a CPU, where the time per token is that of reading the weights.

Beside it: what is asked of weights that a library of others has quantised.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FEW_ROWS = 8
"""Up to this many rows int8 weights are faster; far above it, bfloat16 is (docs/lab/performance.md)."""
BLOCK = 32
"""The kernel needs input and output sizes that are multiples of this."""


class Int8Linear(nn.Module):
    """A linear layer that uses int8 weights for a few rows, and the original bfloat16 weights for many.

    Each row of the weight has its own scale. Activations stay bfloat16.
    """

    levels: Tensor
    scale: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias: nn.Parameter | None = base.bias
        self.in_features, self.out_features = base.in_features, base.out_features
        weight = base.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("levels", (weight / scale[:, None]).round().to(torch.int8), persistent=False)
        self.register_buffer("scale", scale.to(base.weight.dtype), persistent=False)

    def forward(self, inputs: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """The layer's output; for a few rows, within the rounding error of int8."""
        rows = inputs.numel() // self.in_features
        if not 0 < rows <= FEW_ROWS:
            return functional.linear(inputs, self.weight, self.bias)
        output = torch.ops.aten._weight_int8pack_mm(inputs.reshape(rows, -1), self.levels, self.scale)
        output = output.view(*inputs.shape[:-1], -1)
        return output if self.bias is None else output + self.bias


def quantise_for_decoding(trees: Iterable[nn.Module]) -> None:
    """Add int8 weights to every linear layer of these module trees, which may share layers.

    Raises:
        ValueError: Weights are not bfloat16, or not on a CPU.
    """
    known: dict[nn.Module, Int8Linear] = {}
    for tree in trees:
        for module in list(tree.modules()):
            for name, child in list(module.named_children()):
                if type(child) is not nn.Linear or child.in_features % BLOCK or child.out_features % BLOCK:
                    continue
                if child.weight.device.type != "cpu" or child.weight.dtype != torch.bfloat16:
                    raise ValueError(
                        f'dtype="int8": {name} has {child.weight.dtype} weights on {child.weight.device}; expected '
                        "bfloat16 on the CPU. On a GPU pass a quantization_config of transformers instead."
                    )
                if child not in known:
                    known[child] = Int8Linear(child)
                module._modules[name] = known[child]


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor holds its numbers as they are; torchao and quanto keep theirs in tensors of other classes."""
    return type(tensor) in (Tensor, nn.Parameter)


def dense(tensor: Tensor) -> Tensor:
    """The numbers that a tensor stands for: itself, unless a library keeps it quantised and can undo it."""
    undo: Any = None if is_dense(tensor) else getattr(tensor, "dequantize", None)
    return tensor.detach() if undo is None else undo().detach()


def dense_copy(model: Any) -> Any:
    """The same model with the numbers that its quantised weights stand for; for saving, not for use."""
    import copy

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    found: dict[str, Tensor] = {}
    for name in plain.state_dict():
        owner, _, own = name.rpartition(".")
        found[name] = dense(getattr(model.get_submodule(owner), own))
    plain.load_state_dict(found, assign=True)
    plain.tie_weights()
    return plain
