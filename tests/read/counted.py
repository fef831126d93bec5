"""Counts the operations that a piece of work issues. Unlike seconds, they are the same on every machine."""

from collections import Counter
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NO_KERNEL = frozenset(
    {
        *("empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like", "resize_", "set_", "_unsafe_view"),
        *("alias", "detach", "detach_", "lift_fresh", "_reshape_alias", "_local_scalar_dense"),
    }
)
"""Operations that compute nothing, beside views."""
ASKS = frozenset(
    {
        *("is_complex", "is_floating_point", "is_inference", "is_signed", "is_conj", "is_neg", "size", "stride"),
        *("resolve_conj", "resolve_neg"),
    }
)
"""What checks of shapes, and copies to the host, ask of a tensor: it counts as nothing."""
WAITS = frozenset(("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "equal"))
"""Operations whose result the host waits for."""


class Counted(TorchDispatchMode):
    """Counts operations, as torch is called, and the kernels that they launch, while it is entered.

    Where inference mode hands over an operation that torch composes of others, such as a linear layer, the operation
    counts once, and its parts count as kernels. An operation on a list of tensors is a kernel for each of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operation_names: Counter[str] = Counter()
        self.kernel_names: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self._depth = 0

    @property
    def operations(self) -> int:
        """Number of operations."""
        return self.operation_names.total()

    @property
    def kernels(self) -> int:
        """Number of kernels: operations on numbers, not on shapes."""
        return self.kernel_names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        if not self._depth and name not in ASKS:
            self.operation_names[name] += 1
        self._depth += 1
        try:
            with self:
                made = func.decompose(*args, **kwargs)
        finally:
            self._depth -= 1
        if made is not NotImplemented:
            return made
        if not func.is_view and name not in NO_KERNEL:
            self.kernel_names[name] += len(args[0]) if name.startswith("_foreach") else 1
        if name in WAITS:
            self.waits[name] += 1
        return func(*args, **kwargs)


ASKING = frozenset(
    {
        *("item", "tolist", "cpu", "nonzero", "is_nonzero", "unique", "unique_consecutive", "equal", "allclose"),
        *("masked_select", "__bool__", "__int__", "__float__", "__index__", "__contains__", "argwhere", "bincount"),
    }
)
"""Functions of torch whose result the host waits for, wherever the tensor lies."""


class Waiting(TorchFunctionMode):
    """Counts the calls for which the host would wait if the tensors were on a GPU, while it is entered.

    A copy with ``to`` cannot be told from others on a machine without a GPU; one to the host is written ``cpu()``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name: str = getattr(func, "__name__", "")
        if name in ASKING:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
