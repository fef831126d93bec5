"""An 8B-shaped model with random weights and the published memory, on a GPU.

    python benchmarks/gpu.py [--long-term 0 38400 76800 153600] [--contexts 16384 65536 131072]
    python benchmarks/gpu.py --small --device cpu      # the same steps at a small size, anywhere

bfloat16, published sizes (10,240 short-term and 2,560 recalled tokens in every layer, 153,600 long-term), random
contents. Per layout and size of long-term memory, in host memory and beside the layers: device memory at the peak of
a read, its latency, and how much of the copying from host memory runs while layers compute. Then decoding for users
whose prompts are of unequal length, beside ``transformers`` over KV caches of the same lengths: dynamic, static and,
with ``--compiled``, compiled (``gpu_decoding.py``). Then ``transformers`` with everything in its context. Weights,
contents and prompts are seeded. The cuDNN kernel of attention is tried last on both sides.
Published: 21.2 GB, with offloading 18.0 GB. Every row is printed and saved as it comes; one that fails says why.
"""

import argparse
import cProfile
import gc
import json
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")  # before torch looks, and alike for both sides

import report
import torch
from gpu_decoding import decoding
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from mplus.backbone.attention import GROUPED_ATTENTION, register_attention
from mplus.backbone.llama_layers import LlamaLayers
from mplus.config import LayoutName, MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.memory.placement import placed
from mplus.memory.state import MemoryState, Track, arrival_tier
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.read.prefill import ReadRequest, prefill
from mplus.read.spare_prefixes import SPARE_PREFIXES
from mplus.recall.late_interaction import LateInteraction
from mplus.recall.published_retriever import PublishedRetriever
from mplus.weights import Weights
from mplus.words import no_words

SEED = 0
PROMPT_TOKENS = 64
CHUNK_TOKENS = 64
SEGMENT_TOKENS = 4096
RETRIEVER_SIZE = 256
LONG_CONTEXT = 20_000
"""Contexts beyond this are read once, without a read to warm up: they take seconds."""


def shape_of(small: bool) -> dict[str, Any]:
    """Llama-3.1-8B, or the same in small."""
    if small:
        return {
            "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
            "num_key_value_heads": 2, "vocab_size": 1024, "max_position_embeddings": 131_072,
        }  # fmt: skip
    return {
        "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072,
    }  # fmt: skip


