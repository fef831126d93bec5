"""What a server of many memories takes and gives back: resident memory, threads, open files, bytes of each note.

    python benchmarks/resources.py [--users 32] [--notes 50] [--rounds 4] [--workers 8] [--output results]

Several threads write notes into the memories of several users and ask about them, round after round, in a process of
its own for each setting of the allocator. Each row says what the process takes after loading, after every round, and
when all has been closed and collected; the resident size of the last rounds should be level. Threads and files are
counted from /proc, so it runs on Linux. ``--model tiny`` checks the script itself.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from report import machine, parser, table

ALLOCATORS: dict[str, dict[str, str]] = {
    "as it is": {},
    "two arenas": {"MALLOC_ARENA_MAX": "2"},
    "two arenas, trimmed": {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"},
}
"""Settings of glibc by name."""
NOTE = "User {user} keeps thing {number} in drawer {drawer} of the old cupboard by the door."


def taken() -> dict[str, float]:
    """Resident memory in MB, threads, and open files of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "resident MB": int(status["VmRSS"].split()[0]) / 1000,
        "threads": int(status["Threads"]),
        "files": len(os.listdir("/proc/self/fd")),
    }


def loaded(name: str) -> Any:
    """The model, or a tiny one that knows nothing."""
    import mplus
    from mplus.testing import tiny_model

    return tiny_model() if name == "tiny" else mplus.MPlus.from_pretrained(name)


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each stage of a process."""
    import mplus

    rows: list[dict[str, Any]] = []
    model = loaded(given.model)
    rows.append({"stage": "loaded", **taken()})
    with tempfile.TemporaryDirectory(prefix="mplus-resources-") as folder:
        store = mplus.MemoryStore(folder)

        def turn(user: int, number: int) -> None:
            with store.open(f"user-{user}", model) as memory:
                text = NOTE.format(user=user, number=number, drawer=number % 7)
                model.write(memory, text, source=f"note-{number}", keep_text=True)
            model.generate(store.load(f"user-{user}", model), f"Where is thing {number}?", max_new_tokens=8)

        for number in range(given.rounds):
            with ThreadPoolExecutor(given.workers) as workers:
                notes = range(number * given.notes, (number + 1) * given.notes)
                list(
                    workers.map(lambda job: turn(*job), [(user, note) for note in notes for user in range(given.users)])
                )
            rows.append({"stage": f"round {number + 1}", **taken()})
        nbytes = sum(stored.nbytes for stored in store.list())
        del store
    del model
    gc.collect()
    rows.append({"stage": "closed", **taken()})
    rows[-1]["bytes a note on disk"] = nbytes / (given.users * given.notes * given.rounds)
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--users", type=int, default=32)
    arguments.add_argument("--notes", type=int, default=50, help="notes of each user in a round")
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--workers", type=int, default=8, help="threads that write and ask")
    arguments.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.inside:
        print(json.dumps(measured(given)))
        return
    rows: list[dict[str, Any]] = []
    for name, settings in ALLOCATORS.items():
        command = [sys.executable, *sys.argv, "--inside"]
        done = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows += [{"allocator": name, "bytes a note on disk": None, **row} for row in found]
    table(rows)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "resources.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
