"""An 8B-shaped model with random weights and the published memory, on a GPU.

    python benchmarks/gpu.py [--long-term 0 38400 76800 153600] [--contexts 16384 65536 131072] [--trace trace.json]
    python benchmarks/gpu.py --small --device cpu      # the same steps at a small size, anywhere

bfloat16, published sizes (10,240 short-term and 2,560 recalled tokens in every layer, 153,600 long-term), with
random contents. Per size of long-term memory, in host memory and beside the layers: device memory at the peak of
a read, and its latency. A profile says how much of the copying from host memory runs while layers compute. The
other side is ``transformers`` with everything in its context. Published: 21.2 GB, with offloading 18.0 GB.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from mplus.backbone import GROUPED_ATTENTION, Backbone, register_attention
from mplus.config import MemoryConfig
from mplus.memory.long_term import LongTermMemory
from mplus.memory.placement import placed
from mplus.memory.state import MemoryState, Track
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Content, Provenance, Tokens
from mplus.read import ReadRequest, prefill
from mplus.retriever import PublishedRetriever
from mplus.weights import Weights
from mplus.words import no_words

PROMPT_TOKENS = 64
SEGMENT_TOKENS = 4096
RETRIEVER_SIZE = 256


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
        config = LlamaConfig(**shape_of(arguments.small), attn_implementation=GROUPED_ATTENTION)
        with torch.device(self.device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            projections = [
                nn.ModuleList([PublishedRetriever.projection(config.hidden_size, RETRIEVER_SIZE) for _ in range(n)])
                for n in [config.num_hidden_layers] * 2
            ]
        retriever = PublishedRetriever(*projections).to(torch.bfloat16).requires_grad_(False)
        backbone = Backbone.wrap(self.model, bos_token_id=1)
        self.weights = Weights(backbone, {"published": retriever}, 0, "random")
        short, recalled = (256, 64) if arguments.small else (10_240, 2560)
        self.config = MemoryConfig(
            layout="token", recall="published", short_term_tokens=short, recalled_tokens=recalled,
            long_term_dtype="int8", tokens_per_write=min(short, 256),
        )  # fmt: skip
        self.short_term: list[Tokens] = []

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measured(self, work: Callable[[], object]) -> tuple[float, float]:
        """Median seconds, and device memory in GB at the peak (0 on a CPU)."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        times: list[float] = []
        for _ in range(self.runs + 1):
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0
        return statistics.median(times[1:]), peak

    def state(self, long_term: int, *, beside: bool) -> MemoryState:
        """A memory of random contents; every layer has the same in host memory and its own on the device."""
        backbone = self.weights.backbone
        heads, size = backbone.num_key_value_heads, backbone.head_size
        where = self.device if beside else torch.device("cpu")

        def content(count: int, device: torch.device) -> Content:
            rows = (torch.randn(count, heads, size, dtype=torch.bfloat16, device=device),)
            return Content(rows, rows, torch.randn(count, RETRIEVER_SIZE, dtype=torch.bfloat16))

        if not self.short_term:
            count = self.config.short_term_tokens
            self.short_term = [Tokens(content(count, self.device), known(count)) for _ in range(backbone.num_layers)]
        tracks: list[Track] = []
        shared: list[Segment] = []
        for layer in range(backbone.num_layers):
            if beside or not shared:
                sizes = [SEGMENT_TOKENS] * (long_term // SEGMENT_TOKENS)
                sizes += [long_term % SEGMENT_TOKENS] if long_term % SEGMENT_TOKENS else []
                tier = "device" if beside else "host"
                shared = [Segment.store(content(n, where), self.config.long_term_dtype, tier) for n in sizes]
            store = LongTermMemory.empty()
            for segment in shared:
                store = store.append(segment, known(len(segment)))
            tracks.append(Track((layer,), layer, self.short_term[layer], LongTermMemory.empty(), store))
        settings = self.config.model_copy(update={"long_term_device": "cuda" if beside else "cpu"})
        stores = placed([track.long_term for track in tracks], settings)
        return MemoryState(
            tuple(replace(t, long_term=s) for t, s in zip(tracks, stores, strict=True)), digest=f"{long_term}{beside}"
        )

    def reading(self, state: MemoryState) -> Callable[[], object]:
        """One read of a prompt through a memory."""
        prompt = torch.randint(10, 1000, (PROMPT_TOKENS,)).tolist()
        request = ReadRequest(state, self.config, prompt, (0, PROMPT_TOKENS))
        return lambda: prefill(self.weights, [request])

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


def known(count: int) -> Provenance:
    """Provenance of tokens that arrived one after the other."""
    every = torch.arange(count)
    return Provenance(every.flip(0), torch.full((count,), 10.0, dtype=torch.float64), every * 0, every, no_words(count))


def overlap(machine: Machine, work: Callable[[], object], trace: Path | None) -> dict[str, float]:
    """Milliseconds of copies to the device in one read, and the share of them during which a kernel runs."""
    if machine.device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        machine.synchronize()
    path = trace or Path("trace.json")
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    spans = lambda kind: [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == kind and "dur" in e]
    copies = [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "gpu_memcpy" and "HtoD" in e["name"]]
    kernels = merged(spans("kernel"))
    total = sum(end - start for start, end in copies)
    hidden = sum(max(0.0, min(end, b) - max(start, a)) for start, end in copies for a, b in kernels)
    return {"copy_ms": total / 1e3, "hidden_share": hidden / total if total else 1.0}


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time in spans that do not touch."""
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model and memory, to try the script anywhere")
    parser.add_argument("--long-term", type=int, nargs="*")
    parser.add_argument("--contexts", type=int, nargs="*")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--trace", type=Path, help="where the profile goes (chrome://tracing)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No GPU here. Try the script with --small --device cpu.")
    sizes = arguments.long_term or ([0, 1024, 8192] if arguments.small else [0, 38_400, 76_800, 153_600])
    contexts = arguments.contexts or ([512, 1024] if arguments.small else [16_384, 65_536, 131_072])
    machine = Machine(arguments)
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for beside in (False, True):
            work = machine.reading(machine.state(size, beside=beside))
            seconds, peak = machine.measured(work)
            side = "M+, long-term beside its layers" if beside else "M+, long-term in host memory"
            rows.append({"side": side, "tokens": size, "seconds": seconds, "device_gb": peak})
            if not beside:
                rows[-1] |= overlap(machine, work, arguments.trace)
            print(rows[-1], flush=True)
            del work
    machine.short_term = []
    for length in contexts:
        try:
            seconds, peak = machine.measured(machine.full_context(length))
        except torch.OutOfMemoryError:
            rows.append({"side": "transformers, full context (out of memory)", "tokens": length})
            continue
        side = "transformers, full context"
        rows.append({"side": side, "tokens": length, "seconds": seconds, "device_gb": peak})
    names = list(dict.fromkeys(name for row in rows for name in row))
    report.table([{name: row.get(name) for name in names} for row in rows])

    def draw(axes: Any) -> None:
        for side in dict.fromkeys(row["side"] for row in rows if "seconds" in row):
            part = [row for row in rows if row["side"] == side]
            axes.plot([row["tokens"] for row in part], [row["seconds"] for row in part], marker="o", label=side)
        axes.set(xlabel="tokens of long-term memory or context", ylabel="seconds to the first token")
        axes.legend()

    name = "gpu-small" if arguments.small else "gpu"
    report.save(name, {"rows": rows, "device": str(machine.device)}, arguments.output, draw)


if __name__ == "__main__":
    main()
