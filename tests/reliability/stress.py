"""Many threads of many processes at few memories, one process being killed again and again.

    python -m tests.reliability.stress FOLDER --seconds 120

Every thread opens a memory by chance and writes a note of its own into it. At the end each memory must hold
every note that was saved, and none of another memory. Prints JSON.
"""

import argparse
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import torch

from mplus import MemoryLockedError, MemoryStore, MPlus
from tests.reliability import states
from tests.reliability.processes import fork

LOCK_SECONDS = 60.0


def work(model: MPlus, root: Path, log: Path, arguments: argparse.Namespace, deadline: float, seed: int) -> None:
    """One process: what it begins and what it has saved goes into ``log``, a line each."""
    # After a fork torch renews its thread pool at the first use, which several threads must not be at once.
    torch.set_num_threads(1)
    store = MemoryStore(root)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(word: str, name: str, source: str) -> None:
        os.write(handle, f"{word} {name} {source}\n".encode())

    def thread(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        count = 0
        while time.monotonic() < deadline:
            name = f"memory-{rng.randrange(arguments.memories):02d}"
            source = f"{name}/{os.getpid()}-{number}-{count}"
            count += 1
            try:
                if rng.random() < 0.2 and (root / name / "memory.json").exists():
                    held = store.load(name, model)
                    if any(not s.name.startswith(f"{name}/") for s in held.sources()):
                        note("crossed", name, source)
                    continue
                with store.open(name, model, timeout=LOCK_SECONDS) as memory:
                    note("began", name, source)
                    model.write(memory, f"Note {count} of thread {number} for {name}.", source=source)
                note("saved", name, source)
            except MemoryLockedError:
                note("locked", name, source)
            except BaseException as error:
                note("failed", name, f"{error!r:.300}".replace("\n", " "))
                raise

    running = [threading.Thread(target=thread, args=(number,)) for number in range(arguments.threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--memories", type=int, default=20)
    arguments = parser.parse_args()
    model, root = states.model(), arguments.folder / "store"
    root.mkdir(parents=True)
    logs = [arguments.folder / f"log-{number}" for number in range(arguments.processes + 1)]
    begun = time.monotonic()
    deadline = begun + arguments.seconds
    processes = [
        fork(lambda n=number: work(model, root, logs[n], arguments, deadline, n))
        for number in range(arguments.processes)
    ]
    # One more, which is killed whatever it is at, as soon as it has saved something, and begun anew.
    rng, kills, victims_log = random.Random(0), 0, logs[-1]
    victims_log.touch()
    while time.monotonic() < deadline:
        before = victims_log.stat().st_size
        seed = 1000 + kills
        victim = fork(lambda seed=seed: work(model, root, victims_log, arguments, deadline + 600, seed))
        while victims_log.stat().st_size == before and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1.0))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        kills += 1
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]

    store = MemoryStore(root)
    lines = [line.split(" ", 2) for log in logs if log.exists() for line in log.read_text().splitlines()]
    told = {word: {(name, source) for w, name, source in lines if w == word} for word in ("began", "saved")}
    held = {(m.name, s.name) for m in store.list() for s in store.load(m.name, model).sources()}
    for stored in store.list():  # no lock outlives its process
        with store.open(stored.name, model, timeout=5.0):
            pass
    result = {
        "exit_codes": codes,
        "kills": kills,
        "memories": len(store.list()),
        "saved": len(told["saved"]),
        "lost": sorted(told["saved"] - held)[:5],
        "crossed": sorted(pair for pair in held if not pair[1].startswith(pair[0] + "/"))[:5]
        + [line for line in lines if line[0] == "crossed"],
        "never begun": sorted(held - told["began"])[:5],
        "failed": [line for line in lines if line[0] == "failed"][:5],
        "locked out": sum(line[0] == "locked" for line in lines),
        "seconds": time.monotonic() - begun,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
