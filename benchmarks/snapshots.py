"""Saving and opening memories, side by side with plain copies of the same bytes in the same run.

    python benchmarks/snapshots.py [--tokens 1048576] [--json snapshots.json]

* save: a whole memory, over copying the files it makes (shutil.copyfile and fsync);
* load: opening it and checking every byte, over reading the files;
* open: seconds until a large memory can be used, and how much resident memory that takes;
* incremental: saving the large memory after one more turn of a conversation, over saving all of it.

A large memory is made of one real segment of 4,096 tokens under many names: what is measured does not depend
on what the bytes say. Once it is saved, its equal files are made one, so that all of it fits into page cache;
``--folder`` chooses the disk. Seconds of processor time stand beside those on the clock.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import mplus
from mplus.memory.long_term import LongTermMemory
from mplus.memory.state import SEGMENT_TOKENS
from mplus.memory.tiers import Segment
from mplus.memory.tokens import Provenance
from mplus.storage.files import verify
from mplus.storage.place import Folder

TURN = "I moved to Trieste in May, and my sister came along with her two cats, Nero and Luna."


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def copy_files(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with (target / path.name).open("rb") as file:
            os.fsync(file.fileno())


def read_files(folder: Path) -> None:
    buffer = bytearray(2**22)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def filled(model: mplus.MPlus, tokens: int) -> mplus.Memory:
    """A memory with about so many long-term tokens beside what a conversation leaves in the other pools."""
    text = Path(mplus.__file__).parent.joinpath("checkpoint", "calibration.txt").read_text(encoding="utf-8")
    memory = model.new_memory()
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    config = memory.config
    wanted = config.short_term_tokens + 2 * config.consolidate_every * config.tokens_per_write
    model.write(memory, (ids * (wanted // len(ids) + 1))[:wanted], source="book")
    state = memory.state
    (track,) = state.tracks
    long_term = track.long_term
    rows = torch.arange(SEGMENT_TOKENS) % len(long_term)
    content = long_term.content(rows, track.dtype, track.devices)
    one = Segment.store(content, config.resolved_long_term_dtype)
    count = -(-tokens // SEGMENT_TOKENS)
    store = LongTermMemory.empty()
    for number in range(count):
        age = torch.arange(SEGMENT_TOKENS - 1, -1, -1) + (count - 1 - number) * SEGMENT_TOKENS + state.written_tokens
        provenance = Provenance(
            ages=age,
            recall_frequencies=torch.full((SEGMENT_TOKENS,), config.initial_recall_frequency, dtype=torch.float64),
            sources=torch.zeros(SEGMENT_TOKENS, dtype=torch.int64),
            chunks=(torch.arange(SEGMENT_TOKENS) + number * SEGMENT_TOKENS) // config.chunk_tokens,
            words=torch.randint(2**31 - 1, (SEGMENT_TOKENS,), dtype=torch.int32),
        )
        named = Segment(one.keys, one.values, one.retrieval_keys, one.states)
        store = store.append(named, provenance)
    memory.commit(replace(state, tracks=(replace(track, long_term=store),)))
    return memory


def compared(model: mplus.MPlus, memory: mplus.Memory, ours: Path, theirs: Path) -> tuple[dict[str, float], int]:
    """Seconds of each, and the bytes that were saved."""
    taken = {
        "save": seconds(lambda: memory.save(ours)),
        "copy": seconds(lambda: copy_files(ours, theirs)),
        "load": seconds(lambda: (mplus.Memory.load(ours, model), verify(Folder(ours)))),
        "read": seconds(lambda: read_files(theirs)),
    }
    nbytes = folder_bytes(ours)
    shutil.rmtree(ours)
    shutil.rmtree(theirs)
    return taken, nbytes


def throughput(model: mplus.MPlus, root: Path, tokens: int, runs: int) -> dict[str, Any]:
    """Save and load against plain copies and reads, in turn."""
    memory = filled(model, tokens)
    timed: dict[str, list[float]] = {name: [] for name in ("save", "copy", "load", "read")}
    nbytes = 0
    for number in range(runs + 1):
        taken, nbytes = compared(model, memory, root / f"ours-{number}", root / f"theirs-{number}")
        for name, value in taken.items():
            if number:
                timed[name].append(value)
    rates = {name: nbytes / statistics.median(values) / 1e9 for name, values in timed.items()}
    return {"tokens": tokens, "bytes": nbytes, "gigabytes_per_second": rates, "runs": runs}


def share_equal_files(folder: Path) -> None:
    """One file under many names where content is the same: then page cache is warm on any machine."""
    known = json.loads((folder / "memory.json").read_text())["memory"]["files"]
    first: dict[str, Path] = {}
    for name, described in known.items():
        original = first.setdefault(described["sha256"], folder / name)
        if original.name != name:
            os.link(original, folder / "again")
            (folder / "again").replace(folder / name)


def opened(model: mplus.MPlus, folder: Path, runs: int) -> dict[str, Any]:
    """Seconds to open, and resident memory before and after the first time."""
    before = resident_bytes()
    kept: list[mplus.Memory] = []
    taken = [seconds(lambda: kept.append(mplus.Memory.load(folder, model)))]
    growth = resident_bytes() - before
    kept.clear()
    busy = time.process_time()
    taken += [seconds(lambda: mplus.Memory.load(folder, model)) for _ in range(runs)]
    return {
        "first_open_seconds": taken[0],
        "open_seconds": statistics.median(taken[1:]),
        "open_processor_seconds": (time.process_time() - busy) / runs,
        "resident_growth": growth,
    }


def large(model: mplus.MPlus, root: Path, tokens: int, runs: int) -> dict[str, Any]:
    """Open, full save and incremental saves of a large memory."""
    folder = root / "large"
    memory = filled(model, tokens)
    full = seconds(lambda: memory.save(folder))
    nbytes = folder_bytes(folder)
    del memory
    share_equal_files(folder)
    found = opened(model, folder, runs)
    memory = mplus.Memory.load(folder, model)
    incremental: list[float] = []
    written: list[int] = []
    for number in range(runs):
        model.write(memory, TURN, source=f"turn {number}")
        before = {path.name: path.stat().st_ino for path in folder.iterdir()}
        incremental.append(seconds(lambda: memory.save(folder)))
        new = [path for path in folder.iterdir() if before.get(path.name) != path.stat().st_ino]
        written.append(sum(path.stat().st_size for path in new))
    question = [{"role": "user", "content": "Where did I move?"}]
    answered = seconds(lambda: model.generate(memory, question, max_new_tokens=1))
    shutil.rmtree(folder)
    return {
        "tokens": tokens,
        "bytes": nbytes,
        **found,
        "resident_growth_share": found["resident_growth"] / nbytes,
        "full_save_seconds": full,
        "incremental_save_seconds": statistics.median(incremental),
        "incremental_save_bytes": statistics.median(written),
        "first_read_seconds": answered,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smol-135m")
    parser.add_argument("--tokens", type=int, default=1_048_576, help="of the large memory")
    parser.add_argument("--throughput-tokens", type=int, default=65_536)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to save; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = mplus.MPlus.from_pretrained(arguments.model, device="cpu", dtype="float32")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        found = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "commit": commit.stdout.strip(),
            "throughput": throughput(model, root, arguments.throughput_tokens, arguments.runs),
            "large": large(model, root, arguments.tokens, arguments.runs),
        }
    t, big = found["throughput"], found["large"]
    rate = t["gigabytes_per_second"]
    print(f"{found['machine']}, torch {found['torch']}, commit {found['commit']}\n")
    print(f"| {t['tokens']:,} tokens, {t['bytes'] / 1e9:.2f} GB | GB/s | plain, same bytes | ratio |")
    print("| --- | --- | --- | --- |")
    for ours, theirs, what in (("save", "copy", "save / copy and fsync"), ("load", "read", "load and check / read")):
        print(f"| {what} | {rate[ours]:.2f} | {rate[theirs]:.2f} | {rate[ours] / rate[theirs]:.2f} |")
    print(f"\n| {big['tokens']:,} tokens, {big['bytes'] / 1e9:.2f} GB | |\n| --- | --- |")
    print(
        f"| open (target: below 1 s) | {big['open_seconds']:.2f} s ({big['open_processor_seconds']:.2f} s of processor "
        f"time); the first time {big['first_open_seconds']:.2f} s |"
    )
    print(
        f"| resident memory grows by (target: below 5%) | {big['resident_growth'] / 1e6:.0f} MB, "
        f"{big['resident_growth_share']:.1%} |"
    )
    print(f"| full save | {big['full_save_seconds']:.1f} s |")
    share = big["incremental_save_seconds"] / big["full_save_seconds"]
    print(
        f"| save after one more turn | {big['incremental_save_seconds']:.3f} s, "
        f"{big['incremental_save_bytes'] / 1e6:.1f} MB: {share:.2%} of the time |"
    )
    print(f"| first answer's first token after opening | {big['first_read_seconds']:.2f} s |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
