"""Kill a process at random moments of what it does to memories on disk, and look what is left.

    python -m tests.reliability.kills FOLDER --kills 200

The process imports once; every victim is a fork of it. Prints JSON.
"""

import argparse
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mplus import KeyVault, Memory, MemoryNotFoundError, MemoryStore
from mplus.storage.manifest import parse_manifest
from mplus.storage.names import MANIFEST
from tests.reliability import states
from tests.reliability.processes import fork

KINDS = ("save", "incremental save", "write", "delete", "encrypted write", "encrypted delete")
NAME = "alice"


def killed(work: Callable[[], object], after: float) -> bool:
    """Do some work in a child and kill it so many seconds after it began; whether it was still at it."""
    receive, send = os.pipe()

    def announced() -> None:
        os.write(send, b"!")
        work()

    child = fork(announced)
    os.read(receive, 1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(receive)
    os.close(send)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work itself failed"
    return os.WIFSIGNALED(status)


class Bench:
    """Two stores with one memory each, one of them encrypted."""

    def __init__(self, root: Path) -> None:
        self.model = states.model()
        self.plain = MemoryStore(root / "plain", max_resident_bytes=0)
        self.sealed = MemoryStore(root / "sealed", max_resident_bytes=0, vault=KeyVault(root / "keys"))
        self.count = 0
        # Writing the same twice gives the same, down to its time.
        time.time = lambda: float(self.count)

    def unrelated(self) -> Memory:
        """A memory that shares nothing with any other."""
        self.count += 1
        memory = self.model.new_memory()
        self.model.write(memory, states.text(self.count, 12), source=f"text {self.count}", keep_text=True)
        return memory

    def turn(self, memory: Memory) -> Memory:
        """The memory after one more turn."""
        self.model.write(memory, f"This is turn {self.count} of the talk.", source=f"turn {self.count}")
        return memory

    def written(self, store: MemoryStore) -> None:
        """Open, write and save."""
        with store.open(NAME, self.model) as memory:
            self.turn(memory)

    def put_back(self, store: MemoryStore, memory: Memory) -> None:
        with store.open(NAME, self.model) as opened:
            opened.adopt(memory)

    def work(self, kind: str, store: MemoryStore, old: Memory) -> tuple[Callable[[], object], str | None]:
        """What a victim does, and the hash of what there is when it is done."""
        self.count += 1
        if kind.endswith("delete"):
            return lambda: store.delete(NAME), None
        if kind.endswith("write"):
            return lambda: self.written(store), states.hash_of(self.turn(old.fork()))
        new = self.unrelated() if kind == "save" else self.turn(old.fork())
        return lambda: new.save(store.path(NAME)), states.hash_of(new)

    def found(self, store: MemoryStore) -> Memory | None:
        """What a process that opens the store now finds; a dead one's locks do not keep it waiting."""
        again = MemoryStore(store.root, vault=store.vault, max_resident_bytes=0)
        assert not [*store.root.glob(".deleted-*"), *store.root.glob(".deleting-*")]
        try:
            memory = again.load(NAME, self.model)
        except MemoryNotFoundError:
            assert again.vault is None or not list(again.vault.folder.glob("*.key")), "a deleted memory left its key"
            return None
        with again.open(NAME, self.model, timeout=5.0) as opened:
            assert opened.fingerprint == memory.fingerprint
        return memory

    def run(self, kind: str, kills: int, rng: random.Random) -> Counter[str]:
        """How often the old and the new state were found."""
        store = self.sealed if kind.startswith("encrypted") else self.plain
        self.put_back(store, self.unrelated())
        outcomes: Counter[str] = Counter()
        seconds: list[float] = []
        while sum(outcomes.values()) < kills:
            old = self.found(store)
            assert old is not None
            work, new = self.work(kind, store, old)
            if len(seconds) < 3:  # nobody is killed yet: how long does it take?
                started = time.perf_counter()
                assert os.waitpid(fork(work), 0)[1] == 0
                seconds.append(time.perf_counter() - started)
                was_busy = False
            else:
                was_busy = killed(work, rng.uniform(0, 1.1 * statistics.median(seconds)))
            found = self.found(store)
            # Neither is a KeyError: a mixture.
            outcome = {states.hash_of(old): "old", new: "new"}[None if found is None else states.hash_of(found)]
            if len(seconds) >= 3:
                outcomes[f"{outcome}, {'killed' if was_busy else 'had ended'}"] += 1
            if found is None:
                self.put_back(store, old)
        return outcomes

    def leftovers(self, store: MemoryStore) -> list[str]:
        """Files beside those that the memory needs, once something has been saved again."""
        self.count += 1
        self.written(store)
        folder = store.path(NAME)
        key = None if store.vault is None else store.vault.key(NAME)
        needed = parse_manifest((folder / MANIFEST).read_bytes(), folder, key).files.keys()
        return [path.name for path in folder.iterdir() if path.name not in {*needed, MANIFEST, ".lock"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bench, rng = Bench(arguments.folder), random.Random(arguments.seed)
    started = time.perf_counter()
    found = {kind: dict(bench.run(kind, arguments.kills // len(KINDS), rng)) for kind in KINDS}
    extra = bench.leftovers(bench.plain) + bench.leftovers(bench.sealed)
    print(json.dumps({"outcomes": found, "leftovers": extra, "seconds": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
