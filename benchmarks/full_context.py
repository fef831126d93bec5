"""Memory against full context: what a turn costs when the conversation has become long.

    python benchmarks/full_context.py [--history 1024 2048 4096 8000] [--beyond 16384 163840]

A turn: what was said last enters (64 tokens), a question of 32 tokens is read, an answer of 16 tokens is
made. Three ways, each in the same run, float32:

* M+: the last turn is written into memory, the question is read through it;
* transformers, KV cache kept: the whole history stays in one KV cache from turn to turn (the best it can do,
  if nobody else needs the memory meanwhile);
* transformers, read again: the whole history is read every turn, as a stateless server does.

Turns of M+ and of the kept cache alternate, and latencies are medians. Memory is what a way needs beside the
weights (Linux only): what it keeps from turn to turn, and what a turn takes at its peak.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch
from transformers import DynamicCache

import mplus
from mplus.generation.prompt import Prompt
from mplus.memory.long_term import LongTermMemory
from mplus.memory.tokens import Provenance

SAID, ASKED, ANSWERED = 64, 32, 16
MEBIBYTE = 2**20


def status(field: str) -> float:
    """MiB of a field of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MiB that were resident at its peak over those before (0 where the system does not say)."""
    counts = Path("/proc/self/clear_refs").exists()
    before = 0.0
    if counts:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return seconds, status("VmHWM") - before if counts else 0.0


def calibration_ids(model: mplus.MPlus, count: int) -> list[int]:
    words = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    ids: list[int] = model.tokenizer(words, add_special_tokens=False)["input_ids"]
    return (ids * (count // len(ids) + 1))[:count]


def never_end(model: mplus.MPlus) -> Callable[[list[int], torch.Tensor], torch.Tensor]:
    """Keeps answers equally long."""
    end = model.tokenizer.eos_token_id

    def without_end(token_ids: list[int], scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(0, torch.tensor([end]), float("-inf"))

    return without_end


@torch.inference_mode()
def answer(plain: Any, ids: torch.Tensor, cache: DynamicCache) -> None:
    """Greedy decoding behind a prompt, as ``generate`` does without what it does once per call."""
    logits = plain(ids, **report.cache_argument(plain, cache), use_cache=True, logits_to_keep=1).logits
    for _ in range(ANSWERED - 1):
        logits = plain(logits[:, -1:].argmax(-1), **report.cache_argument(plain, cache), use_cache=True).logits


class Ours:
    """M+: a memory that grows."""

    def __init__(self, model: mplus.MPlus) -> None:
        self.model, self.memory = model, model.new_memory()
        self.question = Prompt(tuple(calibration_ids(model, 500)[-ASKED:]), (0, ASKED))
        self.number = 0

    def grow(self, history: int, written: int) -> None:
        """Let the memory hold ``history`` tokens: written up to ``written``, and beyond that repeated."""
        missing = min(history, written) - self.memory.stats().text_tokens
        if missing > 0:
            self.model.write(self.memory, calibration_ids(self.model, missing), source="history")
        track = self.memory.state.tracks[0]
        times = (history - len(track.short_term) - len(track.pending)) // max(len(track.long_term), 1)
        if history > written and times > 1:
            track = replace(track, long_term=repeated(track.long_term, times))
            self.memory.commit(replace(self.memory.state, tracks=(track,)))

    def turn(self) -> None:
        self.number += 1
        said = calibration_ids(self.model, SAID + self.number % 1000)[-SAID:]
        self.model.write(self.memory, said, source="turn")
        self.model.generate(self.memory, self.question, max_new_tokens=ANSWERED, processors=[never_end(self.model)])


def repeated(store: LongTermMemory, times: int) -> LongTermMemory:
    """A store of the same tokens over and over, as chunks of their own: what it costs depends on its size only."""
    spans = int(store.provenance.chunks.max()) + 1
    parts = [replace(store.provenance, chunks=store.provenance.chunks - n * spans) for n in reversed(range(times))]
    count = len(store.segments)
    return LongTermMemory.of(
        store.segments * times,
        Provenance.cat(parts),
        torch.cat([store.segment + n * count for n in range(times)]),
        store.row.repeat(times),
    )


class FullContext:
    """Plain transformers with everything in the window."""

    def __init__(self, model: mplus.MPlus, history: int) -> None:
        self.model, self.history = model, history
        self.plain: Any = model.weights.backbone.model
        self.ids = torch.tensor([calibration_ids(model, history)])
        self.new = torch.tensor([calibration_ids(model, 500)[-SAID - ASKED :]])
        self.kept = DynamicCache(config=self.plain.config)

    def fill(self) -> None:
        """The kept cache; part by part, as a conversation comes."""
        with torch.inference_mode():
            for part in self.ids.split(1024, dim=1):
                self.plain.model(part, **report.cache_argument(self.plain.model, self.kept), use_cache=True)

    def kept_mib(self) -> float:
        layers: Any = self.kept.layers
        return sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values)) / MEBIBYTE

    def go_on(self) -> None:
        if added := self.kept.get_seq_length() - self.history:
            self.kept.crop(-added)  # what the turn before added
        answer(self.plain, self.new, self.kept)

    def read_again(self) -> None:
        answer(self.plain, torch.cat([self.ids, self.new], dim=1), DynamicCache(config=self.plain.config))


def as_transformers(model: mplus.MPlus, work: Callable[[], object]) -> Callable[[], object]:
    """``work`` with transformers' own attention."""
    config = model.weights.backbone.config

    def run() -> None:
        implementation, config._attn_implementation = config._attn_implementation, "sdpa"
        try:
            work()
        finally:
            config._attn_implementation = implementation

    return run


