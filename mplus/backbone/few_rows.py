"""Answering on a CPU: smaller copies of linear layers, for as many rows as prompts and answers have.

A few rows take as long as their weights take to be read, and many as long as they take to be multiplied, for which some
CPUs have units that take bfloat16 only. Which copy is quickest, and for how many rows, depends on the machine, so it is
measured when a model is loaded. Copies are used by prompts and answers only: what is written, and the question by which
recall searches, go through the weights themselves, so that memories and what they recall are the same.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mplus.backbone.cpu import computes_bfloat16

FEW = 16
"""So many rows are few: their weights take longer to be read than to be multiplied."""
MEASURED_ROWS = (1, 4, FEW, 128, 512)
"""Numbers of rows at which copies are measured; for others the next higher counts. Beyond the last there are none."""
MEASURED_BYTES = 2**26
"""How much of the weights of one shape is measured for few rows: more than stays in a CPU's caches."""
MEASURED_PRODUCTS = 2**33
"""A layer that multiplies more than so many numbers for some rows is not measured for them, and keeps its weights."""
ROUNDS = 3
HOPELESS = 3.0
"""How many times the least a kernel takes that is not measured again."""
LEAST_GAIN = 0.1
"""Share of the time that a copy must save."""
INT8_BLOCK = 32
"""The int8 kernel needs input and output sizes that are multiples of this."""
ANSWERING: ContextVar[bool] = ContextVar("mplus_answering", default=False)


@contextmanager
def answering(copies: bool = True) -> Generator[None]:
    """Let linear layers use their copies, or no longer use them."""
    token = ANSWERING.set(copies)
    try:
        yield
    finally:
        ANSWERING.reset(token)


# --- copies -------------------------------------------------------------------------------------------

Kernel = Callable[[Tensor], Tensor]
"""Maps rows [rows, inputs] to rows [rows, outputs], in the dtype of the inputs."""


def plain(linear: nn.Linear) -> Kernel:
    """The layer itself."""
    return lambda inputs: functional.linear(inputs, linear.weight, linear.bias)


def _bias(linear: Any, dtype: torch.dtype) -> Tensor | None:
    return None if linear.bias is None else linear.bias.detach().to(dtype)


def float16(linear: nn.Linear) -> Kernel | None:
    """Weights in float16, activations and sums in float32; None where torch is built without it, as on ARM.

    Half of float32's bytes, with no instructions for half precision needed but those that convert it.
    """
    weight = linear.weight.detach()
    if weight.abs().max() > torch.finfo(torch.float16).max:
        return None
    bias = _bias(linear, torch.float32)
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)
    except (AttributeError, RuntimeError):
        return None
    product = torch.ops.quantized.linear_dynamic_fp16
    return lambda inputs: product(inputs.float(), packed).to(inputs.dtype)


def bfloat16(linear: nn.Linear) -> Kernel | None:
    """Everything in bfloat16; None without instructions for it. Weights that are in bfloat16 are not copied.

    Few rows are the right factor, which takes seven tenths of the time that they take as the left one.
    """
    if not computes_bfloat16():
        return None
    weight = linear.weight.detach().bfloat16()
    bias = _bias(linear, torch.bfloat16)

    def product(inputs: Tensor) -> Tensor:
        rows = inputs.bfloat16()
        if len(rows) > FEW:
            return functional.linear(rows, weight, bias).to(inputs.dtype)
        output = weight.mv(rows[0])[None] if len(rows) == 1 else (weight @ rows.T).T.contiguous()
        return (output if bias is None else output + bias).to(inputs.dtype)

    return product


def int8(linear: nn.Linear) -> Kernel | None:
    """Weights in int8 with a scale for each row, activations in bfloat16; None where it is slow."""
    if not computes_bfloat16() or linear.in_features % INT8_BLOCK or linear.out_features % INT8_BLOCK:
        return None
    weight = linear.weight.detach().float()
    scale = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    levels, scale = (weight / scale[:, None]).round().to(torch.int8), scale.bfloat16()
    bias = _bias(linear, linear.weight.dtype)

    def product(inputs: Tensor) -> Tensor:
        output = torch.ops.aten._weight_int8pack_mm(inputs.bfloat16(), levels, scale).to(inputs.dtype)
        return output if bias is None else output + bias

    return product


COPIES: Mapping[str, tuple[Callable[[nn.Linear], Kernel | None], ...]] = {
    "auto": (float16, bfloat16),
    "int8": (float16, bfloat16, int8),
}
"""By how coarse they may be; what each costs is in docs/lab/performance.md."""