class Machine:
    """Model, device and how they are measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        register_attention()
        self.device = torch.device(arguments.device)
        self.runs: int = arguments.runs
        self.small: bool = arguments.small
        self.compiled: bool = arguments.compiled
        torch.manual_seed(SEED)
        config = LlamaConfig(**shape_of(arguments.small))
        layers, hidden = config.num_hidden_layers, config.hidden_size
        with torch.device(self.device):
            self.model = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation=GROUPED_ATTENTION
            )
            projections = [
                nn.ModuleList([PublishedRetriever.projection(hidden, RETRIEVER_SIZE) for _ in range(layers)])
                for _ in range(2)
            ]
            late = LateInteraction(torch.zeros(layers, hidden), torch.ones(layers, hidden))
        retriever = PublishedRetriever(*projections).to(torch.bfloat16).requires_grad_(False)
        backbone = LlamaLayers.wrap(self.model, bos_token_id=1)
        recall_layer = layers // 5 or 1
        self.weights = Weights(backbone, {"published": retriever, "late": late}, recall_layer, "random")

    def config(self, layout: LayoutName) -> MemoryConfig:
        """The published sizes in one of the layouts."""
        short, recalled = (256, 64) if self.small else (10_240, 2560)
        recall = "late" if layout == "chunk" else "published"
        return MemoryConfig(
            layout=layout, recall=recall, short_term_tokens=short, recalled_tokens=recalled,
            long_term_dtype="int8", tokens_per_write=min(short, 256), chunk_tokens=CHUNK_TOKENS,
        )  # fmt: skip

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measured(self, work: Callable[[], object], *, once: bool = False) -> dict[str, float]:
        """Median seconds after a run that is not counted, and device memory in GB at the peak (0 on a CPU)."""
        self.free()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times: list[float] = []
        for _ in range(1 if once else self.runs + 1):
            SPARE_PREFIXES.clear()  # every read is a first one
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0
        return {"seconds": statistics.median(times[not once :]), "device_gb": peak}

    def free(self) -> None:
        """Let go of whatever nobody holds."""
        gc.collect()
        SPARE_PREFIXES.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def contents(self, count: int, layout: LayoutName, *, distinct: int) -> Iterator[Content]:
        """Random content, a segment's worth at a time; layers beyond ``distinct`` share the tensors of one."""
        backbone = self.weights.backbone
        heads, size = backbone.num_key_value_heads, backbone.head_size
        layers = backbone.num_layers if layout == "chunk" else 1
        width = backbone.hidden_size if layout == "chunk" else RETRIEVER_SIZE
        for start in range(0, count, SEGMENT_TOKENS):
            rows = min(SEGMENT_TOKENS, count - start)
            made = [
                torch.randn(rows, heads, size, dtype=torch.bfloat16, device=self.device)
                for _ in range(min(distinct, layers))
            ]
            made += [made[-1]] * (layers - len(made))
            keys = nn.functional.normalize(torch.randn(rows, width, dtype=torch.bfloat16, device=self.device), dim=-1)
            yield Content(tuple(made), tuple(made), keys)

    def state(self, long_term: int, layout: LayoutName, *, beside: bool) -> MemoryState:
        """A memory of random contents; in host memory every layer has the same, which reads alike."""
        layers = self.weights.backbone.num_layers
        config = self.config(layout).model_copy(update={"long_term_device": "cuda" if beside else "cpu"})
        groups = [tuple(range(layers))] if layout == "chunk" else [(layer,) for layer in range(layers)]
        tracks: list[Track] = []
        shared: list[Segment] = []
        for group in groups:
            if beside or not shared:
                contents = self.contents(long_term, layout, distinct=layers if beside else 1)
                shared = [stored(content, config) for content in contents]
            store = LongTermMemory.empty()
            for segment in shared:
                store = store.append(segment, known(len(segment), long_term - len(store)))
            count = config.short_term_tokens
            parts = list(self.contents(count, layout, distinct=layers))
            recent = Content.cat(parts)
            recent = replace(recent, retrieval_keys=recent.retrieval_keys.cpu())
            layer = self.weights.recall_layer if layout == "chunk" else group[0]
            tracks.append(Track(group, layer, Tokens(recent, known(count, count)), LongTermMemory.empty(), store))
        stores = placed([track.long_term for track in tracks], config)
        return MemoryState(
            tuple(replace(t, long_term=s) for t, s in zip(tracks, stores, strict=True)), digest=f"{long_term}{beside}"
        )

    def requests(
        self, state: MemoryState, layout: LayoutName, count: int = 1, *, unequal: bool = False
    ) -> list[ReadRequest]:
        """Prompts that are read through a memory; ``unequal`` ones are of different length, as users' are."""
        generator = torch.Generator().manual_seed(SEED)
        prompts = torch.randint(10, 1000, (count, PROMPT_TOKENS), generator=generator).tolist()
        if unequal:
            prompts = [prompt[: PROMPT_TOKENS - 7 * (row % 8)] for row, prompt in enumerate(prompts)]
        return [ReadRequest(state, self.config(layout), prompt, (0, len(prompt))) for prompt in prompts]

    def full_context(self, length: int) -> Callable[[], object]:
        """The whole history in the window of transformers' own model."""
        ids = torch.randint(10, 1000, (1, length), device=self.device)

        @torch.inference_mode()
        def work() -> object:
            self.model.set_attn_implementation("sdpa")
            try:
                return self.model(ids, use_cache=True, logits_to_keep=1)
            finally:
                self.model.set_attn_implementation(GROUPED_ATTENTION)

        return work

    def decoding(self, state: MemoryState, layout: LayoutName, users: int) -> dict[str, Any]:
        """Milliseconds a token of M+ and of transformers over KV caches of the same lengths, in turn."""
        requests = self.requests(state, layout, users, unequal=True)
        return decoding(prefill(self.weights, requests).reading, self, compiled=self.compiled)


def stored(content: Content, config: MemoryConfig) -> Segment:
    """A segment; where layers share their tensors, the stored ones are shared as well."""
    if content.keys[0] is not content.keys[-1] or len(content) == 0:
        return Segment.store(content, config.resolved_long_term_dtype, arrival_tier(config))
    one = replace(content, keys=content.keys[:1], values=content.values[:1])
    segment = Segment.store(one, config.resolved_long_term_dtype, arrival_tier(config))
    layers = len(content.keys)
    return replace(segment, keys=segment.keys * layers, values=segment.values * layers)