def compare(model: mplus.MPlus, ours: Ours, history: int, written: int, turns: int) -> dict[str, Any]:
    """One row of the table."""
    ours.grow(history, written)
    row: dict[str, Any] = {"history": history}
    sides: dict[str, tuple[Callable[[], object], float]] = {"mplus": (ours.turn, ours.memory.nbytes / MEBIBYTE)}
    if history + SAID + ASKED + ANSWERED <= model.weights.backbone.window:
        full = FullContext(model, history)
        as_transformers(model, full.fill)()
        sides["kept_cache"] = (as_transformers(model, full.go_on), full.kept_mib())
        # Once is enough: it takes long, and its spread is small beside that.
        row["read_again_seconds"], row["read_again_mib"] = measured(as_transformers(model, full.read_again))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(turns + 1):
        for name, (work, _) in sides.items():
            found[name].append(measured(work))
    for name, (_, kept) in sides.items():
        seconds, peaks = zip(*found[name][1:], strict=True)
        row[f"{name}_seconds"], row[f"{name}_mib"] = statistics.median(seconds), kept + max(peaks)
    return row


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--history", type=int, nargs="+", default=[1024, 2048, 4096, 8000, 16384, 163840])
    parser.add_argument("--written", type=int, default=163840, help="what lies beyond is the same text repeated")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model, device="cpu", dtype="float32")
    ours = Ours(model)
    rows = [compare(model, ours, history, arguments.written, arguments.turns) for history in arguments.history]
    # The machine may have been busier at one time than at another: the longest against 8,000 once more, in turn.
    short = Ours(model)
    short.grow(8000, 8000)
    pairs = [(measured(ours.turn)[0], measured(short.turn)[0]) for _ in range(arguments.turns + 1)][1:]
    flatness = statistics.median(long for long, _ in pairs) / statistics.median(brief for _, brief in pairs)
    names = list(dict.fromkeys(name for row in rows for name in row))
    report.table([{name: row.get(name) for name in names} for row in rows])
    print(f"a turn of M+ after {rows[-1]['history']:,} tokens over one after 8,000, in turn: {flatness:.2f}")

    def draw(axes: Any) -> None:
        for name, label in (
            ("mplus_seconds", "M+"),
            ("kept_cache_seconds", "transformers, KV cache kept"),
            ("read_again_seconds", "transformers, read again"),
        ):
            known = [row for row in rows if name in row]
            axes.plot([row["history"] for row in known], [row[name] for row in known], marker="o", label=label)
        axes.set(xscale="log", yscale="log", xlabel="tokens of history", ylabel="seconds per turn")
        axes.legend()

    report.save(
        "full_context",
        {"rows": rows, "written": arguments.written, "longest_over_8000": flatness},
        arguments.output,
        draw,
    )


if __name__ == "__main__":
    main()
