"""How recall and reading grow with long-term memory.

    python benchmarks/scaling.py [--sizes 10000 100000 1000000] [--recall-only 10000000]

Long-term memory is filled with random content of the model's shape in int8, a file per segment, and with
retrieval keys that cluster as those of texts do. Per size: seconds to find what answers a question of 32 tokens
(exactly, and in the way recall takes at that size), recall@4 of the second against the first, seconds of a read
up to its first token, the share of it that finding takes, resident host memory, and bytes on disk.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import report
import torch
from synthetic import SEGMENT_TOKENS, long_term_of, unit_keys

import mplus
from mplus.config import MemoryConfig
from mplus.generation.prompt import Prompt
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import Track
from mplus.read.prefill import prefill
from mplus.recall.choose import recall
from mplus.recall.scorer import Question

QUERY_TOKENS = 32


def resident() -> float:
    """MiB of this process that no file backs (Linux only)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return sum(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("RssAnon"))


def seconds(work: Callable[[], object], runs: int) -> float:
    """The least disturbed of some runs after one; that one where no more are wanted."""
    times: list[float] = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[1:] or times)


class Planted:
    """A scorer's queries near keys that are there, so that there is something to find."""

    def __init__(self, model: mplus.MPlus) -> None:
        self.weights = model.weights
        self.scorer: Any = model.weights.scorers["late"]

    def recall(self, track: Track, config: MemoryConfig, query: torch.Tensor) -> torch.Tensor:
        """Chunks that are recalled for retrieval queries given as they are."""
        normal = self.scorer.queries
        self.scorer.queries = lambda layer, normed: query
        try:
            return recall(self.scorer, track, config, Question(track.recall_layer, query)).provenance.chunks.unique()
        finally:
            self.scorer.queries = normal


def keys_by_segment(tokens: int, size: int) -> Iterator[torch.Tensor]:
    """Keys made segment by segment: those of ten million would not fit as numbers."""
    for number, start in enumerate(range(0, tokens, SEGMENT_TOKENS)):
        yield unit_keys(min(SEGMENT_TOKENS, tokens - start), size, seed=number)


def queries_for(store: LongTermMemory, count: int) -> list[torch.Tensor]:
    """Questions that resemble a chunk each, row by row and not closely."""
    generator = torch.Generator().manual_seed(7)
    made: list[torch.Tensor] = []
    for _ in range(count):
        start = int(torch.randint(len(store) // 64, (), generator=generator)) * 64
        keys = store.retrieval_keys(slice(start, start + QUERY_TOKENS))
        noise = torch.randn(keys.shape, generator=generator)
        made.append(torch.nn.functional.normalize(keys + 0.7 * noise * keys.shape[1] ** -0.5, dim=-1))
    return made


class Scale:
    """One memory of the model, measured at different sizes of its long-term part."""

    def __init__(self, model: mplus.MPlus, questions: int, runs: int) -> None:
        self.model, self.questions, self.runs = model, questions, runs
        scorer: Any = model.weights.scorers["late"]
        self.key_size = len(scorer.mean[0]) if scorer.key_projection is None else len(scorer.key_projection)
        self.finder = Planted(model)
        self.memory = model.new_memory()
        model.write(self.memory, "What was said last stands in short-term memory. " * 40, source="recent")
        words = model.tokenizer("Where did we leave the key to the old house? " * 40, add_special_tokens=False)
        self.words: list[int] = words["input_ids"]

    def at(self, tokens: int, *, recall_only: bool) -> dict[str, Any]:
        """A row of the table."""
        backbone = self.model.weights.backbone
        gc.collect()
        before = resident()
        keys = keys_by_segment(tokens, self.key_size)
        shape = (backbone.num_layers, backbone.num_key_value_heads, backbone.head_size)
        store = long_term_of(keys) if recall_only else long_term_of(keys, shape=shape, on_disk=True)
        track = replace(self.memory.state.tracks[0], long_term=store)
        usual = self.model.memory_config
        exact = usual.model_copy(update={"exact_recall_tokens": 2**60})
        asked = queries_for(store, self.questions)
        first = seconds(lambda: self.finder.recall(track, usual, asked[0]), 0)
        pairs = [(self.finder.recall(track, exact, q), self.finder.recall(track, usual, q)) for q in asked]
        row: dict[str, Any] = {
            "tokens": tokens,
            "exact_recall_seconds": seconds(lambda: self.finder.recall(track, exact, asked[0]), self.runs),
            "recall_seconds": seconds(lambda: self.finder.recall(track, usual, asked[0]), self.runs),
            "recall_at_r": statistics.mean(float(torch.isin(e, u).double().mean()) for e, u in pairs),
            "first_recall_seconds": first,
            "resident_mib": resident() - before,
        }
        return row if recall_only else row | self._read(track, row["recall_seconds"])

    def _read(self, track: Track, recall_seconds: float) -> dict[str, Any]:
        one = self.memory.fork()
        one.commit(replace(self.memory.state, tracks=(track,)))
        starts = itertools.count()

        def read() -> None:
            # Another question each time: what an earlier read of the same one left would be used again.
            start = next(starts)
            prompt = Prompt(tuple(self.words[start : start + QUERY_TOKENS]), (0, QUERY_TOKENS))
            prefill(self.model.weights, [self.model.read_request(one, prompt)])

        whole = seconds(read, self.runs)
        on_disk = sum(s.nbytes for s in track.long_term.segments if s.tier == "disk") / 2**20
        return {"read_seconds": whole, "recall_share": recall_seconds / whole, "disk_mib": on_disk}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 150_000, 1_000_000])
    parser.add_argument("--recall-only", type=int, nargs="*", default=[10_000_000])
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model, device="cpu", dtype="float32")
    scale = Scale(model, arguments.questions, arguments.runs)
    rows: list[dict[str, Any]] = []
    for tokens, alone in [*((n, False) for n in arguments.sizes), *((n, True) for n in arguments.recall_only)]:
        rows.append(scale.at(tokens, recall_only=alone))
        print(rows[-1], flush=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    report.table([{name: row.get(name) for name in names} for row in rows])

    def draw(axes: Any) -> None:
        for name in ("exact_recall_seconds", "recall_seconds", "read_seconds"):
            known = [row for row in rows if name in row]
            label = name.removesuffix("_seconds").replace("_", " ")
            axes.plot([row["tokens"] for row in known], [row[name] for row in known], marker="o", label=label)
        axes.set(xscale="log", yscale="log", xlabel="long-term tokens a layer", ylabel="seconds")
        axes.legend()

    report.save("scaling", {"rows": rows}, arguments.output, draw)


if __name__ == "__main__":
    main()
