"""A model's own head: everything of a causal model but its body."""

import copy
from functools import cache
from typing import Any

from torch import Tensor, nn


def own_head(model: nn.Module, body: str) -> nn.Module:
    """A view of a causal model whose body returns the states that it is given.

    Args:
        model: The model; its modules are shared, and it stays as it is.
        body: The name of its body.
    """
    head = copy.copy(model)
    for name in ("forward", "_hf_hook", "_old_forward"):  # accelerate binds these to the model itself
        head.__dict__.pop(name, None)
    head.__dict__["_modules"] = {**model._modules, body: _GivenStates(getattr(model, body))}
    return head


class _GivenStates(nn.Module):
    """A body of a model that returns the states it is given, and nothing else that a head might ask for."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self._body = [body]  # not a part, so that no weight is in two places

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_body"][0], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        """The states as a model's output."""
        return _only_states()(last_hidden_state=inputs_embeds)


@cache
def _only_states() -> Any:
    """A kind of output in which everything but the last states is None."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class OnlyStates(BaseModelOutputWithPast):
        def __getattr__(self, name: str) -> None:
            if name.startswith("__"):
                raise AttributeError(name)

    return OnlyStates