def known(count: int, before: int) -> Provenance:
    """Provenance of tokens that arrived one after the other, the first of them ``before`` tokens ago."""
    every = torch.arange(count)
    ages = before - 1 - every
    frequencies = torch.full((count,), 10.0, dtype=torch.float64)
    return Provenance(ages, frequencies, every * 0, (10**7 - ages) // CHUNK_TOKENS, no_words(count))


def overlap(machine: Machine, work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of copies to the device and of kernels in one read, and the share of the copies beside kernels."""
    if machine.device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    SPARE_PREFIXES.clear()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        machine.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    copies = merged([span(e) for e in events if e.get("cat") == "gpu_memcpy" and "HtoD" in e["name"]])
    kernels = merged([span(e) for e in events if e.get("cat") == "kernel"])
    total, busy = (sum(end - start for start, end in spans) for spans in (copies, kernels))
    return {
        "copy_ms": total / 1e3,
        "kernel_ms": busy / 1e3,
        "hidden_share": common(copies, kernels) / total if total else 1.0,
    }


def span(event: dict[str, Any]) -> tuple[float, float]:
    """When something ran, in microseconds."""
    return event["ts"], event["ts"] + event.get("dur", 0)


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time in spans that do not touch."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def common(some: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """How long both ran."""
    total, at = 0.0, 0
    for start, end in some:
        while at < len(others) and others[at][1] <= start:
            at += 1
        here = at
        while here < len(others) and others[here][0] < end:
            total += min(end, others[here][1]) - max(start, others[here][0])
            here += 1
    return total


class Rows:
    """Results so far: printed and saved one by one, so that nothing is lost with what comes later."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.rows: list[dict[str, Any]] = []
        self.name = "gpu-small" if arguments.small else "gpu"
        self.output: Path = arguments.output
        self.ends = time.monotonic() + arguments.budget
        self.about = {"device": str(device), "seed": SEED, "cudnn_last": os.environ["TORCH_CUDNN_SDPA_DEPRIORITIZED"]}
        if device.type == "cuda":
            self.about |= {"device": torch.cuda.get_device_name(device), "cuda": str(torch.version.cuda)}

    def add(self, known: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row; what goes wrong is its result."""
        if time.monotonic() > self.ends:
            row = known | {"error": "no time left"}
        else:
            started = time.monotonic()
            try:
                row = known | measure()
            except Exception as error:
                row = known | {"error": f"{type(error).__name__}: {error}"[:200]}
            row["took"] = round(time.monotonic() - started, 1)
        self.rows.append(row)
        print(row, flush=True)
        report.write(self.name, {**self.about, "rows": self.rows}, self.output)

    def finish(self) -> None:
        """The table and the plot."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        report.table([{name: row.get(name) for name in names} for row in self.rows])
        report.save(self.name, {**self.about, "rows": self.rows}, self.output, self._draw)

    def _draw(self, axes: Any) -> None:
        timed = [row for row in self.rows if "seconds" in row]
        for side in dict.fromkeys(row["side"] for row in timed):
            part = [row for row in timed if row["side"] == side]
            axes.plot([row["tokens"] for row in part], [row["seconds"] for row in part], marker="o", label=side)
        axes.set(xlabel="tokens of long-term memory or context", ylabel="seconds to the first token", yscale="log")
        axes.legend()


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model and memory, to try the script anywhere")
    parser.add_argument("--layouts", nargs="*", default=["chunk", "token"])
    parser.add_argument("--long-term", type=int, nargs="*")
    parser.add_argument("--contexts", type=int, nargs="*")
    parser.add_argument("--users", type=int, nargs="*", default=[1, 8], help="how many are answered together")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="compile transformers too; takes a minute or more")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no row is begun")
    parser.add_argument("--functions", type=int, default=0, help="print where the last read spends its time")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No GPU here. Try the script with --small --device cpu.")
    default_sizes = [0, 1024, 8192] if arguments.small else [0, 38_400, 76_800, 153_600]
    default_contexts = [512, 1024] if arguments.small else [16_384, 65_536, 131_072]
    sizes = default_sizes if arguments.long_term is None else arguments.long_term
    contexts = default_contexts if arguments.contexts is None else arguments.contexts
    started = time.monotonic()
    machine = Machine(arguments)
    machine.synchronize()
    rows = Rows(arguments, machine.device)
    print(f"model ready after {time.monotonic() - started:.1f} s", flush=True)

    def read(size: int, layout: LayoutName, beside: bool) -> dict[str, Any]:
        machine.free()
        state = machine.state(size, layout, beside=beside)
        work = lambda: prefill(machine.weights, machine.requests(state, layout))
        found: dict[str, Any] = machine.measured(work)
        if size == max(sizes):
            found |= overlap(machine, work)
            if arguments.functions:
                SPARE_PREFIXES.clear()
                with cProfile.Profile() as profile:
                    work()
                    machine.synchronize()
                pstats.Stats(profile).sort_stats("tottime").print_stats(arguments.functions)
        return found

    layouts: list[LayoutName] = arguments.layouts
    for size in sizes:
        for layout in layouts:
            for beside in (False, True):
                side = f"M+, {layout} layout, long-term {'beside its layers' if beside else 'in host memory'}"
                rows.add({"side": side, "tokens": size}, partial(read, size, layout, beside))
    for users in arguments.users:

        def decode(users: int = users) -> dict[str, Any]:
            machine.free()
            return machine.decoding(machine.state(sizes[-1], layouts[0], beside=False), layouts[0], users)

        rows.add({"side": f"decoding, {layouts[0]} layout, beside transformers"}, decode)
    for length in contexts:

        def whole(length: int = length) -> dict[str, Any]:
            return machine.measured(machine.full_context(length), once=length > LONG_CONTEXT)

        rows.add({"side": "transformers, full context", "tokens": length}, whole)
    rows.finish()


if __name__ == "__main__":
    main()
