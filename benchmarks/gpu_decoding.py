"""Decoding beside transformers, for ``gpu.py``: the same rows over each of transformers' KV caches, and compiled.

All sides have the same weights, the same rows of unequal length, and the same tokens; each waits for the tokens of a
step before it begins the next. Which attention kernel torch takes is set alike for all of them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import report
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import DynamicCache, StaticCache

from mplus.backbone.attention import GROUPED_ATTENTION
from mplus.read.decode import Reading

WARM_UP = 4
STEPS = 24
ATTENTIONS = ("flash", "efficient", "cudnn", "attention_math", "fmha")
"""Parts of the names of kernels and operations that compute attention."""

Step = Callable[[], object]


def decoding(reading: Reading, machine: Any, *, compiled: bool) -> dict[str, Any]:
    """Milliseconds a token of a read, and of transformers over KV caches of the same lengths.

    Args:
        reading: Prompts that have been read, with rows of any length.
        machine: What is measured, with ``model``, ``device`` and ``synchronize``.
        compiled: Whether transformers is compiled too; on a GPU with CUDA graphs.
    """
    lengths = list(reading.layers[0].lengths)
    rows, longest = len(lengths), max(lengths)
    found: dict[str, Any] = {"users": rows, "kv_tokens": f"{min(lengths)}–{longest}"}
    ours = lambda: reading.decode([7] * rows).argmax(-1).tolist()
    found["ms_a_token"] = 1e3 * seconds_a_token(ours, machine.synchronize)
    found["attention"] = attention_of(ours, machine)
    model = machine.model
    model.set_attn_implementation("sdpa")
    try:
        for name, make in {"dynamic": DynamicCache, "static": _static(model, longest)}.items():
            theirs = their_step(model, make(), lengths)
            found[f"{name}_ms"] = 1e3 * seconds_a_token(theirs, machine.synchronize)
            found[f"{name}_attention"] = attention_of(theirs, machine)
        if compiled:
            mode = "reduce-overhead" if machine.device.type == "cuda" else "default"
            forward = torch.compile(model.forward, mode=mode, dynamic=False)
            theirs = their_step(model, _static(model, longest)(), lengths, forward)
            found["compiled_ms"] = 1e3 * seconds_a_token(theirs, machine.synchronize)
    finally:
        model.set_attn_implementation(GROUPED_ATTENTION)
    best = min(found[name] for name in ("dynamic_ms", "static_ms", "compiled_ms") if name in found)
    return found | {"of_best_theirs": best / found["ms_a_token"]}


def _static(model: Any, longest: int) -> Callable[[], StaticCache]:
    return lambda: StaticCache(config=model.config, max_cache_len=longest + 2 * (WARM_UP + STEPS) + 8)


def their_step(model: Any, cache: Any, lengths: Sequence[int], forward: Any = None) -> Step:
    """A step of transformers over random keys and values; rows begin where their padding on the left ends."""
    rows, longest, config = len(lengths), max(lengths), model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (rows, config.num_key_value_heads, longest, size)
    generator = torch.Generator(model.device).manual_seed(0)
    for layer in range(config.num_hidden_layers):
        keys, values = (
            torch.randn(shape, dtype=model.dtype, device=model.device, generator=generator) for _ in range(2)
        )
        cache.update(keys, values, layer)
    unequal = len(set(lengths)) > 1
    static = isinstance(cache, StaticCache)
    columns = torch.arange(longest + 2 * (WARM_UP + STEPS) + 8, device=model.device)
    missing = longest - torch.tensor(lengths, device=model.device)
    whole = (columns >= missing[:, None]).long()
    ids = torch.full((rows, 1), 7, device=model.device)
    position = torch.tensor(lengths, device=model.device)[:, None]
    given, taken = report.cache_argument(model, cache), 0

    @torch.inference_mode()
    def step() -> object:
        nonlocal taken
        taken += 1
        masks = {}
        if unequal:
            masks = {"attention_mask": whole if static else whole[:, : longest + taken]}
        made = (forward or model)(ids, position_ids=position + taken - 1, use_cache=True, **masks, **given)
        return made.logits[:, -1].argmax(-1).tolist()

    return step


def seconds_a_token(step: Step, synchronize: Callable[[], None]) -> float:
    """Median seconds of a step, after some that are not counted."""
    for _ in range(WARM_UP):
        step()
    times: list[float] = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def attention_of(step: Step, machine: Any) -> str:
    """Names of the attention kernels, or operations on a CPU, that one step ran."""
    on_gpu = machine.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        step()
        machine.synchronize()
    names = {event.key for event in profiler.key_averages() if any(part in event.key.lower() for part in ATTENTIONS)}
    return ", ".join(sorted(name.removeprefix("aten::")[:60] for name in names))
