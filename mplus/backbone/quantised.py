"""What is asked of weights that a library of others has quantised."""

from typing import Any

import torch
from torch import Tensor, nn


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
