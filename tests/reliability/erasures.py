"""Kill a process at every step of an erasure, and look whether anything erased is served, or anything else is lost.

    python -m tests.reliability.erasures FOLDER

A deletion or the destruction of a key is begun in a fork, which kills itself (SIGKILL) at its first call to the file
system or request to the url, then at its second, and so on. Another process goes on afterwards: on the same machine, or
on another one, which makes a new memory of that name before the first machine comes back. Prints JSON.
"""

import argparse
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mplus import KeyVault, MemoryKeyError, MemoryNotFoundError, MemoryStore, MPlus, MPlusError, UrlStore
from mplus.memory import url_store
from tests.reliability import bucket, states
from tests.reliability.faults import Faults
from tests.reliability.processes import fork

NAME = "alice"
OLD, NEW = "what is erased", "what is new"


class Kill(Faults):
    """Kills the process at one of its calls."""

    def call(self, name: str) -> None:
        """Note a call; die if it is the one."""
        self.count += 1
        if self.count - 1 == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Case:
    """An erasure, and who comes afterwards.

    Attributes:
        name: For the report.
        behind_url: Whether the store is behind a url.
        encrypted: Whether it has a vault.
        destroyed: Whether only the key is destroyed, and nothing deleted.
        elsewhere: Whether another machine comes first, and makes a new memory of that name.
    """

    name: str
    behind_url: bool
    encrypted: bool = True
    destroyed: bool = False
    elsewhere: bool = False


CASES = (
    Case("delete", behind_url=False),
    Case("delete, not encrypted", behind_url=False, encrypted=False),
    Case("destroy", behind_url=False, destroyed=True),
    Case("delete behind a url", behind_url=True),
    Case("delete behind a url, not encrypted", behind_url=True, encrypted=False),
    Case("destroy behind a url", behind_url=True, destroyed=True),
    Case("delete behind a url, another machine next", behind_url=True, elsewhere=True),
)


class Bench:
    """One case in a folder."""

    def __init__(self, case: Case, model: MPlus, root: Path) -> None:
        self.case, self.model, self.root = case, model, root
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        shutil.rmtree(root / "before", ignore_errors=True)
        self.use(root / "before")
        with self.store(root / "before", "here").open(NAME, model) as memory:
            model.write(memory, states.text(1, 2), source=OLD, keep_text=True)
        self.old = self.key(root / "before")

    def use(self, folder: Path) -> None:
        """Have the url lead into a folder."""
        os.environ[bucket.ROOT] = str(folder / "bucket")

    def store(self, folder: Path, machine: str) -> MemoryStore:
        """The store, as a new process of a machine opens it."""
        vault = KeyVault(folder / "keys") if self.case.encrypted else None
        if self.case.behind_url:
            return UrlStore(bucket.URL, folder / machine, vault=vault)
        return MemoryStore(folder / machine, vault=vault)

    def key(self, folder: Path) -> str | None:
        """Identifier of the key that is there."""
        try:
            return KeyVault(folder / "keys").key(NAME).id
        except MemoryKeyError:
            return None

    def run(self, every: int) -> None:
        """Kill at the first call, at the second, and so on."""
        for at in range(0, 10_000, every):
            folder = self.root / "tried"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.root / "before", folder)
            self.use(folder)
            if not self.killed(folder, at):
                return
            try:
                self.look(folder)
            except (MPlusError, AssertionError, OSError) as error:
                self.wrong.append(f"{self.case.name}, killed at call {at}: {error!r:.300}")

    def killed(self, folder: Path, at: int) -> bool:
        """Whether the process died before it had ended."""

        def work() -> None:
            store = self.store(folder, "here")
            store.load(NAME, self.model)  # it is warm
            with Kill(at).injected():
                store.vault.destroy(NAME) if self.case.destroyed and store.vault else store.delete(NAME)

        status = os.waitpid(fork(work), 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work itself failed"
        return os.WIFSIGNALED(status)

    def look(self, folder: Path) -> None:
        """What the processes that come afterwards find and do."""
        key = self.key(folder)
        store = self.store(folder, "there" if self.case.elsewhere else "here")
        outcome = self.found(store)
        self.outcomes[outcome] += 1
        if outcome == "intact":
            assert not self.case.encrypted or key == self.old, "the key is gone, and the memory is read"
            return
        if self.case.encrypted:
            assert self.key(folder) is None, "the memory is gone, and its key is not"
        if outcome == "unreadable":
            store.delete(NAME)
        self.make_anew(store, folder)
        # The machine that was killed comes back, once and again.
        for _ in range(2):
            back = self.store(folder, "here")
            assert [s.name for s in back.load(NAME, self.model).sources()] == [NEW], "what is new is lost"
            with back.open(NAME, self.model) as memory:
                assert [s.name for s in memory.sources()] == [NEW]
        self.look_for_leftovers(folder)

    def found(self, store: MemoryStore) -> str:
        """Whether the old memory is still there."""
        try:
            assert [s.name for s in store.load(NAME, self.model).sources()] == [OLD]
        except MemoryNotFoundError:
            return "gone"
        except MemoryKeyError:
            return "unreadable"
        return "intact"

    def make_anew(self, store: MemoryStore, folder: Path) -> None:
        with store.open(NAME, self.model) as memory:
            assert memory.sources() == []
            self.model.write(memory, states.text(2, 2), source=NEW, keep_text=True)
        if self.case.encrypted:
            assert self.key(folder) not in (None, self.old), "the old key is used again"

    def look_for_leftovers(self, folder: Path) -> None:
        left = [p.name for p in folder.rglob("*") if p.name.startswith((".deleting-", ".deleted-"))]
        assert not left, f"left: {left}"
        if not self.case.encrypted:
            held = [p for p in folder.rglob("*") if p.is_file() and OLD.encode() in p.read_bytes()]
            assert not held, f"erased text is in {held}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="Kill only at every so many-th call.")
    given = parser.parse_args()
    root, model = given.folder, states.model()
    url_store.LEASE_SECONDS = 0.2  # the lease of one who was killed is waited for
    outcomes: dict[str, Any] = {}
    wrong: list[str] = []
    for case in CASES:
        bench = Bench(case, model, root / case.name.replace(" ", "-"))
        bench.run(given.every)
        outcomes[case.name], wrong = dict(bench.outcomes), wrong + bench.wrong
    print(json.dumps({"outcomes": outcomes, "wrong": wrong}))


if __name__ == "__main__":
    main()
