"""How far each part is from the limit of the machine.

    python benchmarks/limits.py [--write-tokens 8192] [--prefix 4096] [--scored 262144] [--gathered 32768]

* write: text tokens per second into memory, over a plain forward of the backbone on the same text;
* decode: tokens per second over ``transformers.generate`` at equal KV length;
* decode, bytes: weights read per second by one user's decoding, in float32 and with ``decode_dtype="auto"``, over the
  bytes per second that reading a large tensor takes in turn with it, all in processor time of one thread;
* gather: rows of whole chunks read from disk with cold caches, over plain reads of as many bytes at as many
  random places of the same files;
* recall: late interaction over all keys of a memory and a comparison of words, over one bare matrix product of the
  same size as the former.

Both sides of a pair are measured in turn in one run; figures are medians.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import core
import report
import torch
from cpu_decode import load, read_seconds, reading, weight_bytes
from synthetic import long_term_of, spoken_words, unit_keys

import mplus
from mplus.layouts.whole_chunks import WholeChunks
from mplus.read.fetch import RecalledRows
from mplus.recall.late_interaction import LateInteraction
from mplus.recall.lexical import lexical_match
from mplus.recall.units import Candidates
from mplus.words import WordForms

HOST = torch.device("cpu")
QUERY_ROWS = 32


def recall_over_matmul(scorer: LateInteraction, size: int, tokens: int, runs: int) -> dict[str, Any]:
    """Scoring of all chunks of a memory, int8 keys and words, and a float32 product of the same size as the keys."""
    keys = unit_keys(tokens, size)
    store = long_term_of(keys)
    queries = unit_keys(QUERY_ROWS, size, seed=1)
    words = spoken_words(QUERY_ROWS, seed=1).unique()
    forms = WordForms(words, torch.arange(len(words)), len(words))
    whole = keys.contiguous()
    candidates = Candidates.of((store,), WholeChunks())

    def ours() -> None:
        scorer.match(queries, candidates.blocks(HOST), len(candidates))
        lexical_match(forms, candidates)

    def theirs() -> None:
        torch.mm(whole, queries.T)

    mine, other = (statistics.median(seconds) for seconds in core.in_turn(ours, theirs, runs))
    return {"limit": "recall scoring", "unit": "tokens/s", "ours": tokens / mine, "theirs": tokens / other}


def gather_over_random_reads(model: mplus.MPlus, tokens: int, runs: int) -> dict[str, Any]:
    """Rows of recalled chunks from cold files, and plain reads of the same sizes from the same files."""
    backbone = model.weights.backbone
    shape = (backbone.num_layers, backbone.num_key_value_heads, backbone.head_size)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        store = long_term_of(unit_keys(tokens, 8), shape=shape, folder=Path(folder))
        files = sorted(Path(folder).iterdir())
        chunks = len(store) // 64
        mine: list[float] = []
        other: list[float] = []
        per_read = 64 * shape[1] * shape[2]
        requests = 8 * 2 * shape[0]
        for _ in range(runs):
            chosen = torch.randperm(chunks, generator=generator)[:8].sort().values
            index = (chosen[:, None] * 64 + torch.arange(64)).flatten()
            _make_cold(files)
            started = time.perf_counter()
            rows = RecalledRows((store,), index, torch.float32, (HOST,) * shape[0], [range(shape[0])])
            rows.take(0)
            mine.append(time.perf_counter() - started)
            _make_cold(files)
            other.append(_random_reads(files, requests, per_read, generator))
    useful = requests * per_read / 2**20
    return {
        "limit": "gather from disk",
        "unit": "MiB/s",
        "ours": useful / statistics.median(mine),
        "theirs": useful / statistics.median(other),
    }


def decode_over_reading(model: mplus.MPlus, kind: str, prefix: int, runs: int) -> dict[str, Any]:
    """Bytes of weights per second of decoding for one user, and of reading a tensor, on one thread."""
    ones, threads = torch.ones(2**26), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state, logits = reading(model, prefix)
        token, mine, other = int(logits.argmax()), list[float](), list[float]()
        for _ in range(4 * runs):
            started = time.thread_time()
            state.decode([token])
            mine.append(time.thread_time() - started)
            other.append(read_seconds(ones))
    finally:
        torch.set_num_threads(threads)
    return {
        "limit": f"decode, bytes, {kind}",
        "unit": "GB/s",
        "ours": weight_bytes(model) / min(mine) / 1e9,
        "theirs": ones.nbytes / min(other) / 1e9,
    }


def _make_cold(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _random_reads(files: list[Path], count: int, size: int, generator: torch.Generator) -> float:
    handles = [os.open(path, os.O_RDONLY) for path in files]
    try:
        places = [
            (int(torch.randint(len(files), (), generator=generator)), float(torch.rand((), generator=generator)))
            for _ in range(count)
        ]
        ends = [os.fstat(handle).st_size - size for handle in handles]
        started = time.perf_counter()
        for number, at in places:
            os.pread(handles[number], size, int(at * ends[number]))
        return time.perf_counter() - started
    finally:
        for handle in handles:
            os.close(handle)


def measured(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One row, with its ratio."""
    row = work()
    print(f"{name}: done", flush=True)
    return {**row, "ratio": row["ours"] / row["theirs"]}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--write-tokens", type=int, default=8192)
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--scored", type=int, default=262_144)
    parser.add_argument("--gathered", type=int, default=32_768)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model, device="cpu", dtype="float32")
    scorer: Any = model.weights.scorers["late"]
    size = len(scorer.mean[0]) if scorer.key_projection is None else len(scorer.key_projection)

    def write() -> dict[str, Any]:
        found = core.write(model, arguments.write_tokens, arguments.runs)
        sides = {"ours": found["write_tokens_per_second"], "theirs": found["forward_tokens_per_second"]}
        return {"limit": "write over plain forward", "unit": "tokens/s", **sides}

    def decode() -> dict[str, Any]:
        found = core.read(model, arguments.prefix, arguments.runs)
        sides = {"ours": 1 / found["decode_seconds"], "theirs": 1 / found["their_decode_seconds"]}
        return {"limit": "decode over generate", "unit": "tokens/s", **sides}

    rows = [
        measured("recall", lambda: recall_over_matmul(scorer, size, arguments.scored, arguments.runs)),
        measured("gather", lambda: gather_over_random_reads(model, arguments.gathered, arguments.runs)),
        measured("write", write),
        measured("decode", decode),
        *(
            measured(f"bytes, {kind}", lambda one=one, kind=kind: decode_over_reading(one, kind, 512, arguments.runs))
            for kind, one in (("float32", model), ("auto", load(arguments.model, "auto")))
        ),
    ]
    targets = {
        "write over plain forward": 0.85,
        "decode over generate": 1.0,
        "recall scoring": 0.7,
        "decode, bytes, float32": 0.8,
        "decode, bytes, auto": 0.8,
    }
    rows = [{**row, "target": targets.get(row["limit"])} for row in rows]
    report.table(rows)

    def draw(axes: Any) -> None:
        axes.barh([row["limit"] for row in rows], [row["ratio"] for row in rows])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(xlabel="ours / limit")

    report.save("limits", {"rows": rows}, arguments.output, draw)


if __name__ == "__main__":
    main()