class FewRowsLinear(nn.Module):
    """A linear layer that answers with copies of its weights, and does all else with the weights.

    Attributes:
        chosen: The name of the copy for each number of rows that was measured; "plain": none.
    """

    def __init__(self, base: nn.Linear, chosen: Mapping[int, str], kernels: Mapping[str, Kernel]) -> None:
        """Keep the copies that are used.

        Args:
            base: The layer; its parameters are shared.
            chosen: The name of the quickest kernel at each of some numbers of rows.
            kernels: Kernels by name.
        """
        super().__init__()
        self.weight = base.weight
        self.bias: nn.Parameter | None = base.bias
        self.in_features, self.out_features = base.in_features, base.out_features
        self.chosen = dict(sorted(chosen.items()))
        self._by_rows: list[Kernel | None] = [None]
        for rows, name in self.chosen.items():
            more = rows + 1 - len(self._by_rows)
            self._by_rows += [None if name == "plain" else kernels[name]] * more

    def forward(self, inputs: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """The layer's output; while answering, within the rounding error of the copy."""
        rows = inputs.numel() // self.in_features
        kernel = self._by_rows[rows] if rows < len(self._by_rows) and ANSWERING.get() else None
        if kernel is None:
            return functional.linear(inputs, self.weight, self.bias)
        return kernel(inputs.reshape(rows, self.in_features)).view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Sizes, and which copy is used for how many rows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, chosen={self.chosen}"


# --- choosing -----------------------------------------------------------------------------------------

Seconds = Callable[[Sequence[Kernel], Tensor], float]
"""How long some kernels take, one after the other, for the same rows."""


def seconds_of(kernels: Sequence[Kernel], inputs: Tensor) -> float:
    """Seconds that kernels take now."""
    started = time.perf_counter()
    for kernel in kernels:
        kernel(inputs)
    return time.perf_counter() - started


def check_decode_dtype(dtype: str | None) -> None:
    """Refuse what ``decode_dtype=`` does not take.

    Raises:
        ValueError: It is none of "auto", "int8" and None.
    """
    if dtype is not None and dtype not in COPIES:
        raise ValueError(f"decode_dtype={dtype!r}: expected 'auto', 'int8' or None.")


@torch.inference_mode()
def prepare_for_decoding(trees: Iterable[nn.Module], dtype: str, *, seconds: Seconds = seconds_of) -> None:
    """Give linear layers of these module trees, which may share layers, the copies that are quicker on this machine.

    Layers that are not on a CPU are left as they are with "auto".

    Args:
        trees: Module trees.
        dtype: How coarse copies may be.
        seconds: Measures kernels.

    Raises:
        ValueError: ``dtype`` is "int8", and a layer is not on the CPU.
    """
    places: dict[nn.Linear, list[tuple[nn.Module, str]]] = defaultdict(list)
    for tree in trees:
        for module in list(tree.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear and _is_here(name, child, dtype):
                    places[child].append((module, name))
    shapes: dict[tuple[int, int], list[nn.Linear]] = defaultdict(list)
    for linear in places:
        shapes[linear.in_features, linear.out_features].append(linear)
    for alike in shapes.values():
        for linear, changed in zip(alike, _with_copies(alike, dtype, seconds), strict=True):
            for module, name in places[linear]:
                module._modules[name] = changed


def _is_here(name: str, linear: nn.Linear, dtype: str) -> bool:
    if linear.weight.device.type == "cpu":
        return True
    if dtype == "auto":
        return False
    raise ValueError(
        f'decode_dtype="int8": the weights of {name} are on {linear.weight.device}; expected the CPU. On a GPU pass a '
        "quantization_config of transformers instead."
    )


def _with_copies(linears: Sequence[nn.Linear], dtype: str, seconds: Seconds) -> list[nn.Module]:
    """Layers of one shape with the copies that are quicker, measured with some of them."""
    weight = linears[0].weight
    some = linears[: max(MEASURED_BYTES // (weight.numel() * weight.element_size()), 1)]
    makers = {maker.__name__: maker for maker in COPIES[dtype]}
    tried: dict[str, list[Kernel]] = {"plain": [plain(linear) for linear in some]}
    for name, maker in makers.items():
        made = [kernel for linear in some if (kernel := maker(linear)) is not None]
        if len(made) == len(some):
            tried[name] = made
    chosen: dict[int, str] = {}
    for rows in MEASURED_ROWS:
        if rows <= FEW or weight.numel() * rows <= MEASURED_PRODUCTS:
            # As much work for many rows as for few.
            part = {name: kernels[: max(len(some) * FEW // max(rows, FEW), 1)] for name, kernels in tried.items()}
            chosen[rows] = _quickest(part, torch.ones(rows, weight.shape[1], dtype=weight.dtype), seconds)
    wanted = {name: makers[name] for name in {*chosen.values()} - {"plain"}}
    if not wanted:
        return list(linears)
    result: list[nn.Module] = []
    for place, linear in enumerate(linears):
        kernels = {name: tried[name][place] if place < len(some) else maker(linear) for name, maker in wanted.items()}
        known: dict[str, Any] = {name: kernel for name, kernel in kernels.items() if kernel is not None}
        own = {rows: name if name in known else "plain" for rows, name in chosen.items()}
        result.append(FewRowsLinear(linear, own, known))
    return result


def _quickest(tried: Mapping[str, Sequence[Kernel]], inputs: Tensor, seconds: Seconds) -> str:
    """The name of the kernels that take least; the plain ones if others do not save enough."""
    least = dict.fromkeys(tried, float("inf"))
    running = dict(tried)
    for _ in range(ROUNDS):  # in turn, so that others on the machine slow all alike
        for name, kernels in running.items():
            least[name] = min(least[name], seconds(kernels, inputs))
        running = {name: kernels for name, kernels in running.items() if least[name] < HOPELESS * min(least.values())}
    best = min(least, key=least.__getitem__)
    return best if least[best] < (1 - LEAST_GAIN) * least["plain"] else "plain"
